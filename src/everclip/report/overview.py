"""Write the page's overview of many runs, setting by setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from everclip.compare.groups import Setting, differing
from everclip.report import many, many_figures, map_figures, measures, provenance, run_figures, verdicts
from everclip.report.collect import Report
from everclip.report.figure import Figure
from everclip.report.tuning import tuning_table
from everclip.runs.predictions import learned_captions, no_confusions, predictions
from everclip.runs.read import Json, RunData
from everclip.runs.words import fact, several

_MAPPED = 2
"""Most settings with a map of class weights, which is nearly as large as all else about a setting."""
_ONE_OF_SEVERAL = " One run of several that have class weights; a report of another run alone shows its own."


def context(report: Report) -> Json:
    """Return all that the template shows of many runs."""
    settings = report.settings
    return {
        "status": report.status,
        "open": _open(report),
        "settings": [_setting(setting, mapped=k < _MAPPED) for k, setting in enumerate(settings)],
        "apart": differing(settings),
        "memory": _drawn(
            many_figures.against_memory(settings, metric, against)
            for against in ("images", "bytes")
            for metric in ("last", "average")
        ),
        "axes": many_figures.AXES,
        "runs": provenance.run_table(settings, report.states),
        "tuning": tuning_table(settings),
        "commands": [provenance.command(run) for setting in settings for run in setting.runs],
        "facts": provenance.setting_table(settings),
        "configs": provenance.configs(settings),
        "environments": provenance.environments(settings),
    }


def _open(report: Report) -> list[str]:
    """Return a line per unfinished run; waiting ones share a line."""
    named = [(name, state) for name, state in report.named_states if state.kind != "finished"]
    lines = [f"{name}: {state.words}" for name, state in named if state.kind != "waiting"]
    waiting = [name for name, state in named if state.kind == "waiting"]
    return [*lines, f"not started: {'; '.join(waiting)}"] if waiting else lines


def all_figures(shown: Json) -> list[tuple[str, Figure]]:
    """Return (file name without ending, figure) of every chart of the overview."""
    named = [(figure.key, figure) for figure in shown["memory"]]
    for setting in shown["settings"]:
        for part in setting["figures"].values():
            named += [(f"{setting['ident']}-{figure.key}", figure) for figure in part]
    return named


def _drawn(figures: Iterable[Figure | None]) -> list[Figure]:
    return [figure for figure in figures if figure is not None]


def _setting(setting: Setting, mapped: bool) -> Json:
    finished = [run for run in setting.runs if run.finished]
    classified = [run for run in finished if not learned_captions(run)]
    known = [found for run in classified if (found := predictions(run)) is not None]
    whys = Counter(no_confusions(run) for run in finished)
    named = [(group.label, group.finished) for group in setting.every if group.finished]
    classes = many.class_table(setting)
    return {
        "name": setting.name,
        "ident": setting.ident,
        "facts": _facts(setting),
        "verdict": verdicts.verdict(setting),
        "notes": _notes(setting),
        "results": many.result_table(setting),
        "measures": (measured := measures.measure_table(setting)),
        "measured": measured and measures.words(measured),
        "figures": {
            "stages": _drawn([many_figures.stages(setting)]),
            "matrix": _drawn(map_figures.maps(setting, of) for of in ("accuracy", "forgetting")),
            "weights": _drawn(
                [_weights(setting) if mapped else None, many_figures.weight_entropies(setting)]
            ),
            "classes": _drawn([map_figures.old_images(named, setting.ident)]),
            "retention": many_figures.sure(many_figures.by_memory(setting), setting.ident),
            "training": _drawn([many_figures.loss_terms(setting), many_figures.gradient_norms(setting)]),
        },
        "classes": classes[0] if classes else None,
        "class_count": classes[1] if classes else 0,
        "confusions": many.confusion_table(setting),
        "no_confusions": "; ".join(f"{several(count, 'finished run')} {why}" for why, count in whys.items()),
        "no_predictions": len(classified) - len(known),
        "no_confidence": sum(found.confidence is None for found in known),
        "finished": len(finished),
        "retention": many.retention_table(setting) if finished else None,
        "cost": many.cost_table(setting) if finished else None,
        "order": _order(setting),
        "templates": setting.facts["templates"] or (),
    }


def _facts(setting: Setting) -> list[str]:
    """Return the facts of the setting in words, except unknown and usual ones."""
    usual = {"validation": "none", "smoke": False, "schema": 1}
    told = {key: value for key, value in setting.facts.items() if value not in (None, usual.get(key))}
    return [fact(key, value) for key, value in told.items()]


def _notes(setting: Setting) -> list[str]:
    """Return what a reader should know before trusting the means."""
    notes: list[str] = []
    measured = [run.zero_shot[-1] for run in setting.runs if run.zero_shot]
    if measured and max(measured) - min(measured) > 0.005:
        notes.append(
            f"Zero-shot differs between these runs, from {100 * min(measured):.1f} to"
            f" {100 * max(measured):.1f} %: their test images or weights differ."
        )
    if repeated := [run.name for group in setting.every for run in group.repeated]:
        notes.append(
            f"{_some(repeated)}: repetitions of a seed add no evidence and are left out of the means."
        )
    found: dict[str, list[str]] = {}
    for run in setting.runs:
        for note in run.notes:
            found.setdefault(note, []).append(run.name)
    return notes + [f"{_some(names)}: {note}" for note, names in found.items()]


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} runs" if len(names) > 3 else ", ".join(names)


def _weights(setting: Setting) -> Figure | None:
    """Return the class weights of the first seed in the group with the best last accuracy."""
    rivals = [group for group in setting.every if not group.reference]
    groups = [group for group in rivals if any(run.class_weights for run in group.shown)]
    best = max(groups, key=verdicts.last_mean, default=None)
    run = next((run for run in best.shown if run.class_weights), None) if best else None
    figure = run and run_figures.weights(run, setting.ident)
    if not (best and run and figure):
        return None
    others = len(groups) > 1 or len(best.shown) > 1
    caption = figure.caption + _ONE_OF_SEVERAL * others
    return replace(figure, title=f"{figure.title}: {run.name}", caption=caption)


def _order(setting: Setting) -> list[dict[str, Any]]:
    """Return each known order of classes, with its number of runs and the name of the first."""
    orders: dict[str, list[RunData]] = {}
    for run in setting.runs:
        if run.classes:
            orders.setdefault(repr(run.order), []).append(run)
    return [
        {"tasks": [task for task in first.order if task[1]], "runs": 1 + len(others), "first": first.name}
        for first, *others in orders.values()
    ]
