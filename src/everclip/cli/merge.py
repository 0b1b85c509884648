"""everclip merge: average the weights of a learned model and another one."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from everclip.cli._options import Json, Out
from everclip.cli._output import print_json, print_lines, print_table
from everclip.errors import UserError

AUTO = "auto"


def merge(
    run: str,
    *,
    other: Annotated[str, Parameter(name="--with")],
    alpha: str = AUTO,
    validate: tuple[str, ...] = (),
    out: Out,
    json: Json = False,
) -> None:
    """Average a learned model's weights with its initial weights or another run's (WiSE-FT).

    Args:
        run: A run directory or a model folder whose text tower classifies.
        other: zero-shot: the initial model; or a run, a model folder or a model of the same architecture.
        alpha: Fraction of the learned weights, 0..1; auto: the best of 0, 0.1, ..., 1 on --validate.
        validate: Images in CLASS folders, not the run's own, to choose alpha on; may be repeated, and the mean accuracy
            decides. If --alpha is a number, their accuracy is only reported.
    """
    from everclip.inference import merge
    from everclip.inference.model import save
    from everclip.system import checkpoint
    from everclip.system.atomic import new_folder
    from everclip.training.disk import on_disk

    share = _share(alpha)
    if share is None and not validate:
        raise UserError("--alpha auto needs held-out images: give --validate DATA, or a number to --alpha")
    with on_disk(out), new_folder(out) as folder:
        models = merge.pair(run, other)
        sets = merge.held_out(models, validate)
        shares = merge.GRID if share is None else (share,)
        tried = [merge.try_share(models, value, sets) for value in shares] if sets else []
        chosen = merge.best(tried).alpha if share is None else share
        checkpoint.fill(folder, lambda where: save(models.mixed(chosen), where))
    result = {
        "with": models.other_name,
        "alpha": chosen,
        "classes": len(models.learned.labels),
        "data": [found.name for found, _ in sets],
        "tried": [{"alpha": one.alpha, "accuracy": list(one.accuracies), "mean": one.mean} for one in tried],
        "model": run,
        "out": out,
        "chosen": share is None,
    }
    if json:
        print_json(result)
    else:
        _show(result)


def _share(alpha: str) -> float | None:
    if alpha == AUTO:
        return None
    try:
        share = float(alpha)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f'--alpha is "{alpha}": use a number from 0 to 1, or auto')
    return share


def _show(result: dict[str, Any]) -> None:
    several = len(result["data"]) > 1
    rows = []
    for row in result["tried"]:
        cells = [*row["accuracy"], *([row["mean"]] if several else [])]
        mark = " *" if result["chosen"] and row["alpha"] == result["alpha"] else ""
        rows.append((f"{row['alpha']:.1f}{mark}", *(f"{cell:.1%}" for cell in cells)))
    if rows:
        head = ("alpha", *result["data"], *(["mean"] if several else []))
        print_table("accuracy on held-out images", head, rows)
    how = "chosen" if result["chosen"] else "given"
    shares = f"{result['alpha']:.2g} of {result['model']} and {1 - result['alpha']:.2g} of {result['with']}"
    print_lines([f"{result['out']}: {shares} ({how}), {result['classes']} classes"])
