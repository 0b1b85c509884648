"""What the processes of a test do, one job after the other: ``run`` or ``refused OUT TOKEN...``, or ``losses``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from everclip.data.loader import Phase
from everclip.distributed import collectives, launch
from everclip.errors import UserError
from everclip.models import fsdp, zoo
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.training import activation_cache, multiprocess
from everclip.training.loop import train
from everclip.training.optim import Update
from everclip.training.plan import Plan
from tests.distributed.losses import gradients
from tests.distributed.towers import differences
from tests.running import configured


def run(out: str, *tokens: str) -> Any:
    """A small run of all processes."""
    config = configured(*tokens, f"out={Path(out)}")
    with multiprocess.shared(config, lambda: Run.open(config)) as opened:
        return train(opened, Progress(quiet=True))


def refused(out: str, *tokens: str) -> str:
    """Why such a run is refused: by every process, in the same words."""
    try:
        run(out, *tokens)
    except UserError as error:
        (message,) = set(collectives.told(str(error)))
        return message
    return "not refused"


def uneven(out: str, *tokens: str) -> Any:
    """A run whose first process has room on its disk for the kept activations, and its others none."""
    activation_cache._free = lambda folder: 0 if collectives.rank() else 1 << 40
    return run(out, *tokens)


def parts(model: str, *tokens: str) -> list[dict[str, int]]:
    """Of each process the numbers of a phase's parameters, gradients and moments on it, after a step."""
    clip, config = zoo.load(model), configured(*tokens)
    method = Plan.of(config).method
    update = Update(clip, method, Phase(), config.train, 4, shard=True)
    loss = (
        clip.encode_text(["a dog", "a cat", "a red bird"]).sum()
        + clip.encode_image(torch.ones(2, 3, clip.image_size, clip.image_size)).square().sum(0).max()
    )
    loss.backward()
    local = [fsdp.local(parameter) for parameter in update.parameters]
    gradients = [fsdp.local(p.grad) for p in update.parameters if p.grad is not None]
    update.step({"loss": clip.encode_text(["a dog"]).sum()}, "here", [0])
    moments = [value for entry in update.optimizer.state.values() for value in entry.values() if value.ndim]
    counted = {"weights": local, "gradients": gradients, "moments": moments}
    return collectives.told({name: sum(part.numel() for part in found) for name, found in counted.items()})


JOBS = {
    "run": run,
    "uneven": uneven,
    "refused": refused,
    "losses": gradients,
    "parts": parts,
    "towers": differences,
}

if __name__ == "__main__":
    with launch.joined("cpu"):
        for name, *words in json.loads(sys.argv[1]):
            answer = JOBS[name](*words)
            if collectives.rank() == 0:
                print(json.dumps(answer), flush=True)
