"""The page of benchmarks.rivals."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.jobs import Json, apart, machines

CLEAR = 1.0
"""Points from which a difference counts."""


def page(results: dict[str, Json]) -> str:
    """Return the results as a page."""
    from benchmarks.rivals import ADAPTERS, LEVELS, METHODS, PLAIN, SEEDS, SETTINGS, TERMS, TRIALS, levels

    cells = sum(len(levels(method)) for method in METHODS) * len(SETTINGS) * len(SEEDS)
    done = sum(not key.startswith("term-") for key in results)
    lines = [
        "# Rivals on CLIP, 2023 to 2026",
        "",
        "`EVERCLIP_DATA=... python -m benchmarks.rivals`: `lite` at 96 px; caltech50 in five tasks and CIFAR-100",
        "(50 training and 20 test pictures per class) in ten. Two class orders, one number for each (– is not run",
        "yet). *Kept* is images and state of the method, besides the model. Runs shared a busy machine, so their",
        "seconds say little. The logit scale of `lite` was chosen on caltech50.",
        "",
        f"- **Tuning.** Every trained method searched its rates and constants in at most {TRIALS} trials at each",
        "  memory size (`ranpac` has two values to try), on held-out training images of the first two tasks. `slda`",
        "  chooses on the images of each run. A search scores about a hundred held-out images, so its choice is",
        "  itself uncertain: two searches of `rapf` with its published theta chose 5 and 10 epochs, which end at",
        "  76.9 and 86.5 on caltech50 without a memory. On caltech50 all values that `layup` tried were tied.",
        "- **Missing.** `coda_prompt`, `moe_adapters`, `mg_clip` and `spu` need blocks that `lite` lacks. Runs of",
        "  `multilayer_lda` with three stages, the earlier default, are not shown; they have to be repeated with",
        "  six.",
        f"- **Views.** `multilayer_lda` reads each picture and its mirror image; `{PLAIN}` and the other closed",
        f"  forms read the picture alone. Methods that train parts beside frozen towers ({', '.join(ADAPTERS)}) read",
        "  four fixed views of each image, whose features all runs share: their seconds leave out the tower if",
        "  another run had computed them.",
        "- **Not as published.** `engine` has no descriptions of classes here, which its paper takes from a",
        "  language model. `rapf` has theta = 1.3, which pairs the nearest twentieth of the classes; the published",
        "  0.55 pairs no classes of `lite`. `proof` and `clap4clip` were published with exemplars, and for text",
        "  towers that classify better: zero-shot, `lite` has 42.8 on caltech50 and 22.7 on CIFAR-100. Without",
        "  exemplars they learn among the classes of the task here, as a softmax over absent classes pushes these",
        "  down. `rail` and `rail-dual` are the two published forms of one method.",
        "",
        f"Machine: {machines(results) or 'none yet'}.",
        "",
        f"{done} of {cells} runs are done.",
    ]
    for setting in SETTINGS:
        for level in LEVELS:
            lines += ["", f"## {setting}, {f'{level} exemplars per class' if level else 'no memory'}", ""]
            lines += [*_table(results, setting, level, [one for one in METHODS if level in levels(one)])]
    lines += [
        "",
        "## Ablation: the defining term of each method",
        "",
        "Two tasks of caltech50, first order, the largest memory that the method takes. Each paper says that its",
        f"term helps; a difference of less than {CLEAR} points, {CLEAR * 9.28:.0f} of 928 test images, does not show",
        "it. `proof` has no option to switch off its fusion; `fecam`, `layup` and `rail` train nothing.",
        "",
        "| method | without it | last with, % | last without, % | does the term help? |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for method, (_, said) in TERMS.items():
        on, off = (results.get(f"term-{method}-{way}") for way in ("on", "off"))
        cells = (method, said, _percent(on, "last"), _percent(off, "last"), _shown(on, off))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _shown(on: Json | None, off: Json | None) -> str:
    """Return whether a term has the effect that its paper claims."""
    if on is None or off is None:
        return "–"
    apart = 100 * (on["last"] - off["last"])
    return "yes" if apart >= CLEAR else "no, it harms" if apart <= -CLEAR else "not shown"


def _table(results: dict[str, Json], setting: str, level: int, methods: Sequence[str]) -> list[str]:
    """Return the rows of a setting at a memory size, and who is ahead."""
    from benchmarks.rivals import METHODS, levels, plug_in

    lines = [
        "| method | last, % | average, % | forgetting, points | ImageNet, % | kept, MB | CPU, s |",
        "| --- | --- | --- | --- | --- | ---: | ---: |",
    ]
    for method in methods:
        runs = _runs(results, setting, method, level)
        known = [run for run in runs if run]
        columns = [
            " ".join(_percent(run, key) for run in runs)
            for key in ("last", "average", "forgetting", "held_out_accuracy")
        ]
        state = (
            f"{fmean(run['memory_bytes'] + run['state_bytes'] for run in known) / 1e6:.1f}" if known else "–"
        )
        timed = [run["cpu_seconds"] for run in known if "resumed" not in run]
        seconds = f"{fmean(timed):.0f}" if timed else "–"
        lines.append(f"| {method} | {' | '.join(columns)} | {state} | {seconds} |")
    means = {method: _mean(results, setting, method, level) for method in methods}
    if None not in means.values():
        if level:  # a memory makes no difference to the others
            means |= {one: _mean(results, setting, one, level) for one in METHODS if levels(one) == (0,)}
        known = sorted(
            ((mean, method) for method, mean in means.items() if mean is not None), key=lambda one: -one[0]
        )
        first = ", ".join(f"{method} {100 * mean:.1f}" for mean, method in known[:3])
        said = ", including methods that keep no exemplars" if level else ""
        best = known[0][1]
        other = next(method for _, method in known if plug_in(method) != plug_in(best))
        ahead = apart(*(list(filter(None, _runs(results, setting, one, level))) for one in (best, other)))
        lines += [
            "",
            f"Best by the mean of `last` over both orders{said}: {first}.",
            f"{best} is {ahead} points ahead of {other} (95 % bootstrap interval over classes).",
        ]
    return lines


def _runs(results: dict[str, Json], setting: str, method: str, level: int) -> list[Json | None]:
    """Return the runs of a cell, None for a missing one; for a method that keeps no exemplars, those without a memory
    serve every memory size."""
    from benchmarks.rivals import SEEDS, levels

    level = level if level in levels(method) else 0
    return [results.get(f"{setting}-{method}-m{level}-s{seed}") for seed in SEEDS]


def _mean(results: dict[str, Json], setting: str, method: str, level: int) -> float | None:
    """Return the mean last accuracy over the orders; None before all of them are there."""
    runs = _runs(results, setting, method, level)
    known = [run["last"] for run in runs if run]
    return fmean(known) if len(known) == len(runs) else None


def _percent(run: Json | None, key: str) -> str:
    return "–" if run is None or run.get(key) is None else f"{100 * run[key]:.1f}"
