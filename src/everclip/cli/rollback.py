"""everclip rollback: go back to the version before."""

from __future__ import annotations


def rollback(version: str) -> None:
    """Put the version before an update in its place; what is undone stays beside it.

    Args:
        version: A folder that everclip update wrote. It becomes VERSION.undone (or VERSION.undone-2, ...).
    """
    from everclip.training.disk import on_disk
    from everclip.updating.versions import rollback as undo

    with on_disk(version):
        folder, undone = undo(version)
    print(f"{folder.name} is the version before; what it was is in {undone}")
