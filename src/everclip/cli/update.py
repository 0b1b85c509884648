"""everclip update: teach a deployed model new classes and new domains, unless old classes suffer."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from everclip.cli._output import print_json
from everclip.errors import UserError
from everclip.system.text import printable

if TYPE_CHECKING:
    from everclip.updating.core import Options, Outcome
    from everclip.updating.index import Rebuild
    from everclip.updating.state import State


@Parameter(name="*")
@dataclass(frozen=True)
class Knobs:
    """Options whose defaults suit most users."""

    max_drop: Annotated[
        float,
        Parameter(
            help="Percentage points that old classes may lose on --test; a larger loss means exit code 3"
            " and no model."
        ),
    ] = 1.0
    unmeasured: Annotated[
        bool,
        Parameter(
            help="Continue even if --test has no image of an old class, so that --max-drop checks nothing."
        ),
    ] = False
    exemplars: Annotated[
        int,
        Parameter(
            help="Exemplars per class to keep for later updates; a quarter of them serve only as check"
            " images."
        ),
    ] = 10
    method: Annotated[
        str,
        Parameter(
            help="auto (the best on check images), or the candidate to use regardless: nothing, means,"
            " ridge, layers, trained or interpolated."
        ),
    ] = "auto"
    same: Annotated[
        tuple[str, ...], Parameter(help='"NEW=OLD": a new class name that stands for an old class.')
    ] = ()
    image_size: Annotated[
        int | None, Parameter(help="Side in pixels, for a model that has learned nothing.")
    ] = None
    seed: Annotated[int, Parameter(help="Of training.")] = 0
    index: Annotated[
        str | None,
        Parameter(
            help="keep: allow only candidates that leave embeddings valid. adapt: save a map from new"
            " queries to --vectors. rebuild: embed the content of --vectors again, into a folder beside it."
        ),
    ] = None
    vectors: Annotated[str | None, Parameter(help="A folder that everclip embed wrote with DEPLOYED.")] = None


def update(
    deployed: str,
    *,
    add: str,
    test: str | None = None,
    memory: str | None = None,
    classes: str | None = None,
    out: Annotated[str | None, Parameter(name=["--out", "-o"])] = None,
    knobs: Knobs | None = None,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Teach a deployed model new classes or new domains; write the next version unless old classes suffer.

    Args:
        deployed: A version (written by update), a run, a model folder, or any model, with --classes or as one without
            classes.
        add: A folder of CLASS folders (only train/ is learned if there are train/ and test/), or SOURCE:ARGUMENT
            (everclip datasets). New classes, or a new domain of old ones.
        test: Held-out images of old and new classes, given likewise, for the verdict and --max-drop. If it is the same
            folder as --add: its test part, or a fifth of each class.
        memory: Images of old classes, if DEPLOYED has none of its own.
        classes: A file with class names, one per line, for a model that has learned nothing.
        out: The model folder to write, new or empty.
        dry_run: Show the plan with its time and memory; train nothing.
        json: Print the verdict as JSON.
    """
    if not dry_run:
        _complete(out, test)
    from everclip.inference.predict import read_classes

    chosen = knobs or Knobs()
    given = (memory, None if classes is None else read_classes(classes), chosen.image_size)
    return _run(deployed, (add, test), given, chosen, None if dry_run else out, json)


def _complete(out: str | None, test: str | None) -> None:
    """Refuse an incomplete command. Raises UserError."""
    if out is None:
        raise UserError("everclip update needs --out: use -o FOLDER, a new or an empty one")
    if test is None:
        raise UserError(
            "everclip update needs --test: held-out images of old and new classes, in CLASS folders"
        )


def _run(
    deployed: str,
    data: tuple[str, str | None],
    given: tuple[Any, ...],
    knobs: Knobs,
    out: str | None,
    json: bool,
) -> int:
    """Update, or if ``out`` is None show the plan."""
    from everclip.system.atomic import check_new, claimed
    from everclip.system.progress import Progress
    from everclip.system.signals import Stopped
    from everclip.updating.core import Options
    from everclip.updating.core import update as run
    from everclip.updating.index import asked, to_rebuild
    from everclip.updating.start import begin, load_both

    index = asked(knobs.index, knobs.vectors, knobs.method)
    chosen = (knobs.max_drop, _pairs(knobs.same), knobs.seed, knobs.unmeasured, index)
    options = Options(knobs.method, knobs.exemplars, *chosen)
    options.check()
    path = None if out is None else check_new(out)
    with nullcontext() if path is None else claimed(path):
        memory, classes, image_size = given
        state = begin(deployed, classes, memory, image_size)
        found, held = load_both(*data, state, lambda line: print(printable(line), file=sys.stderr))
        again = to_rebuild(index, state.version + 1)
        if path is None:
            _dry(state, found, 0 if held is None else len(held.whole()), options, json)
            return 0
        try:
            with Progress() as progress:
                outcome = run(state, found, held, options, progress)
            code = _written(outcome, state, path, json)
        except (KeyboardInterrupt, Stopped) as error:
            whole = f"{deployed} is unchanged and {out} was not written; the same command starts again"
            if isinstance(error, Stopped):
                raise Stopped(error.signal, f"{error.cause}: {whole}") from None
            raise KeyboardInterrupt(f"interrupted: {whole}") from None
    if again is not None and outcome.verdict["index"]["rebuilt"]:
        _rebuild(outcome.state, path, again)
    return code


def _rebuild(after: State, version: Path, again: Rebuild) -> None:
    """Embed the content of the index again with the version just written."""
    from everclip.system.progress import Progress
    from everclip.system.signals import Stopped

    try:
        with Progress() as progress:
            report = again.run(after.encoder, str(version), progress)
    except (KeyboardInterrupt, Stopped) as error:
        words = (
            f"{version} is written, but {again.out} is incomplete: {again.command(str(version))} continues it"
        )
        if isinstance(error, Stopped):
            raise Stopped(error.signal, f"{error.cause}: {words}") from None
        raise KeyboardInterrupt(f"interrupted: {words}") from None
    print(
        f"{again.out}: {len(report.vectors):,} embeddings by {version}, {len(report.skipped)} could not be"
        f" read; {again.vectors.path} is unchanged",
        file=sys.stderr,
    )


def _pairs(same: tuple[str, ...]) -> dict[str, str]:
    """Map new names to old ones. Raises UserError for anything that is no pair."""
    found = {}
    for pair in same:
        new, equals, old = (part.strip() for part in pair.partition("="))
        if not (new and equals and old):
            raise UserError(f'--same is "{pair}": use "NEW=OLD", two class names')
        found[new] = old
    return found


def _written(outcome: Outcome, state: State, path: Path, json: bool) -> int:
    """Write the version, or only the verdict if old classes suffer; print the outcome."""
    from everclip.training.disk import on_disk
    from everclip.updating.versions import settle

    verdict = outcome.verdict
    with on_disk(path):
        settle(outcome, state, path)
    if json:
        print_json(verdict)
    else:
        _show(verdict)
    if outcome.passed:
        print(f"{path}: version {verdict['version']}; {path / 'verdict.html'}", file=sys.stderr)
        return 0
    gate = verdict["gate"]
    named = "" if verdict["facts"]["summed"] == 1 else "; --memory DATA adds images of the old classes"
    print(
        f"gate not met: {gate['words']}, {gate['drop']:.1f} points lost and {gate['max_drop']:g} allowed;"
        f" no model was written, see {path}.verdict.html{named}",
        file=sys.stderr,
    )
    return 3


def _show(verdict: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from everclip.updating.verdict import lines, share

    title = f"{verdict['checks']['images']} check images, means over classes in %"
    table = Table(title=title, title_justify="left")
    table.add_column("candidate")
    for name in ("all", "old", "new", "seconds"):
        table.add_column(name, justify="right")
    for row in verdict["candidates"]:
        mark = " *" if row["chosen"] else ""
        numbers = (share(row[key]) for key in ("accuracy", "old", "new"))
        table.add_row(row["name"] + mark, *numbers, f"{row['seconds']:.1f}")
    console = Console(soft_wrap=True)
    console.print(table)
    for line in lines(verdict):
        console.print(line, markup=False, highlight=False)


def _dry(state: State, found: Any, tested: int, options: Options, json: bool) -> None:
    from everclip.updating.core import prepare
    from everclip.updating.cost import predict

    pictures, facts, decision = prepare(state, found, options)
    cost = predict(state.frozen, pictures, decision, tested)
    result = {
        "facts": vars(facts),
        "prefer": decision.prefer,
        "train": decision.train,
        "rule": list(decision.why),
        "minutes": round(cost.seconds / 60, 2),
        "seconds": round(cost.seconds, 2),
        "training_seconds": round(cost.training_seconds, 2),
        "memory_bytes": cost.memory,
        "disk_bytes": cost.disk,
    }
    if json:
        print_json(result)
        return
    print(
        f"{facts.old} classes known, {facts.new} new, {facts.again} with new images; {facts.images} images"
        f" to learn"
    )
    for line in decision.why:
        print(line)
    trained = f"{decision.method}, {decision.steps} steps" if decision.train else "nothing"
    print(f"trained: {trained}; preferred: {decision.prefer}, unless another one is better on check images")
    print(
        f"about {cost.seconds / 60:.1f} minutes ({cost.training_seconds / 60:.1f} of training),"
        f" {cost.memory / 1e9:.1f} GB of memory, {cost.disk / 1e6:.0f} MB of disk; nothing was trained"
    )
