"""everclip forget: remove classes or images that must not be kept."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from everclip.cli._output import print_json


def forget(
    version: str,
    *,
    classes: Annotated[tuple[str, ...], Parameter(name="--class")] = (),
    images: tuple[str, ...] = (),
    out: Annotated[str, Parameter(name=["--out", "-o"])],
    json: bool = False,
) -> None:
    """Remove classes or images from a version's memory, sums and class list; weights are not unlearned.

    Args:
        version: A folder that everclip update wrote. It stays as it is: remove it once the new one is in use.
        classes: A class's name; may be repeated.
        images: A file or folder of learned images, matched by content. Give all images of a removed class to make its
            removal exact.
        out: The model folder to write, new or empty. It keeps no previous version.
        json: Print what was removed as JSON.
    """
    from everclip.inference.learned import check_version
    from everclip.runs.words import several
    from everclip.system.atomic import claimed
    from everclip.system.outputs import check_new
    from everclip.training.disk import on_disk
    from everclip.updating.forgetting import forget as without
    from everclip.updating.start import begin
    from everclip.updating.state import write

    path = check_new(out)
    check_version(version)
    with on_disk(path), claimed(path):
        made = without(begin(version), classes, images)
        write(made.state, path, {}, None)
    report = made.report
    if json:
        print_json(report)
        return
    what = [several(report["classes"], "class")] if report["classes"] else []
    what += [several(report["images"], "image")] if report["images"] else []
    print(f"{path}: without {' and '.join(what)}; update.json says so, and manifest.json vouches for it")
    if report["second_moments_made_anew"]:
        print("second moments were re-estimated, as not all images of the class were given")
    if report["weights_trained_on_them"]:
        print("trained weights are not unlearned: to remove what they saw, train again without it")
    for key in ("calibration", "unknown"):
        print(report[key]["words"])
    print(f"{version} still has all of it: remove it and its copies")
