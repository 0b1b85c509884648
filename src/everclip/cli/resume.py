"""everclip resume: continue a stopped run."""

from __future__ import annotations

from pathlib import Path


def resume(run: str, *, changed_data: bool = False, json: bool = False) -> None:
    """Continue a stopped run from its last checkpoint.

    Args:
        run: The run's directory. A finished run is left as it is. `checkpoint.every` says how often a run is saved; a
            signal to stop (Ctrl-C, SIGTERM, SIGUSR1, SIGHUP) saves it at the next step.
        changed_data: Continue even if the images or their classes have changed since the run began; results.json notes
            it.
        json: Print results.json instead of the table.
    """
    from everclip.cli.train import open_here
    from everclip.runs.run import Run

    path = Path(run).expanduser()
    config = Run.read_config(path)
    open_here(config, lambda: Run(path, config, changed_data), json)
