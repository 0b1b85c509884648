"""Faults in small runs, caused on purpose: kills, signals, full disks, damaged checkpoints and inputs.

    python -m benchmarks.reliability                      # all of it; goes on where it stopped
    python -m benchmarks.reliability --only R1,R5 --minutes 4
    python -m benchmarks.reliability --attacks            # every way in with every attack, again; takes minutes
    python -m benchmarks.reliability --page               # only write the page anew

Items and what they draw depend only on the seed and their number. Each is appended to ``reliability.jsonl`` when it is
done; ``reliability.md`` is written from that at the end. What an item does is defined in ``tests/faults/goals.py``, and
for the goals "kill COMMAND" and "pair COMMAND" in ``commits.py`` and ``pairs.py`` beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from tests.attacks.table import table as attacks
from tests.faults.bench import FACTORS, LEAST, Bench
from tests.faults.commands import COMMANDS
from tests.faults.commits import COMMITS
from tests.faults.forks import ROOT, Forks
from tests.faults.goals import GOALS
from tests.faults.pairs import PAIRS

from benchmarks.jobs import machine
from everclip.training.disk import GIB, check_room

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "reliability.jsonl", HERE / "reliability.md"

Row = dict[str, Any]
Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]
ATTACKED = HERE / "attacks.json"

_FOLDERS = re.compile(r"(?<![\w./])(?:/[^/\s\"'()\[\],:]+)+/")
"""The folders of an absolute path; an address has two slashes."""

_OF_COMMANDS = """
**Kills.** Each command is killed with -9 before and after each of its calls that change the disk (rename, replace,
link, unlink, mkdir, rmdir, rmtree, exchange, fsync, sync, opening a new file). Some are killed at a random call, and
again when they are repeated. An item passes if each model answers as before or as after the command; the target is
absent or complete; the repeated command has the result of an undisturbed one, or says in one line that it is done; no
other file of everclip is left; and the user's own files there, under names such as NAME.tmp, are unchanged.

**Pairs.** A second command starts while the first is held before each of these calls, or soon after it has begun. A
pair passes if the result is that of a command that reports success, and the other says in one line why it failed.

**Intruders.** A folder or file of the user appears at the target while the command works. It has to stay.
"""


def rows(path: Path, seed: int) -> list[Row]:
    """The items done with this seed; a torn last line does not count."""
    if not path.exists():
        return []
    found: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in found if row["seed"] == seed]


def pending(done: Sequence[Row], wanted: Sequence[str]) -> list[tuple[str, int]]:
    """Items still to do, in an order in which all goals advance alike; a goal of one long item comes half way."""
    there = {(row["goal"], row["index"]) for row in done}
    items = [
        (name, index) for name in wanted for index in range(GOALS[name].count) if (name, index) not in there
    ]
    return sorted(items, key=lambda item: (item[1] + 0.5) / GOALS[item[0]].count)


def portable(row: Row, places: Sequence[Path]) -> Row:
    """A row without the folders of this machine that messages and tracebacks contain."""

    def bare(value: Any) -> Any:
        if isinstance(value, str):
            for place in places:
                value = value.replace(f"{place}/", "")
            return _FOLDERS.sub("", value)
        if isinstance(value, dict):
            return {key: bare(inner) for key, inner in value.items()}
        return [bare(inner) for inner in value] if isinstance(value, list) else value

    return bare(row)


def campaign(folder: Path, seed: int, wanted: Sequence[str], minutes: float) -> None:
    """Do what is pending, for so many minutes at most."""
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, GIB)
    end = time.monotonic() + 60 * minutes
    with Forks() as forks, RESULTS.open("a", encoding="utf-8") as file:
        bench = Bench.at(folder, forks, seed)
        for name, index in pending(rows(RESULTS, seed), wanted):
            if time.monotonic() > end:
                break
            start = time.monotonic()
            row = {"goal": name, "index": index, "seed": seed} | GOALS[name].item(bench, index)
            row = portable(row, (folder, ROOT))
            row["seconds"] = round(time.monotonic() - start, 2)
            file.write(json.dumps(row) + "\n")  # ASCII: names may be no UTF-8
            file.flush()
            print(
                f"{name} {index}: {'ok' if row['ok'] else 'FAILED ' + row['why']}",
                file=sys.stderr,
                flush=True,
            )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table's lines."""
    every = [head, ["---"] * len(head), *rows]
    return ["|" + "|".join("---" if cell == "---" else f" {cell} " for cell in row) + "|" for row in every]


def page(done: Sequence[Row], seed: int, tables: Sequence[Table] = ()) -> str:
    """The results as a page.

    Args:
        tables: more tables, each with a heading and a header row.
    """
    lines = [
        "# Reliability",
        "",
        "`python -m benchmarks.reliability` injects faults into small runs (a CLIP of random weights under 1 MB, six"
        f" classes, two tasks) and checks the outcome; seed {seed}. A stopped run counts as resumed if its weights, its"
        " method's state, its memory, results, log (without times) and predictions have the hash of an uninterrupted"
        " run. `reliability.jsonl` has the rows, and `tests/faults/goals.py` says what each item does.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}, torch {torch.__version__}, Python {sys.version.split()[0]}.",
        "",
        "| goal | an item | passed | done | of |",
        "|---|---|---|---|---|",
    ]
    for name in [name for name in GOALS if name not in COMMITS | PAIRS]:
        mine = [row for row in done if row["goal"] == name]
        passed = sum(row["ok"] for row in mine)
        lines.append(f"| {name} | {GOALS[name].title} | {passed} | {len(mine)} | {GOALS[name].count} |")
    lines += ["", *_numbers(done), "", *_commands(done)]
    for heading, head, rows in tables:
        lines += ["", f"## {heading}", "", *table(head, rows)]
    failed = [row for row in done if not row["ok"]]
    lines += ["", "## Failed", ""] if failed else []
    lines += [f"- {row['goal']} {row['index']}: {' '.join(row['why'].split())[:300]}" for row in failed]
    wrapped = (
        line if line.startswith("|") else fill(line, 118, subsequent_indent=_indent(line)) for line in lines
    )
    return "\n".join(wrapped).rstrip() + "\n"


def _commands(done: Sequence[Row]) -> list[str]:
    """How commands fared that were killed at each of their calls, and two at once on one target."""
    told = [line for part in _OF_COMMANDS.split("\n\n") for line in (" ".join(part.split()), "")]
    lines = ["## Commands that write", "", *told]
    rows: list[list[object]] = []
    for name in COMMANDS:
        kills, pairs = ([row for row in done if row["goal"] == f"{kind} {name}"] for kind in ("kill", "pair"))
        every = COMMITS[f"kill {name}"].count + PAIRS[f"pair {name}"].count
        cells: list[object] = [name, max((row["calls"] for row in kills), default=0)]
        for mine, what in ((kills, "points"), (pairs, "pairs"), (pairs, "appeared")):
            tried = sum(row[what] for row in mine)
            cells.append(f"{tried - sum(row['lost'].get(what, 0) for row in mine)} of {tried}")
        rows.append([*cells, f"{len(kills) + len(pairs)} of {every}"])
    head = ("command", "calls", "kills passed", "pairs passed", "intruders passed", "items done")
    return lines + table(head, rows)


def attack() -> None:
    """Try every way in with every attack, and keep for each pair what came out."""
    with tempfile.TemporaryDirectory() as folder:
        rows = attacks(Path(folder))
    kept = [[row.met, row.way, row.attack, row.code, row.ran] for row in rows]
    ATTACKED.write_text("[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n", encoding="utf-8")


def attacked() -> Table:
    """Commands against outcomes."""
    tried: dict[tuple[str, str], list[list[Any]]] = {}
    for row in json.loads(ATTACKED.read_text(encoding="utf-8")):
        tried.setdefault((row[0], row[1]), []).append(row)
    lines: list[list[object]] = []
    for (met, way), rows in tried.items():
        codes = Counter("raised" if row[3] is None else f"exit {row[3]}" for row in rows)
        shown = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
        lines.append([met, way, len(rows), sum(row[4] for row in rows), shown])
    return "Attacks, by command", ("malicious input", "command", "attacks", "ran", "ended with"), lines


def _indent(line: str) -> str:
    return "  " if line.startswith("- ") else ""


def _numbers(done: Sequence[Row]) -> list[str]:
    """What is counted besides passed and failed."""
    by_goal = {name: [row for row in done if row["goal"] == name] for name in GOALS}
    killed = [row.get("killed", []) for row in by_goal["R1"]]
    twice, once = (sum(sum(times) >= least for times in killed) for least in (2, 1))
    lines = [
        f"- R1: {sum(map(sum, killed))} processes were killed: {once} of {len(killed)} runs, {twice} of them twice. The"
        " others finished before the kill."
    ]
    counts = {name: Counter(row.get(name) for row in by_goal["R1"]) for name in FACTORS}
    least = {name: min(counts[name][value] for value in values) for name, values in FACTORS.items()}
    grid = ", ".join(f"{name} ({len(set(values))})" for name, values in FACTORS.items())
    lines.append(
        f"- R1 draws from the grid of {grid}. Each value has had at least {min(least.values())} items (goal: {LEAST})."
    )
    flips, cuts = (sum(row[key] for row in by_goal["R3"]) for key in ("flips", "cuts"))
    used = sum(len(row["unnoticed"]) for row in by_goal["R3"])
    lines.append(f"- R3: {flips} flipped bits and {cuts} truncations, {used} of them not noticed.")
    signals = Counter(row["signal"] for row in by_goal["R5"])
    lines.append(
        f"- R5: {', '.join(f'{count} {name}' for name, count in sorted(signals.items())) or 'none'}."
    )
    shared = [row for row in by_goal["R6"] if row.get("killed")]
    lines.append(
        f"- R6: {len(shared)} processes were killed; the other process ended after at most"
        f" {max((row['seconds_to_end'] for row in shared), default=0)} s."
    )
    decoded = [sum(row.get(key, 0) for row in by_goal["R8"]) for key in ("images", "left_out")]
    slowest = max((row.get("slowest_seconds", 0) for row in by_goal["R8"]), default=0)
    lines.append(f"- R8: {decoded[1]} of {decoded[0]} pictures were left out; the slowest took {slowest} s.")
    tried = [sum(row.get(key, 0) for row in by_goal["R9"]) for key in ("configs", "refused")]
    lines.append(f"- R9: {tried[1]} of {tried[0]} configs were refused; the others have every key as given.")
    for row in by_goal["R12"]:
        lines.append(
            f"- R12: resident memory grew by {row.get('growth', 0):.1%} between a tenth of the stages and the last, to"
            f" {row.get('at_end', 0) / 1e9:.2f} GB while the page was drawn; open files {row.get('open_files')}."
        )
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scratch", type=Path, default=Path("runs/reliability"), help="work goes here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(GOALS), help="goals, after commas")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after about so long")
    parser.add_argument("--attacks", action="store_true", help="try all attacks again")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if not arguments.page:
        campaign(arguments.scratch.resolve(), arguments.seed, arguments.only.split(","), arguments.minutes)
    if arguments.attacks or not (ATTACKED.exists() or arguments.page):
        attack()
    tables = [attacked()] if ATTACKED.exists() else []
    PAGE.write_text(page(rows(RESULTS, arguments.seed), arguments.seed, tables), encoding="utf-8")


if __name__ == "__main__":
    main()
