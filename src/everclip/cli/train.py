"""everclip train: learn tasks one after another."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from everclip.cli._output import print_json, print_lines, print_table

if TYPE_CHECKING:
    from everclip.config import Config
    from everclip.runs.run import Run
    from everclip.training.plan import Plan


def train(*tokens: str, dry_run: bool = False, smoke: bool = False, json: bool = False) -> None:
    """Learn tasks one after another; without arguments, run the offline default (minutes on a laptop).

    Args:
        tokens: A shipped config's name or a TOML file, then KEY=VALUE overrides.
        dry_run: Show the resolved config, tasks, memory, steps, minutes and disk; train nothing.
        smoke: A trial run within a minute: two tasks, few images, two steps each.
        json: Print results.json instead of the table.
    """
    from everclip.config import load_config

    # bad values are refused before torch is imported
    read = load_config([*tokens, *(["smoke=true"] if smoke else [])])
    from everclip.runs.resolve import resolve
    from everclip.runs.run import Run

    config = resolve(read)
    if dry_run:
        _show_plan(config, json)
        return
    open_here(config, lambda: Run.open(config), json)


def open_here(config: Config, make: Callable[[], Run], json: bool) -> None:
    """Train the run that ``make`` opens, in this process or in each process that torchrun has started."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        with make() as run:
            run_here(run, json)
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what goes wrong is said once, by us
    from everclip.distributed import launch
    from everclip.training import multiprocess

    with launch.joined(config.device), multiprocess.shared(config, make) as run:
        run_here(run, json)


def run_here(run: Run, json: bool) -> None:
    """Train an open run to its end, or report that it is finished; then print its results."""
    from everclip.notebook import complete
    from everclip.system.machine import keep_freed_memory

    if run.finished and run.writes:
        print(f"{run.path} is finished: nothing to do", file=sys.stderr)
    keep_freed_memory()
    results = complete(run)
    if not run.writes:
        return
    if json:
        print_json(results)
    else:
        _show_results(results, str(run.path))


def _show_results(results: dict[str, Any], where: str) -> None:
    """Print A_t beside zero-shot, then the summary, on stdout."""
    from everclip.runs.schema import beside_frozen
    from everclip.runs.words import headline, kept_words, noise, several

    title = f"{results['method']} on {results['data']} with {results['model']}"
    title += f", memory {results['memory_budget']}"
    if results.get("memory_per_class") is not None:
        title += f" ({results['memory_per_class']} per class)"
    frozen = results.get("frozen_features_after_stage")
    asked = results["zero_shot_after_stage"]
    rows = []
    for task, name in enumerate(results["tasks"]):
        accuracy = results["accuracy_after_stage"][task]
        cells = [name, f"{accuracy:.1%}"]
        if asked:
            cells += [f"{asked[task]:.1%}", f"{100 * (accuracy - asked[task]):+.1f}"]
        rows.append([*cells, *([f"{frozen[task]:.1%}"] if frozen else [])])
    columns = [*(["zero-shot", "gain"] if asked else []), *(["frozen features"] if frozen else [])]
    print_table(title, ["after", "accuracy", *columns], rows)
    forgetting = results["forgetting"]
    lines = [f"last {results['last']:.1%}   average {results['average']:.1%}"]
    if forgetting is not None:
        lines[0] += f"   forgetting {round(100 * forgetting, 1) + 0.0:.1f} points"
    if cross := results.get("cross_domain"):
        known = [key for key in ("transfer", "average", "last") if cross[key] is not None]
        lines.append("data sets, " + "   ".join(f"{key} {cross[key]:.1%}" for key in known))
    if results.get("any_time") is not None:
        lines.append(f"area under any-time accuracy {results['any_time']:.1%}")
    kept = kept_words(results["memory_bytes"], results.get("state_bytes", 0))
    lines.append(f"memory {kept}   {results['seconds']:.0f} s")
    if asked and results["method"] != "zero_shot":
        measured = results["last"], results["zero_shot"], sum(results.get("test_counts", ()))
        mood, head = headline(*measured)
        if mood != "better":
            lines.append(f"{head}. {noise(*measured)}" if mood == "level" else f"{head}.")
    if results["skipped_images"]:
        lines.append(f"skipped {several(len(results['skipped_images']), 'broken image')}: see run.log")
    if frozen:
        lines.append(beside_frozen(frozen[-1], results["last"]))
        if frozen[-1] > results["last"]:
            lines[-1] += f": {results['frozen_features_methods'][-1]} gets more right and trains nothing"
    print_lines([*lines, f"report: {where}/report.html"])


def _show_plan(config: Config, json: bool) -> None:
    """Show the plan of a run: config, tasks, memory, steps, kept activations, minutes and disk space."""
    from everclip.config.values import dump
    from everclip.runs.run import Run
    from everclip.training import pace, references
    from everclip.training.plan import Plan, check, check_names

    if config.out is not None:
        Run.open(config)  # refuses what training would refuse, and makes nothing
    plan = Plan.of(config)
    check_names(config)
    check(plan)
    lines = _tasks(plan)
    cache_bytes, kept = _cache(plan)
    found = pace.of_plan(plan)
    if json:
        shown = {"config": config.model_dump(mode="json"), "tasks": lines, "cache_bytes": cache_bytes}
        shown["frozen_features"] = references.wanted(config, plan.sizes())
        shown["minutes"] = None if found is None else round(found.seconds / 60, 2)
        shown["disk_bytes"] = None if found is None else round(found.disk)
        print_json(shown)
        return
    print_lines([*dump(config).split("\n"), f"data {plan.data.words()}"])
    keys = ("task", "classes", "train", "test", "steps", "memory")
    rows = [
        (
            *(str(line[key]) for key in keys),
            "all" if line["memory_per_class"] is None else str(line["memory_per_class"]),
            f"{line['memory_bytes'] / 1e3:.1f}",
        )
        for line in lines
    ]
    print_table("tasks (memory: exemplars kept after the task)", (*keys, "per class", "memory kB"), rows)
    takes = f"minutes and disk are not known for {config.model}" if found is None else found.words()
    steps = f"{sum(line['steps'] for line in lines)} optimizer steps in all, {takes}; nothing was trained"
    print_lines([*([kept] if kept else []), references.words(config, plan.sizes()), steps])


def _tasks(plan: Plan) -> list[dict[str, Any]]:
    """Return the tasks' numbers: images, steps and exemplars kept afterwards."""
    from everclip.data.scenario import seen
    from everclip.training import estimate

    memory = plan.empty_memory()
    works = estimate.stages(plan.config, plan.sizes())
    lines: list[dict[str, Any]] = []
    for task in plan.tasks:
        images = {"mixed": len(task.train) + len(memory.images()), "new": len(task.train)}
        images["memory"] = images["mixed"] - images["new"]
        steps = sum(plan.steps(phase, images[phase.data]) for phase in plan.method.learner(task).phases(task))
        # A first-session method knows only in training whether it goes on; the estimate counts what it holds out, too.
        steps = steps or int(works[task.index][0].steps)
        known = len(seen(plan.tasks[: task.index + 1]))
        memory.update(task.train, known)
        lines.append(
            {
                "task": task.name,
                "classes": len(task.classes),
                "train": len(task.train),
                "test": len(task.test),
                "steps": steps,
                "memory": len(memory.images()),
                "memory_per_class": memory.per_class(known),
                "memory_bytes": memory.images().nbytes(),
            }
        )
    return lines


def _cache(plan: Plan) -> tuple[int | None, str]:
    """Return the bytes of activations that a run would keep (None if unknown here), and a line about them, if any."""
    from everclip.models import weights
    from everclip.training import activation_cache

    model = plan.config.model
    if activation_cache.blocks_above(plan.config, plan.method) is None:
        return 0, ""
    if not weights.are_here(model):
        return None, f"the size of kept activations is not known: {model} has no weights on this machine"
    size = activation_cache.forecast(plan)
    return (0, "") if size is None else (size.nbytes, size.words())
