"""everclip resume: go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path


def resume(run: str, *, json: bool = False) -> None:
    """Continue a stopped run from its last finished task.

    Examples
    --------
    everclip resume runs/20260101-120000_emoji_gdro_m200_s0

    Parameters
    ----------
    run
        The run's directory. A finished run is left alone.
    json
        Print results.json instead of the table.
    """
    from everclip.cli.train import run_here
    from everclip.run import Run

    path = Path(run)
    with Run(path, Run.read_config(path)) as opened:
        run_here(opened, json)
