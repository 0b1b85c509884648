"""everclip rollback: the version before."""

from __future__ import annotations

from pathlib import Path


def rollback(version: str) -> None:
    """Put the version before an update in its place; what is undone stays beside it.

    Examples
    --------
    everclip rollback v2

    Parameters
    ----------
    version
        A folder that everclip update wrote. It becomes VERSION.undone.
    """
    from everclip.updating import versions

    folder = Path(version).expanduser()
    with versions.on_disk(folder):
        undone = versions.rollback(folder)
    print(f"{folder} is the version before; what it was is in {undone}")
