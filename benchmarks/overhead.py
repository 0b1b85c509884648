"""What everclip itself costs: its losses compared with the towers, its loop with a hand-written one.

    python -m benchmarks.overhead [--steps 40] [--batch 32]

One thread, the processor's seconds of the process, variants in turn within every round, medians of the rounds'
ratios. The last line is one JSON object. Model ``lite`` at 96 px on the emoji pictures; goals: losses at most 1 % of
forward and backward, the loop at most 3 % above the hand-written one.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.step import spent
from everclip.config import load_config
from everclip.data.loader import Batch, Phase
from everclip.losses import contrastive
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.system.signals import Stop
from everclip.training import loop
from everclip.training.context import Context
from everclip.training.optim import Update
from everclip.training.restore import grow
from everclip.training.step import step as training_step

METHODS = ("clip", "gcl", "gdro")


def prepared(method: str, batch: int, out: Path) -> tuple[Context, Update, Iterator[Batch]]:
    """A context before its first step, its optimizer, and endless batches of the images of its first four tasks."""
    words = [f"method={method}", f"train.batch_size={batch}", "device=cpu", "train.steps=100000"]
    run = Run.open(resolve(load_config([*words, f"out={out}"]))).__enter__()
    context, _ = loop._start(run, Progress(), Stop())  # pyright: ignore[reportPrivateUsage]
    task = context.plan.tasks[0]
    images = sum((t.train for t in context.plan.tasks[1:4]), task.train)
    grow(context.plan, context.clip, task)
    context.method.begin_task(context.clip, task, images)
    current = torch.ones(len(images), dtype=torch.bool).numpy()
    update = Update(context.clip, context.method, Phase(), context.plan.config.train, 100_000)
    return context, update, context.loader.batches(images, current, Phase(), 0, 0, 100_000)


def loss_share(context: Context, batches: Iterator[Batch], steps: int) -> float:
    """Seconds of the loss, its state and its gradient at the features, as a share of forward + backward."""
    ratios = []
    for _ in range(steps):
        batch = next(batches)
        kept = {}

        def whole(batch: Batch = batch, kept: dict[str, object] = kept) -> None:
            features = context.method.encode(context.clip, batch, Phase())
            kept["features"] = {name: part.detach().requires_grad_() for name, part in features.items()}
            torch.stack([part.sum() for part in features.values()]).sum().backward()

        def loss(batch: Batch = batch, kept: dict[str, object] = kept) -> None:
            terms = context.method.loss(kept["features"], batch, Phase())  # pyright: ignore[reportArgumentType]
            context.method.diagnostics()
            torch.stack([*terms.values()]).sum().backward()

        towers = spent(whole)
        ratios.append(spent(loss) / towers)
        context.clip.zero_grad()
    return median(ratios)


def loop_ratio(context: Context, update: Update, batches: Iterator[Batch], steps: int) -> float:
    """Seconds of a step of the loop over those of a plain one that does the same mathematics, in turn."""
    clip, task = context.clip, context.plan.tasks[0]
    rate = context.plan.config.train.lr
    assert rate is not None
    plain = torch.optim.AdamW(update.parameters, lr=rate / 1000, weight_decay=0.0, fused=True)
    ratios = []
    for _ in range(steps):

        def ours() -> None:
            training_step(context, update, next(batches), Phase(), task)

        def by_hand() -> None:
            batch = next(batches)
            image = clip.encode_image(batch.images)
            names = [context.plan.prompts.names[label] for label in batch.labels.tolist()]
            text = clip.encode_text([f"a photo of a {name}." for name in names])
            loss = contrastive.clip_loss(image, text, clip.logit_scale.exp())
            plain.zero_grad()
            loss.backward()
            clip_grad_norm_(update.parameters, 1.0)
            plain.step()

        ratios.append(spent(ours) / spent(by_hand))
    return median(ratios)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            context, update, batches = prepared(method, arguments.batch, Path(folder) / method)
            loss_share(context, batches, 3)
            found[f"loss_{method}"] = loss_share(context, batches, arguments.steps)
            found[f"loop_{method}"] = loop_ratio(context, update, batches, arguments.steps)
            print(
                f"{method}: loss {found[f'loss_{method}']:.2%} of forward + backward,"
                f" loop {found[f'loop_{method}']:.3f} of a plain one with CLIP's loss",
                flush=True,
            )
    machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    print(json.dumps({key: round(value, 5) for key, value in found.items()} | machine | vars(arguments)))


if __name__ == "__main__":
    main()
