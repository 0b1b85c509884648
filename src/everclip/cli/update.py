"""everclip update: teach a deployed model new classes and new domains, if the old ones do not suffer."""

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
    """Options whose defaults suit most."""

    max_drop: Annotated[
        float,
        Parameter(help="Points that old classes may lose on --test; more is exit code 3, and no model."),
    ] = 1.0
    unmeasured: Annotated[
        bool,
        Parameter(help="Go on where --test has no image of an old class, so that max-drop says nothing."),
    ] = False
    exemplars: Annotated[
        int,
        Parameter(help="Exemplars per class to keep for later updates, a quarter of them for checks alone."),
    ] = 10
    method: Annotated[
        str,
        Parameter(
            help="auto, or what to keep whatever checks say: nothing, means, ridge, layers, trained or"
            " interpolated."
        ),
    ] = "auto"
    same: Annotated[
        tuple[str, ...], Parameter(help='"NEW=OLD": a new class that is an old one under another name.')
    ] = ()
    image_size: Annotated[
        int | None, Parameter(help="Side in pixels, for a model that has learned nothing.")
    ] = None
    seed: Annotated[int, Parameter(help="Of training.")] = 0
    index: Annotated[
        str | None,
        Parameter(
            help="keep: only what leaves embeddings valid. adapt: save a map of new queries to --vectors. rebuild:"
            " embed again what is in --vectors, into a folder beside it."
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
    """Teach a deployed model new classes or new domains; write the next version if the old classes keep up.

    Args:
        deployed: A version (what update wrote), a run, a model folder, or any model; that one with --classes, or
            without any.
        add: A folder of CLASS folders, of which train/ is learned where there is train/ and test/; or SOURCE:ARGUMENT
            (everclip datasets). New classes, or a new domain of old ones.
        test: Held-out images of old and new classes, given likewise: what the verdict and --max-drop are measured on.
            The same folder as --add: its test part, or a fifth of each class.
        memory: Images of old classes, where DEPLOYED has none of its own.
        classes: A file with the classes that a model which has learned nothing is used for, one per line.
        out: The model folder to write, new or empty.
        dry_run: Say what would be done, how long it takes and how much memory, and train nothing.
        json: Print the verdict as JSON.
    """
    if not dry_run:
        _complete(out, test)
    from everclip.inference.predict import read_classes

    chosen = knobs or Knobs()
    given = (memory, None if classes is None else read_classes(classes), chosen.image_size)
    return _run(deployed, (add, test), given, chosen, None if dry_run else out, json)


def _complete(out: str | None, test: str | None) -> None:
    """Refuse a command that could not end. Raises UserError."""
    if out is None:
        raise UserError("everclip update needs --out: write -o FOLDER, a new or an empty one")
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
    """Update, or where ``out`` is None say what would be done."""
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
            whole = f"{deployed} is as it was and {out} was not written; the same command begins again"
            if isinstance(error, Stopped):
                raise Stopped(error.signal, f"{error.cause}: {whole}") from None
            raise KeyboardInterrupt(f"interrupted: {whole}") from None
    if again is not None and outcome.verdict["index"]["rebuilt"]:
        _rebuild(outcome.state, path, again)
    return code


def _rebuild(after: State, version: Path, again: Rebuild) -> None:
    """Embed again what the index is made of, by the version just written."""
    from everclip.system.progress import Progress
    from everclip.system.signals import Stopped

    try:
        with Progress() as progress:
            report = again.run(after.encoder, str(version), progress)
    except (KeyboardInterrupt, Stopped) as error:
        words = f"{version} is written, and {again.out} is not whole: {again.command(str(version))} goes on"
        if isinstance(error, Stopped):
            raise Stopped(error.signal, f"{error.cause}: {words}") from None
        raise KeyboardInterrupt(f"interrupted: {words}") from None
    print(
        f"{again.out}: {len(report.vectors):,} embeddings by {version}, {len(report.skipped)} could not be read;"
        f" {again.vectors.path} is as it was",
        file=sys.stderr,
    )


def _pairs(same: tuple[str, ...]) -> dict[str, str]:
    """New names to old ones. Raises UserError for what is no pair."""
    found = {}
    for pair in same:
        new, equals, old = (part.strip() for part in pair.partition("="))
        if not (new and equals and old):
            raise UserError(f'--same is "{pair}": write "NEW=OLD", two class names')
        found[new] = old
    return found


def _written(outcome: Outcome, state: State, path: Path, json: bool) -> int:
    """Write the version, or only the verdict where the old classes suffer; say how it went."""
    from everclip.system.atomic import write_atomic
    from everclip.training.disk import on_disk
    from everclip.updating.verdict import files
    from everclip.updating.versions import write_next

    verdict = outcome.verdict
    with on_disk(path):
        if outcome.passed:
            write_next(outcome, state, path)
        else:
            for name, text in files(verdict).items():
                write_atomic(path.with_name(f"{path.name}.{name}"), text)
    if json:
        print_json(verdict)
    else:
        _show(verdict)
    if outcome.passed:
        print(f"{path}: version {verdict['version']}; {path / 'verdict.html'}", file=sys.stderr)
        return 0
    gate = verdict["gate"]
    named = "" if verdict["facts"]["summed"] == 1 else "; --memory DATA gives images of the old classes"
    print(
        f"gate not met: {gate['words']}, {gate['drop']:.1f} points lost and {gate['max_drop']:g} allowed;"
        f" no model was written, {path}.verdict.html says more{named}",
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
        f"{facts.old} classes known, {facts.new} new, {facts.again} with new images; {facts.images} images to learn"
    )
    for line in decision.why:
        print(line)
    trained = f"{decision.method}, {decision.steps} steps" if decision.train else "nothing"
    print(f"trained: {trained}; preferred: {decision.prefer}, unless another one is better on check images")
    print(
        f"about {cost.seconds / 60:.1f} minutes ({cost.training_seconds / 60:.1f} of training),"
        f" {cost.memory / 1e9:.1f} GB of memory, {cost.disk / 1e6:.0f} MB of disk; nothing was trained"
    )
