"""everclip rollback: restore the previous version."""

from __future__ import annotations


def rollback(version: str) -> None:
    """Undo an update: restore the previous version and keep the undone one beside it.

    Args:
        version: A folder that everclip update wrote. It becomes VERSION.undone (or VERSION.undone-2, ...).
    """
    from everclip.training.disk import on_disk
    from everclip.updating.versions import rollback as undo

    with on_disk(version):
        folder, undone = undo(version)
    print(f"{folder.name} is the previous version again; the undone one is beside it, in {undone.name}")
