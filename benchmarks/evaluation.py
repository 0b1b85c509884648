"""What testing costs compared with the bare encoder, and what kept activations of the frozen trunk save.

    python -m benchmarks.evaluation [--model lite | --model ViT-B-32] [--rounds 5] [--images 256] [--batch 16]

One thread, the processor's seconds of the process, variants in turn within every round, medians of the rounds' ratios,
on the emoji pictures. ``lite`` computes at 96 px; any other name is open_clip's model with random weights at its own
size. Testing is compared with the encoder on ready-made batches of the same images; a step of ``tune=top:K`` on kept
activations with a plain loop: all weights, a caption of full length for each image, no decoding. Goals: testing at
least 0.95 times as fast as the bare encoder, and 5 times from the cache at top 2; a step 5 times (top 4) and 10 times
(top 2) as fast as the plain one. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.step import spent, weights
from everclip.config import load_config
from everclip.data.loader import Batch, Loader, Phase
from everclip.data.scenario import Task
from everclip.losses.contrastive import clip_loss
from everclip.methods.base.method import TextClassifier, to_device
from everclip.models.clip import Clip
from everclip.models.precision import attention
from everclip.models.tunings import tuning_of
from everclip.runs.resolve import resolve
from everclip.system.progress import Progress
from everclip.training import activation_cache
from everclip.training.evaluate import evaluate
from everclip.training.optim import Update
from everclip.training.plan import Plan
from everclip.training.restore import grow, load_model

TOPS = (4, 2, 1)
STEPS = 1 << 30


@dataclass(frozen=True, eq=False)
class Bench:
    """A model with some images of one task, as a run has them.

    Args:
        width: of the features.
    """

    plan: Plan
    clip: Clip
    loader: Loader
    task: Task
    width: int

    @classmethod
    def of(cls, folder: Path, images: int, *words: str) -> Bench:
        """The model that a config names, on ``images`` images, which share the first task's ten names."""
        fixed = (
            "device=cpu",
            "train.augment=none",
            "method=clip",
            "train.precision=fp32",
            "loader.workers=0",
        )
        plan = Plan.of(resolve(load_config([*fixed, *words])))
        clip = load_model(plan, plan.config.model)
        loader = activation_cache.loader(plan, clip, folder, Progress())
        first = plan.tasks[0]
        pool = sum((task.train for task in plan.tasks[1:]), first.train)
        chosen = pool.select(np.argsort(pool.labels, kind="stable")[:images])
        ten = replace(chosen, labels=np.resize(first.classes, len(chosen)))
        grow(plan, clip, first)
        loader.pixels.preload([ten])
        for _ in loader.plain(ten):  # decoded, or computed and kept
            pass
        with torch.no_grad():
            width = clip.encode_text(["a"]).shape[1]
        return cls(plan, clip, loader, Task(0, first.name, first.classes, ten, ten), width)

    def test(self) -> None:
        """Test as a run does after a task, without computing class embeddings."""
        weights = torch.nn.functional.normalize(torch.ones(len(self.task.classes), self.width), dim=1)
        evaluate(lambda _: TextClassifier(self.clip, weights), [self.task], self.loader)

    def batches(self) -> Iterator[Batch]:
        """Endless training batches."""
        current = np.ones(len(self.task.train), dtype=bool)
        return self.loader.batches(self.task.train, current, Phase(), 0, 0, STEPS)

    def stepping(self) -> Callable[[], object]:
        """A training step, as a run makes it, without its line in the log."""
        tuning_of(self.plan.config.tune).begin(self.clip)
        self.plan.method.begin_task(self.clip, self.task, self.task.train)
        update = Update(self.clip, self.plan.method, Phase(), self.plan.config.train, STEPS)
        batches, method, clip = self.batches(), self.plan.method, self.clip

        def step() -> None:
            batch = to_device(next(batches), clip.device)
            with attention(clip, "fp32"):
                features = method.encode(clip, batch, Phase())
                update.step(method.loss(features, batch, Phase()), "here", [])

        return step


def plain_loop(bench: Bench) -> Callable[[], object]:
    """A step of a plain loop around open_clip's model."""
    clip, model = bench.clip, bench.clip.model
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, weight_decay=0.0, fused=True)
    batches, names = bench.batches(), bench.plan.prompts.names
    tokenize: Any = clip._tokenizer  # pyright: ignore[reportPrivateUsage]

    def step() -> None:
        batch = next(batches)
        tokens = tokenize([f"a photo of a {names[label]}." for label in batch.labels.tolist()])
        image = model.encode_image(clip.normalise(batch.images), normalize=True)
        text = model.encode_text(tokens, normalize=True)
        optimizer.zero_grad()
        clip_loss(image, text, clip.logit_scale.exp()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def ratios(
    base: Callable[[], object], others: dict[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """How many times as fast as ``base`` each is: the median over rounds; a first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in others}
    for number in range(rounds + 1):
        whole = spent(base)
        for name, work in others.items():
            ratio = whole / spent(work)
            if number:
                found[name].append(ratio)
    return {name: median(values) for name, values in found.items()}


def testing(spec: list[str], images: int, rounds: int, scratch: Path) -> dict[str, float]:
    """Testing over the bare encoder, without and with kept activations."""
    plain = Bench.of(scratch, images, *spec, "cache.trunk=off")
    cached = Bench.of(scratch, images, *spec, "tune=top:2")
    with torch.inference_mode():
        ready = [plain.clip.normalise(batch.images) for batch in plain.loader.plain(plain.task.test)]

    @torch.inference_mode()
    def bare() -> None:
        for part in ready:
            plain.clip.model.encode_image(part)

    found = ratios(bare, {"testing": plain.test, "testing_cached_top2": cached.test}, rounds)
    for name, value in found.items():
        print(f"{name}: {value:.3f} of the bare encoder's images a second", flush=True)
    return found


def training(spec: list[str], images: int, batch: int, rounds: int, scratch: Path) -> dict[str, float]:
    """Steps on kept activations over those of a plain loop."""
    size = f"train.batch_size={batch}"
    base = plain_loop(Bench.of(scratch, images, *spec, size, "cache.trunk=off"))
    others: dict[str, Callable[[], object]] = {}
    for top in TOPS:
        others[f"step_top{top}"] = Bench.of(scratch, images, *spec, size, f"tune=top:{top}").stepping()
    found = ratios(base, others, rounds)
    for name, value in found.items():
        print(f"{name}: {value:.2f} times a plain loop's", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="lite")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        spec = []
        if arguments.model != "lite":
            spec = [f"model={weights(arguments.model, scratch / 'model')}"]
        found = testing(spec, arguments.images, arguments.rounds, scratch)
        found |= training(spec, arguments.images, arguments.batch, arguments.rounds, scratch)
    machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    print(json.dumps({key: round(value, 4) for key, value in found.items()} | machine | vars(arguments)))


if __name__ == "__main__":
    main()
