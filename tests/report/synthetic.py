"""A run directory like the ones that training writes, made of simulated predictions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NASTY = (
    "<script>alert(1)</script>",
    "quote \" and ' apostrophe",
    "слон/elephant & co",
    "日本の猫",
    "قطة",
    "</title><img src=x onerror=alert(2)>",
    "=SUM(A1), comma",
    "{{ 7 * 7 }}",
)
TASKS, PER_TASK, IMAGES = 10, 10, 30
_COMMON = (
    "fox",
    "owl",
    "crab",
    "pear",
    "kiwi",
    "drum",
    "kite",
    "sled",
    "boat",
    "tram",
    "bus",
    "fern",
    "oak",
    "rose",
)


def class_names(count: int = TASKS * PER_TASK) -> list[str]:
    """``count`` distinct names, the nasty ones spread among plain ones."""
    plain = [f"{word} {n}" if n else word for n in range(count // len(_COMMON) + 1) for word in _COMMON]
    names = plain[:count]
    for k, name in enumerate(NASTY):
        names[(7 * k + 3) % count] = name
    return names


def write_run(
    folder: Path,
    *,
    tasks: int = TASKS,
    per_task: int = PER_TASK,
    steps: int = 300,
    gain: float = 0.16,
    seed: int = 0,
    method: str = "gdro",
    memory: int = 200,
    data: str = "imagefolder:photos",
    options: str = "margin = 0.3\n",
    answers: bool = False,
) -> dict[str, Any]:
    """Write a finished run; ``gain`` < 0 makes training harmful. Returns its results.

    Args:
        options: lines of the config's [method] table.
        answers: write predictions.npz, too, and what it takes to read it.
    """
    rng = np.random.default_rng(seed)
    names = class_names(tasks * per_task)
    # zero-shot accuracy of each class when all are candidates: the same for every seed
    base = np.random.default_rng(7).beta(5, 3, tasks * per_task)
    right = _simulate(rng, base, tasks, per_task, gain)  # [stage, class], -1 where not measured
    results = _results(names, base, right, tasks, per_task)
    results |= {
        "method": method,
        "memory_budget": memory,
        "memory_bytes": 1_234_567 * memory // 200,
        "seed": seed,
        "data": data,
    }
    if answers:
        results["class_labels"] = np.random.default_rng(1).permutation(len(names)).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "environment.json").write_text(
        json.dumps(
            {"python": "3.12.1", "versions": {"torch": "2.10", "open_clip": "3.3"}, "seeds": {"order": 7}}
        )
    )
    (folder / "config.toml").write_text(
        f'data = "{data}"\nmodel = "lite"\nseed = {seed}\nout = "runs/x"\n\n[method]\nname = "{method}"\n'
        f'{options}\n[scenario]\nkind = "class-incremental"\ntasks = 10\n\n[memory]\nbudget = {memory}\n'
    )
    if answers:
        np.savez_compressed(folder / "predictions.npz", **_answers(rng, results, per_task))  # pyright: ignore[reportArgumentType]
    events = _events(rng, results, names, tasks, per_task, steps)
    lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return results


def _simulate(
    rng: np.random.Generator, base: NDArray[np.float64], tasks: int, per_task: int, gain: float
) -> NDArray[np.float64]:
    right = np.full((tasks, tasks * per_task), -1.0)
    for t in range(tasks):
        for c in range(min(t + 2, tasks) * per_task):
            age = t - c // per_task
            p = base[c] + (gain * 0.9**age if age >= 0 else 0) - 0.015 * age + 0.12 * (1 - t / tasks)
            right[t, c] = rng.binomial(IMAGES, np.clip(p, 0.02, 0.98)) / IMAGES
    return right


def _results(
    names: list[str], base: NDArray[np.float64], right: NDArray[np.float64], tasks: int, per_task: int
) -> dict[str, Any]:
    by_task = right.reshape(tasks, tasks, per_task).mean(2)
    matrix = [[float(v) if v >= 0 else None for v in row] for row in by_task]
    curve = [float(by_task[t, : t + 1].mean()) for t in range(tasks)]
    base = np.round(base * IMAGES) / IMAGES
    zero_curve = [float(base[: (t + 1) * per_task].mean() + 0.12 * (1 - t / tasks)) for t in range(tasks - 1)]
    zero_curve.append(float(base.mean()))
    lost = [by_task[i : tasks - 1, i].max() - by_task[-1, i] for i in range(tasks - 1)]
    since = [by_task[-1, i] - by_task[i, i] for i in range(tasks - 1)]
    return {
        "schema": 1, "method": "gdro", "model": "lite", "data": "imagefolder:photos",
        "scenario": "class-incremental",
        "seed": 0, "memory_budget": 200, "memory_bytes": 1_234_567, "classes": names,
        "templates": ["{}", "a photo of a {}."], "train_templates": ["a photo of a {}."], "image_size": 96,
        "accuracy_after_stage": curve, "last": curve[-1], "average": float(np.mean(curve)),
        "matrix": matrix,
        "forgetting": float(np.mean(lost)) if lost else None,
        "backward_transfer": float(np.mean(since)) if since else None,
        "forward_transfer": 0.012 if lost else None, "zero_shot": float(base.mean()),
        "images_per_second": 118.4, "peak_memory_bytes": 1_400_000_000, "seconds": 412.7,
        "trainable_parameters": 3_371_009, "state_bytes": 20_480, "optimizer_steps": 300,
        "samples_seen": 19_200,
        "tuned_on": None, "forked_from": None, "tasks": [f"task {t + 1}" for t in range(tasks)],
        "test_counts": [per_task * IMAGES] * tasks,
        "zero_shot_after_stage": zero_curve,
        "zero_shot_per_task": [float(v) for v in base.reshape(tasks, per_task).mean(1)],
        "skipped_images": ["photos/broken <b>.jpg", "photos/bad\udcff.png"],
        "per_class": [
            {"class": name, "task": c // per_task, "n": IMAGES, "zero_shot": float(base[c]),
             "after_learning": float(right[c // per_task, c]), "last": float(right[-1, c])}
            for c, name in enumerate(names)
        ],
        "finished": "2026-02-03T10:11:12", "everclip": "0.1.0",
    }  # fmt: skip


def _answers(rng: np.random.Generator, results: dict[str, Any], per_task: int) -> dict[str, NDArray[Any]]:
    """Predictions that agree with the last accuracy of each class; wrong ones lean to later tasks."""
    labels = np.array(results["class_labels"])
    truth = np.repeat(np.arange(len(labels)), IMAGES)
    right = np.concatenate([np.arange(IMAGES) < round(row["last"] * IMAGES) for row in results["per_class"]])
    wrong = rng.integers(np.minimum(truth // per_task * per_task, len(labels) - 2), len(labels))
    wrong = np.where(wrong == truth, (truth + 1) % len(labels), wrong)
    first = labels[np.where(right, truth, wrong)]
    sure = np.clip(rng.beta(5, 2, len(truth)) + 0.15 * right, 0, 1)
    top = np.stack([first, *(rng.permutation(labels)[:1].repeat(len(first)) for _ in range(4))], axis=1)
    return {
        "id": np.arange(len(truth)), "label": labels[truth], "top": top,
        "margin": (0.2 * sure).astype(np.float32), "confidence": sure.astype(np.float32),
    }  # fmt: skip


def write_sweep(
    folder: Path, *, seeds: int = 5, tasks: int = TASKS, per_task: int = PER_TASK, steps: int = 300
) -> int:
    """Write a finished sweep of four methods, joint training and zero-shot with sweep.json; the number of its runs."""
    gains = {"clip": 0.04, "finetune": -0.05, "gcl": 0.12, "gdro": 0.16}
    cells: list[dict[str, str]] = []
    size: dict[str, Any] = {"tasks": tasks, "per_task": per_task, "steps": steps, "answers": True}
    for seed in range(seeds):
        for memory in (0, 500, 1000, 2000):
            for method, gain in gains.items():
                gain += 0.03 * math.log10(1 + memory)
                name = f"{method}_m{memory}_s{seed}"
                cells.append({"method": method, "memory.budget": str(memory), "seed": str(seed), "run": name})
                write_run(
                    folder / name, gain=gain, seed=seed, method=method, memory=memory, options="", **size
                )
        for method, gain in (("joint", 0.3), ("zero_shot", 0.0)):
            for memory in (0, 500):
                name = f"{method}_m{memory}_s{seed}"
                cells.append({"method": method, "memory.budget": str(memory), "seed": str(seed), "run": name})
                one: dict[str, Any] = size
                if method == "joint":
                    one = size | {"tasks": 1, "per_task": tasks * per_task}
                write_run(
                    folder / name, gain=gain, seed=seed, method=method, memory=memory, options="", **one
                )
    (folder / "sweep.json").write_text(json.dumps({"schema": 1, "command": [], "cells": cells, "failed": {}}))
    (folder / "logs").mkdir()
    return len(cells)


def _events(
    rng: np.random.Generator, results: dict[str, Any], names: list[str], tasks: int, per_task: int, steps: int
) -> list[dict[str, Any]]:
    plan = [
        {
            "name": f"task {t + 1}",
            "classes": names[t * per_task : (t + 1) * per_task],
            "train": 400,
            "test": per_task * IMAGES,
        }
        for t in range(tasks)
    ]
    events: list[dict[str, Any]] = [
        {"event": "start", "classes": names, "tasks": plan, "zero_shot": results["zero_shot_after_stage"]}
    ]
    each, log_weight = steps // tasks, np.zeros(len(names))
    for t in range(tasks):
        seen = names[: (t + 1) * per_task]
        pull = rng.normal(0, 1, len(seen))  # how hard each class is in this stage
        for step in range(each):
            at = t * each + step
            k = len(seen)
            log_weight[:k] = 0.97 * log_weight[:k] + 0.06 * pull + rng.normal(0, 0.02, k)
            weights = np.exp(log_weight[:k]) / np.exp(log_weight[:k]).sum()
            loss = {
                "gdro": float(1.4 * np.exp(-2 * step / each) + 0.2 + rng.normal(0, 0.05)),
                "anchor": 0.01 + 0.001 * step,
            }
            events.append(
                {
                    "event": "step", "stage": t, "phase": "train", "epoch": 0, "step": step,
                    "global_step": at,
                    "lr": 3e-4 * (1 - step / each), "loss": loss, "grad_norm": float(rng.gamma(3, 0.4)),
                    "images_per_second": 118.0,
                    "diagnostics": {
                        "log_u_mean": loss["gdro"] - 0.5, "log_u_max": loss["gdro"] + 1.5,
                        "weight_max": float(weights.max()),
                    },
                }
            )  # fmt: skip
            if step % math.ceil(each / 20) == 0:
                shares = {name: round(float(w), 6) for name, w in zip(seen, weights, strict=True)}
                events.append({"event": "class_weights", "stage": t, "global_step": at, "weights": shares})
                met = [c for c in range(k) if (c + step) % 7]  # the others had no image since the line before
                losses = {seen[c]: round(float(log_weight[c]) / 5, 6) for c in met}
                events.append({"event": "class_losses", "stage": t, "global_step": at, "losses": losses})
        events.append(
            {
                "event": "stage", "stage": t, "accuracy_after_stage": results["accuracy_after_stage"][t],
                "row": [v for v in results["matrix"][t] if v is not None], "seconds": 41.27,
                "memory": {"count": 200, "bytes": 1_234_567, "per_class": 200 // len(seen)},
            }
        )  # fmt: skip
    return [*events, {"event": "end", "seconds": 412.7}]
