"""The page that ``benchmarks.methods`` writes."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.jobs import Json, machines
from benchmarks.table_page import WITHDRAWN, cells, difference, paragraph, rows, spread

Results = Mapping[str, Json]
NAMES = {
    "caltech50": "caltech50, class-incremental, 5 tasks of 10 classes",
    "pacs": "part of PACS, domain-incremental, 4 domains of 7 classes",
}


CLAIMS = {"der_expand": "last", "memo": "last", "foster": "last"}
"""What a term is meant to raise: accuracy on both tasks together, where it is not that on the old one."""


def page(tuned: Results, results: Results) -> str:
    """The whole page as Markdown."""
    terms = {name: run for name, run in results.items() if name.startswith("term-")}
    found = cells({name: run for name, run in results.items() if name not in terms})
    lines = ["# All methods", "", *paragraph(WITHDRAWN), *_about(results)]
    for setting, title in NAMES.items():
        own = {key[1:]: runs for key, runs in found.items() if key[0] == setting}
        lines += [f"## {title}", "", *_setting(own), *_winners(own)]
    lines += ["## With and without the defining term", "", *_terms(terms)]
    lines += ["## Rates chosen", "", *_rates(tuned)]
    return "\n".join(lines)


def _about(results: Results) -> list[str]:
    hours = sum(run["cpu_seconds"] for run in results.values()) / 3600
    return paragraph(
        f"""`EVERCLIP_DATA=... python -m benchmarks.methods` (two jobs side by side, one thread each, on
        {machines(results)}; {len(results)} trainings, {hours:.1f} processor hours). Model `lite` at 96
        px, fp32, two epochs a task, batches of at most 32, shift and flip; every method at its default
        options and at its own rate (der_expand, memo, foster and icarl need exemplars where new classes
        come, so they have no row without), chosen for each memory on 40 % of the training images of the
        first two tasks of caltech50 and used on PACS too. The logit scale
        of `lite` was chosen on caltech50. In % and points; one seed, two for gcl, gdro,
        icarl and ranpac (mean ± half their distance). *Kept* is the accuracy of the encoder after the
        last task, as a zero-shot classifier of one picture of each of ImageNet's 1,000 classes, over
        that of the pretrained one. *State* is all that a method keeps beside the model, exemplars
        aside."""
    )


def _setting(own: Mapping[tuple[str, int], list[Json]]) -> list[str]:
    start = own.get(("zero_shot", 0), [])
    before = start[0]["held_out_accuracy"] if start else None
    body = []
    for (method, level), runs in own.items():
        kept = [run["held_out_accuracy"] / before for run in runs] if before else []
        body.append(
            [
                method,
                str(level),
                spread([run["last"] for run in runs]),
                spread([run["average"] for run in runs]),
                spread([run["forgetting"] for run in runs]),
                spread(kept),
                f"{runs[0]['state_bytes'] / 1e6:.2f}",
                spread([run["cpu_seconds"] for run in runs], 1, 0),
            ]
        )
    body.sort(key=lambda row: (int(row[1]), -float(row[2].split(" ")[0])))
    head = ["method", "exemplars a class", "last", "average", "forgetting", "kept", "state MB", "CPU s"]
    return rows(head, body)


def _winners(own: Mapping[tuple[str, int], list[Json]]) -> list[str]:
    """Who is best with each memory, references aside, and by how much over the second."""
    lines = []
    for level in sorted({level for _, level in own}):
        # what keeps no exemplars competes with any memory
        ranked = sorted(
            (
                (m, n, sum(run["last"] for run in runs) / len(runs))
                for (m, n), runs in own.items()
                if n <= level
            ),
            key=lambda row: -row[2],
        )
        ranked = [row for row in ranked if row[0] not in ("joint", "zero_shot")]
        if len(ranked) > 1:
            (first, _, best), (second, _, next_) = ranked[:2]
            lines.append(
                f"- With at most {level} exemplars a class **{first}** ends best, at {100 * best:.1f} %;"
                f" {second} follows at {100 * next_:.1f} %."
            )
    return [*lines, ""]


def _terms(terms: Results) -> list[str]:
    body = []
    for method in sorted({name.split("-")[1] for name in terms}):
        on, off = terms.get(f"term-{method}-on"), terms.get(f"term-{method}-off")
        if on and off:
            old = [100 * run["matrix"][1][0] for run in (on, off)]
            new = [100 * run["matrix"][1][1] for run in (on, off)]
            cells_ = [f"{value:.1f}" for value in (old[0], old[1], new[0], new[1])]
            rise = old[0] - old[1] if method not in CLAIMS else 100 * (on["last"] - off["last"])
            answer = "yes" if rise > 0.05 else "no"
            body.append([method, *cells_, difference([on], [off]), answer])
    text = paragraph(
        """caltech50 in two tasks of 25 classes, seed 0, with five exemplars a class where the method uses any:
        accuracy on the first and on the second task after both. *Change* is that in last accuracy which the
        term makes, with its 95 % interval over classes; where that holds 0 one run cannot tell. The last column
        says whether the direction is the one that the method's paper claims: a higher accuracy on the old task,
        for der_expand, memo and foster on both."""
    )
    head = ["method", "old, with", "old, without", "new, with", "new, without", "change", "as claimed"]
    note = paragraph(
        """Most terms change little here, whichever way: five exemplars a class and two epochs from a pretrained
        model leave little to forget. EWC's published strength of 1,000 does nothing at rates of 1e-5 to 1e-4,
        where weights move too little for it (without a memory its row is that of finetune); zscl keeps the
        encoder's zero-shot accuracy (*kept* above) and pays for it on the new classes. wise_ft at the rates tuned
        for it does not: it keeps no more of it than finetune at its own."""
    )
    return text + rows(head, body) + note


def _rates(tuned: Results) -> list[str]:
    body = []
    for name, found in tuned.items():
        _, method, level = name.split("-")
        tried = found["tried"]["train.lr"].items()
        scores = ", ".join(f"{v}: {'–' if s is None else f'{100 * s:.1f}'}" for v, s in tried)
        body.append([method, level[1:], found["values"]["train.lr"], scores])
    return rows(["method", "exemplars a class", "lr", "accuracy after the second task for each lr"], body)
