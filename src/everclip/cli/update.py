"""everclip update: teach a deployed model new classes and new domains, unless old classes suffer."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from everclip.cli._options import ImageSize
from everclip.cli._output import print_json, print_lines, print_table
from everclip.errors import RunError, UserError
from everclip.system.text import printable

if TYPE_CHECKING:
    from everclip.data.images import Dataset
    from everclip.updating.core import Options, Outcome
    from everclip.updating.state import State

LOST = 3
"""Exit code of a version that loses more than is allowed."""


@Parameter(name="*")
@dataclass(frozen=True)
class Knobs:
    """Options whose defaults suit most users.

    Args:
        max_drop: Points of accuracy that old classes may lose on --test; a larger loss means exit code 3 and no model.
        unmeasured: Continue even if --test has no image of an old class, so that --max-drop checks nothing.
        exemplars: Exemplars per class to keep for later updates; a quarter of them, at least one of two, serve
            only as check images (2 of 10).
        method: auto (the best on check images), or the candidate to use regardless: nothing, means, ridge,
            layers, trained or interpolated.
        same: "NEW=OLD": the name NEW in --add, --test or --memory means the old class OLD.
        seed: Seed of training.
        index: keep: allow only candidates that leave embeddings valid. adapt: save a map from new queries to
            --vectors. rebuild: embed the content of --vectors again, into a new folder beside it.
        vectors: A folder that everclip embed wrote with DEPLOYED.
    """

    max_drop: float = 1.0
    unmeasured: bool = False
    exemplars: int = 10
    method: str = "auto"
    same: tuple[str, ...] = ()
    image_size: ImageSize = None
    seed: int = 0
    index: str | None = None
    vectors: str | None = None


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
        deployed: A version (written by update), a run, a model folder, or any model, with --classes or with no classes.
        add: A folder of CLASS folders (only train/ is learned if there are train/ and test/), or SOURCE:ARGUMENT
            (everclip datasets). New classes, or a new domain of old ones.
        test: Held-out images of old and new classes, in the same form, for the verdict and --max-drop; required without
            --dry-run. If it is the same folder as --add: its test part, or a fifth of each class.
        memory: Images of old classes, if DEPLOYED has none of its own; at most 100 per class are used.
        classes: A file with class names, one per line, for a model that has learned nothing.
        out: The model folder to write, new or empty; required without --dry-run.
        dry_run: Show the plan with its time and memory; train nothing.
        json: Print the verdict as JSON.
    """
    if not dry_run and out is None:
        raise UserError("everclip update needs --out: use -o FOLDER, new or empty")
    if not dry_run and test is None:
        raise UserError("everclip update needs --test: give held-out images of old and new classes")
    from everclip.inference.predict import read_classes
    from everclip.system.outputs import check_new

    if dry_run and out is not None:
        check_new(out)
    chosen = knobs or Knobs()
    given = (None if classes is None else read_classes(classes), memory, chosen.image_size)
    return _run(deployed, (add, test), given, chosen, None if dry_run else out, json)


def _run(
    deployed: str,
    data: tuple[str, str | None],
    given: tuple[list[str] | None, str | None, int | None],
    knobs: Knobs,
    out: str | None,
    json: bool,
) -> int:
    """Update, or if ``out`` is None show the plan."""
    from everclip.inference.learned import is_version
    from everclip.system.atomic import claimed
    from everclip.system.outputs import check_new
    from everclip.system.progress import Progress
    from everclip.system.signals import leaving
    from everclip.training.disk import check_free
    from everclip.updating.core import Options
    from everclip.updating.core import update as run
    from everclip.updating.cost import least
    from everclip.updating.index import asked, to_rebuild
    from everclip.updating.start import begin, load_both

    index = asked(knobs.index, knobs.vectors, knobs.method)
    chosen = (knobs.max_drop, pairs(knobs.same, "--same", "NEW=OLD"), knobs.seed, knobs.unmeasured, index)
    options = Options(knobs.method, knobs.exemplars, *chosen)
    options.check()
    path = None if out is None else check_new(out)
    with nullcontext() if path is None else claimed(path):
        state = begin(deployed, *given, options.same, _say)
        found, held = load_both(*data, state, _say)
        again = to_rebuild(index, state.version + 1)
        if path is None:
            _dry(state, found, held, options, json)
            return 0
        needed = least(state.known, state.frozen)
        check_free(
            path, needed, "the version writes at least", "make room, or give -o FOLDER on another disk"
        )
        unwritten = f"{deployed} is unchanged and {out} was not written; the same command starts again"
        with leaving(lambda: f"{out} is written" if is_version(path) else unwritten):
            with Progress() as progress:
                outcome = run(state, found, held, options, progress)
            code = _written(outcome, state, path, json)
    if again is not None and outcome.verdict["index"]["rebuilt"]:
        command = again.command(str(path))
        left = f"{path} is written, but {again.out} is incomplete: {command} continues it"
        with leaving(left), Progress() as progress:
            try:
                report = again.run(outcome.state.encoder, str(path), progress)
            except (RunError, UserError) as error:
                raise RunError(f"{left} ({error})") from error
        print(
            f"{again.out}: {len(report.vectors):,} embeddings by {path}, {len(report.skipped)} not readable;"
            f" {again.vectors.path} is unchanged",
            file=sys.stderr,
        )
    return code


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)


def pairs(words: Iterable[str], given: str, form: str, known: Iterable[str] = ()) -> dict[str, str]:
    """Map class names to class names.

    Args:
        known: names that may stand first, which may have a = in them; the longest that fits is meant.

    Raises:
        UserError: a word that has not the ``form``, or a name that stands first twice.
    """
    names, found = sorted(known, key=len, reverse=True), dict[str, str]()
    for word in words:
        first = next((name for name in names if word.startswith(f"{name}=")), word.partition("=")[0])
        second = word[len(first) + 1 :].strip()
        first = first.strip()
        if not (first and second):
            raise UserError(f'{given} is "{word}": use {form}, two class names')
        if first in found:
            raise UserError(
                f'{given} has "{first}" twice, as "{found[first]}" and as "{second}": give one of them'
            )
        found[first] = second
    return found


def _written(outcome: Outcome, state: State, path: Path, json: bool) -> int:
    """Write the version, or only the verdict if old classes suffer; print the outcome."""
    from everclip.runs.words import share
    from everclip.updating.verdict import lines

    verdict = outcome.verdict
    named = "" if verdict["facts"]["summed"] == 1 else "; --memory DATA adds images of the old classes"
    code = settled(outcome, state, path, named)
    if json:
        print_json(verdict)
        return code
    rows = [
        (
            f"{row['name']}{' *' if row['chosen'] else ''}",
            *(share(row[key]) for key in ("accuracy", "old", "new")),
            f"{row['seconds']:.1f}",
        )
        for row in verdict["candidates"]
    ]
    title = f"{verdict['checks']['images']} check images, means over classes in %"
    print_table(title, ("candidate", "all", "old", "new", "seconds"), rows)
    print_lines(lines(verdict))
    return code


def settled(outcome: Outcome, state: State, path: Path, hint: str = "") -> int:
    """Write a version, or if it lost too much its verdict alone; say so, and return the exit code.

    Args:
        hint: what might help it to pass.
    """
    from everclip.training.disk import on_disk
    from everclip.updating.gate import lost
    from everclip.updating.versions import settle

    verdict, gate = outcome.verdict, outcome.verdict["gate"]
    with on_disk(path):
        settle(outcome, state, path)
    if outcome.passed:
        print(f"{path}: version {verdict['version']}; {path / 'verdict.html'}", file=sys.stderr)
        return 0
    print(
        f"gate not met: {gate['words']}, {lost(gate['drop'])} points lost and {gate['max_drop']:g} allowed;"
        f" no model was written, see {path}.verdict.html{hint}",
        file=sys.stderr,
    )
    return LOST


def _dry(state: State, found: Dataset, held: Dataset | None, options: Options, json: bool) -> None:
    from everclip.updating.core import checked
    from everclip.updating.cost import predict

    options = replace(options, unmeasured=options.unmeasured or held is None)
    _, pictures, facts, decision, _ = checked(state, found, held, options)
    cost = predict(state.frozen, pictures, decision, 0 if held is None else len(held.whole()))
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
    counted = f"{facts.old} classes known, {facts.new} new, {facts.again} with new images"
    print_lines([f"{counted}; {facts.images} images to learn", *decision.why])
    trained = f"{decision.method}, {decision.steps} steps" if decision.train else "nothing"
    print(f"trained: {trained}; preferred: {decision.prefer}, unless another one is better on check images")
    print(
        f"about {cost.seconds / 60:.1f} minutes ({cost.training_seconds / 60:.1f} of training),"
        f" {cost.memory / 1e9:.1f} GB of memory, {cost.disk / 1e6:.0f} MB of disk; nothing was trained"
    )
