"""everclip tune: choose settings on held-out training images of the first tasks."""

from __future__ import annotations

import sys
from pathlib import Path

from everclip.cli._options import Json
from everclip.cli._output import print_json


def tune(*tokens: str, trials: int | None = None, json: Json = False) -> None:
    """Choose settings on held-out training images of the first tasks; the test set is never read.

    Args:
        tokens: A shipped config's name or a TOML file, then KEY=VALUE; a key with several comma-separated values is
            searched, one key after another. Without such a key, the learning rates of the trained parts are searched:
            both towers, and the head if the method has one.
        trials: Search rates, epochs and the method's own constants, except those set by KEY=VALUE, in this many trained
            runs; a grid grows while its best value lies at an edge.
    """
    from everclip.config import load_config
    from everclip.errors import UserError, check_range
    from everclip.notebook import trained
    from everclip.runs.resolve import resolve
    from everclip.runs.run import default_path
    from everclip.sweep import tune as tuning
    from everclip.system.machine import keep_freed_memory

    check_range("--trials", trials, 1, 1_000_000)
    fixed, _ = tuning.split(tokens)
    config = resolve(load_config(fixed))
    if config.method.name == "zero_shot":
        raise UserError("zero_shot trains nothing, so there is nothing to tune: use another method")
    out = Path(config.out).expanduser() if config.out else default_path(config, "tune")
    keep_freed_memory()
    words = [token for token in tokens if not token.startswith("out=")]
    choice = tuning.tune(words, out, trained, lambda line: print(line, file=sys.stderr), trials)
    if json:
        found = {"values": choice.values, "tuned_on": choice.config.tuned_on, "tried": choice.tried}
        print_json(found)
        return
    print("chosen: " + " ".join(f"{key}={value}" for key, value in choice.values.items()))
    print(f"everclip train {out}/tuned.toml")
