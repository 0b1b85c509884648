"""What the processes of a test do, one job after the other: ``run`` or ``refused OUT TOKEN...``, or ``losses``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from everclip import follower, joining, ranks
from everclip.errors import UserError
from everclip.loop import train
from everclip.progress import Progress
from everclip.run import Run
from tests.distributed.losses import gradients
from tests.running import configured


def run(out: str, *tokens: str) -> Any:
    """A small run of all processes."""
    config = configured(*tokens, f"out={Path(out)}")
    with follower.shared(config, lambda: Run.open(config)) as opened:
        return train(opened, Progress(quiet=True))


def refused(out: str, *tokens: str) -> str:
    """Why such a run is refused: by every process, in the same words."""
    try:
        run(out, *tokens)
    except UserError as error:
        (message,) = set(ranks.told(str(error)))
        return message
    return "not refused"


JOBS = {"run": run, "refused": refused, "losses": gradients}

if __name__ == "__main__":
    with joining.joined("cpu"):
        for name, *words in json.loads(sys.argv[1]):
            answer = JOBS[name](*words)
            if ranks.rank() == 0:
                print(json.dumps(answer), flush=True)
