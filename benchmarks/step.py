"""A training step compared with that of a plain loop: how many times faster, and how near to what the machine can do.

    python -m benchmarks.step [--model ViT-B-32] [--rounds 7] [--threads 1]
    python -m benchmarks.step --model lite

The plain loop is in this file. It trains as open_clip and FLYP do: a caption for each image, padded to the tower's full
length, CLIP's loss, AdamW as torch builds it, fp32. The others are this package's own step with method=clip: full
fine-tuning, the last 4 or 2 blocks above a trunk whose activations are kept, and low-rank updates of rank 8.

Batches of 16 pictures of 10 classes, random weights (nothing is downloaded; `lite` has its own), the processor's
seconds of the process, variants in turn within every round; a ratio is the median over the rounds. The share is the
rate of a step's operations (torch's flop counter) over that of a product of two 2048 x 2048 matrices in the same
precision; a convolutional tower has none, as the counter takes grouped convolutions for whole ones. The last line is
one JSON object with the ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, normalize
from torch.utils.flop_counter import FlopCounterMode

from everclip.config import load_config
from everclip.data.loader import Batch
from everclip.models.towers import is_convolutional
from everclip.models.tunings import tuning_of
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.system.signals import Stop
from everclip.training import activation_cache
from everclip.training.checkpointer import Checkpointer
from everclip.training.context import Context
from everclip.training.optim import Update
from everclip.training.plan import Plan
from everclip.training.recorder import Recorder
from everclip.training.restore import grow, load_model
from everclip.training.step import step

NAMES = ("cat", "dog", "tiger", "sea lion", "oak tree", "sports car", "bus", "lamp", "rocket", "running shoe")
BATCH, EACH, SIDE, STEPS = 16, 8, 256, 100_000
TUNES = {"full": "full", "top4": "top:4", "top2": "top:2", "lora": "lora:8"}
VARIANTS = ("full_fp32", "full_bf16", "top4_fp32", "top2_fp32", "top4_bf16", "top2_bf16", "lora_fp32")


def pictures(folder: Path) -> str:
    """A data set of noise: ten classes, a few pictures each."""
    random = np.random.default_rng(0)
    for part, count in (("train", EACH), ("test", 1)):
        for name in NAMES:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                noise = random.integers(0, 256, size=(SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / part / name / f"{number}.jpg")
    return f"imagefolder:{folder}"


def weights(model: str, folder: Path) -> str:
    """Spec of the model with random weights, saved as open_clip saves one; ``lite`` is itself."""
    if model == "lite":
        return model
    folder.mkdir()
    torch.manual_seed(0)
    save_file(open_clip.create_model(model).state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


@dataclass
class Ours:
    """This package's step, in a run before its first."""

    context: Context
    update: Update
    batches: Iterator[Batch]

    @classmethod
    def of(
        cls,
        data: str,
        model: str,
        tune: str,
        out: Path,
        batch: int = BATCH,
        method: str = "clip",
        shard: bool = False,
    ) -> Ours:
        """A run that trains what ``tune`` says, without augmentation, so that a trunk can be kept."""
        words = [
            f"data={data}",
            f"model={model}",
            f"tune={tune}",
            f"out={out}",
            f"method={method}",
            "scenario.tasks=1",
        ]
        more = [f"train.batch_size={batch}", f"train.steps={STEPS}", "train.augment=none", "device=cpu"]
        run = Run.open(resolve(load_config([*words, *more]))).__enter__()
        plan = Plan.of(run.config)
        clip = load_model(plan, model)
        loader = activation_cache.loader(plan, clip, run.path, Progress())
        task = plan.tasks[0]
        context = Context(plan, clip, plan.method, plan.empty_memory(), loader, Recorder([task]), Progress())
        context.journal = Checkpointer(run, context, Stop(), [])
        grow(plan, clip, task)
        tuning_of(tune).begin(clip)
        plan.method.begin_task(clip, task, task.train)
        (phase,) = plan.method.phases(task)
        update = Update(clip, plan.method, phase, run.config.train, STEPS, shard)
        current = np.ones(len(task.train), dtype=bool)
        return cls(context, update, loader.batches(task.train, current, phase, 0, 0, STEPS))

    def step(self, precision: str) -> Callable[[], None]:
        """A step in this precision; its batch is already loaded."""
        plan, batch = self.context.plan, next(self.batches)
        task, train = plan.tasks[0], plan.config.train.model_copy(update={"precision": precision})
        self.context.plan = replace(plan, config=plan.config.model_copy(update={"train": train}))
        (phase,) = self.context.method.phases(task)
        return lambda: step(self.context, self.update, batch, phase, task)


class Plain:
    """A loop as it is usually written, on the weights of one of ours."""

    def __init__(self, ours: Ours) -> None:
        self._clip, self._batches = ours.context.clip, ours.batches
        self._model: Any = self._clip.model
        self._tokenize: Any = self._clip._tokenizer  # pyright: ignore[reportPrivateUsage]
        self._names = ours.context.plan.prompts.names
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-7, weight_decay=0.1)

    def step(self) -> Callable[[], None]:
        """A step; its batch is already loaded, and its captions are tokenised."""
        batch = next(self._batches)
        tokens = self._tokenize([f"a photo of a {self._names[label]}." for label in batch.labels.tolist()])

        def run() -> None:
            self._optimizer.zero_grad()
            image = normalize(self._model.encode_image(self._clip.normalise(batch.images)), dim=-1)
            text = normalize(self._model.encode_text(tokens), dim=-1)
            logits = self._model.logit_scale.exp() * image @ text.T
            target = torch.arange(len(logits))
            loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
            loss.backward()
            self._optimizer.step()

        return run

    def free(self) -> None:
        """Give the gradients' memory back, between rounds."""
        self._optimizer.zero_grad()


def spent(work: Callable[[], object]) -> float:
    """The processor's seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def rate(kind: torch.dtype, side: int = 2048) -> float:
    """Operations a second of a matrix product: the best of three."""
    one, other = (torch.randn(side, side).to(kind) for _ in range(2))
    torch.mm(one, other)
    return 2 * side**3 / min(spent(lambda: torch.mm(one, other)) for _ in range(3))


def operations(work: Callable[[], object]) -> int:
    """Count the operations of a call's matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def measured(model: str, rounds: int, folder: Path) -> dict[str, float]:
    """Ratios to the plain loop; rows of seconds and shares are printed."""
    data, spec = pictures(folder / "data"), weights(model, folder / "model")
    ours = {name: Ours.of(data, spec, tune, folder / name) for name, tune in TUNES.items()}
    plain = Plain(ours["full"])

    def step_of(variant: str) -> Callable[[], None]:
        name, _, precision = variant.partition("_")
        return plain.step() if name == "plain" else ours[name].step(precision)

    every = ("plain", *VARIANTS)
    counted = {}
    for variant in every:  # this warms up too
        counted[variant] = operations(step_of(variant))
        plain.free()
    seconds: dict[str, list[float]] = {variant: [] for variant in every}
    limits: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(rounds):
        limits["fp32"].append(rate(torch.float32))
        limits["bf16"].append(rate(torch.bfloat16))
        for variant in every:
            seconds[variant].append(spent(step_of(variant)))
            plain.free()
    limit = {precision: median(found) for precision, found in limits.items()}
    print(f"matrix product: {limit['fp32'] / 1e9:.0f} GFLOP/s fp32, {limit['bf16'] / 1e9:.0f} bf16")
    found = {}
    for variant in every:
        pairs = zip(seconds["plain"], seconds[variant], strict=True)
        found[variant] = median(base / own for base, own in pairs)
        own = median(seconds[variant])
        share = f"{counted[variant] / own / limit['bf16' if variant.endswith('bf16') else 'fp32']:.0%}"
        share = "" if is_convolutional(ours["full"].context.clip.model.visual) else share
        print(f"| {variant} | {own:.3f} s | {found[variant]:.2f} | {share} |", flush=True)
    return {variant: round(found[variant], 3) for variant in VARIANTS}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip name, or lite")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    machine = platform.processor() or platform.machine()
    print(
        f"{wanted.model}, {wanted.rounds} rounds, {wanted.threads} threads, torch {torch.__version__}, {machine}"
    )
    with tempfile.TemporaryDirectory() as folder:
        found = measured(wanted.model, wanted.rounds, Path(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
