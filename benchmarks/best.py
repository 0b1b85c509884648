"""Closed forms on frozen features at memory 0, one change at a time from class means to ``multilayer_lda``.

    EVERCLIP_DATA=/folder/with/caltech50/pacs128/cifar100 python -m benchmarks.best

reads each picture once (model ``lite``, 96 px or 224: the output, means of the last six stages and maxima of three,
of the picture and its mirror image), solves every form from the sums of the training images, and writes
benchmarks/best.md after each set. Sums do not depend on the order of tasks, so a form's last accuracy holds for any
order, and there is no seed. Cells in benchmarks/best/ are not computed again. Then come the runs of best_twin.py.
Results with a memory are taken from docs/figure1/runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import best_twin
from benchmarks.best_page import (
    FORMS,
    HERE,
    OTHERS,
    RANDOM,
    SETTINGS,
    SPEED,
    Form,
    Setting,
    file_of,
    forms,
    kept,
    page,
)
from benchmarks.defaults import cifar_part
from benchmarks.jobs import Bench, Json, machine, packed, write
from everclip import data
from everclip.data.images import ImageSet
from everclip.data.pixels import Pixels
from everclip.data.prompts import Prompts
from everclip.methods.base.registry import method_class, options_of
from everclip.methods.shared import closed_form
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.depths import FALLING, STAGES, resized, side_by_side
from everclip.models.trunk import Parts
from everclip.training.frozen import folds

BATCH, CHUNK = 128, 1024
LATE = 3
"""Number of last stages that are read at any scale; at scale 1 it is ``STAGES``."""
MOST_WIDE = 10_000
"""Most training images for which ``ranpac`` is also solved on folds: with more, each takes a quarter of an hour."""


Views = tuple[list[Tensor], list[Tensor]]
"""Raw blocks of pictures, and of their mirror images: the output, the means of the last stages and, at scale 1, their
maxima and the means of the stages before these."""


class Rows(NamedTuple):
    """Images of one part; ``views`` gives the blocks at a scale."""

    views: Callable[[float], Views]
    labels: Tensor
    domains: Tensor
    ids: Tensor

    def features(self, form: Form) -> Tensor:
        """The features of a form, in fp64 and, unless they are raw, of unit length."""
        views = [view for scale in form.scales for view in self.views(scale)[: 1 + form.mirror]]
        if form.raw:
            stages = [torch.cat([blocks[0], *stages_of(blocks)[: form.raw]], 1) for blocks in views]
            return torch.stack(stages).double().mean(0)
        weights: tuple[float, ...] = ()
        if form.stages:
            weights = FALLING if form.stages == "falling" else (1.0,) * STAGES
        chosen = [[blocks[0], *stages_of(blocks)[: len(weights)]] for blocks in views]
        if form.tried == "maxima":
            weights += (1.0,) * LATE
            chosen = [
                [*means, *blocks[1 + LATE : 1 + 2 * LATE]]
                for means, blocks in zip(chosen, views, strict=True)
            ]
        found = [side_by_side(blocks, weights, form.root) for blocks in chosen]
        rows = normalize(torch.stack(found).sum(0), dim=1).double()
        return beside_random(rows) if form.tried == "random features" else rows


def stages_of(blocks: list[Tensor]) -> list[Tensor]:
    """The means of the last stages in a view at scale 1, the very last first."""
    return [*blocks[1 : 1 + LATE], *blocks[1 + 2 * LATE :]]


def beside_random(rows: Tensor) -> Tensor:
    """Rows beside as long a part of random features, which are drawn once for all sets."""
    drawn = torch.Generator().manual_seed(0)
    matrix = torch.randn(rows.shape[1], RANDOM, generator=drawn, dtype=torch.float64)
    parts = [normalize(torch.relu(part @ matrix), dim=1) for part in rows.split(CHUNK)]
    return torch.cat([rows, torch.cat(parts)], 1) / 2**0.5


@torch.inference_mode()
def read(clip: Clip, images: ImageSet, file: Path, scale: float) -> Views:
    """The blocks of some images at a scale, kept in a file."""
    file = file.with_name(f"{file.name}{'' if scale == 1 else f'-{scale:.2f}'}.npz")
    if not file.exists():
        pixels = Pixels(images.store, clip.eval_transform, clip.image_size, 0, 0)
        visual, heard = clip.model.visual, list[Tensor]()

        def hear(_: Any, __: Any, found: Tensor) -> None:
            heard.append(found)

        blocks = Parts.of(visual, "").blocks[-STAGES:]
        hooks = [visual.get_submodule(path).register_forward_hook(hear) for path in blocks]
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, len(images), BATCH):
            pictures, good = pixels.load(images.rows[start : start + BATCH])
            assert good.all(), "every picture can be read"
            inputs = clip.normalise(pictures)
            if scale != 1:
                inputs = resized(inputs, round(clip.image_size * scale))
            for view, shown in (("plain", inputs), ("mirrored", inputs.flip(3))):
                heard.clear()
                output = visual(shown)
                last, earlier = heard[: -LATE - 1 : -1], heard[-LATE - 1 :: -1]
                found = [output, *(block.mean((2, 3)) for block in last)]
                if scale == 1:
                    found += [block.amax((2, 3)) for block in last]
                    found += [block.mean((2, 3)) for block in earlier]
                for number, block in enumerate(found):
                    parts.setdefault(f"{view}{number}", []).append(block)
        for hook in hooks:
            hook.remove()
        arrays: dict[str, Any] = {name: torch.cat(block).numpy() for name, block in parts.items()}
        np.savez(file, **arrays)
    with np.load(file) as found:
        plain, mirrored = (
            [torch.from_numpy(found[f"{view}{number}"]) for number in range(len(found) // 2)]
            for view in ("plain", "mirrored")
        )
    return plain, mirrored


def solved(
    form: Form, prompts: Prompts, rows: Tensor, labels: Tensor, domains: Tensor
) -> Callable[[Tensor], Tensor]:
    """The map from features to scores of a form that has learned some images, through the plug-in itself."""
    method: Any = method_class(form.method).create(options_of(form.method, form.options), prompts)
    torch.manual_seed(0)  # for a random layer
    method.build(_NOWHERE, rows.shape[1])
    if form.method == "ranpac":
        return wide(method, rows, labels)
    for part in torch.arange(len(labels)).split(CHUNK):
        method.add(rows[part], labels[part])
        if form.method == "multilayer_lda":
            method.add_domains(rows[part], labels[part], domains[part])
    labels_of = [*range(len(prompts.names))]
    if form.method == "multilayer_lda":
        score = method.scorer(labels_of)
        if form.tried != "ridge":
            return score
        other = solved(Form("ridge", {}), prompts, rows, labels, domains)
        return lambda tested: standard(score(tested)) + standard(other(tested)) / 2
    weight, bias = method.solve(_NOWHERE, labels_of)
    return lambda tested: torch.addmm(bias, tested, weight)


def standard(scores: Tensor) -> Tensor:
    """Scores of each image at mean 0 and variance 1 over the classes."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)


def wide(method: Any, rows: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Ridge regression on random features; where these are more than the images, from the images' products.

    The strength is the one that ``lam_choice=gcv`` chooses from the sums.
    """
    targets = torch.eye(int(labels.max()) + 1, dtype=torch.float64)[labels]
    if len(rows) < method.sums.shape[1]:
        spectrum = closed_form.Spectrum.of_rows(method.rows(rows.float()), targets)
        explained = spectrum.targets.square().sum(1)
    else:
        for part in torch.arange(len(labels)).split(CHUNK):
            method.add(method.rows(rows[part].float()), labels[part])
        spectrum = closed_form.Spectrum.of_gram(method.gram, method.sums.T)
        explained = spectrum.targets.square().sum(1) / spectrum.values
    values = spectrum.values
    kept = values > len(values) * torch.finfo(torch.float64).eps * values[-1]
    unit = values.sum().item() / method.sums.shape[1]
    lam = closed_form.least(values[kept], explained[kept], unit, len(rows), len(rows))
    return lambda tested: torch.cat(
        [next(spectrum.predictions(method.rows(part.float()), [lam])) for part in tested.split(CHUNK)]
    )


class _Nowhere:
    """What ``build`` asks of a model."""

    device = torch.device("cpu")


_NOWHERE: Any = _Nowhere()


def cell(name: str, form: Form, prompts: Prompts, train: Rows, test: Rows) -> Json:
    """Accuracy on the test images, and on each fifth of the training images by a classifier of the others."""
    begin = time.process_time()
    rows, tested = train.features(form), test.features(form)
    right = solved(form, prompts, rows, train.labels, train.domains)(tested).argmax(1) == test.labels
    found: Json = {
        "form": name,
        "width": rows.shape[1],
        "accuracy": right.double().mean().item(),
        "images": {"train": len(rows), "test": len(right)},
        "right": packed(right[test.ids.argsort()].numpy()),
    }
    fold = folds(train.labels, train.ids)
    if form.method == "ranpac" and len(rows) > MOST_WIDE:
        fold = torch.full_like(fold, -1)
    hits = 0
    for number in fold[fold >= 0].unique().tolist():
        held = fold == number
        fit = solved(form, prompts, rows[~held], train.labels[~held], train.domains[~held])
        hits += int((fit(rows[held]).argmax(1) == train.labels[held]).sum())
    if tried := int((fold >= 0).sum()):
        found["held_out"] = hits / tried
    if name == "ridge":
        found["hindsight"] = hindsight(rows, train.labels, tested, test.labels)
    return found | {"cpu_seconds": round(time.process_time() - begin, 1), "machine": machine()}


def hindsight(rows: Tensor, labels: Tensor, tested: Tensor, truth: Tensor) -> float:
    """The accuracy of the lam that is best on the test images themselves, which nobody could have chosen."""
    targets = torch.eye(int(labels.max()) + 1, dtype=torch.float64)[labels]
    gram = rows.T @ rows
    spectrum = closed_form.Spectrum.of_gram(gram, rows.T @ targets)
    seen, unit = tested @ spectrum.basis, gram.diagonal().mean()
    scores = (
        seen @ (spectrum.targets / (spectrum.values + factor * unit)[:, None])
        for factor in closed_form.LAMS[::4]
    )
    return max((guess.argmax(1) == truth).double().mean().item() for guess in scores)


def columns(images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, domains and ids."""
    return images.labels, images.domains, images.ids


def complete(place: str, setting: Setting, names: Sequence[str], scratch: Path) -> None:
    """Compute the cells of a set that are missing."""
    missing = [name for name in names if name in forms(setting) and (place, name) not in kept()]
    if not missing:
        return
    kind, _, folder = setting.spec.partition(":")
    if folder == "cifar100_part":
        cifar_part(scratch / "cifar100", scratch / folder)
    clip = zoo.load("lite", setting.side)
    found = data.load(f"{kind}:{scratch / folder}" if folder else kind, setting.kind)
    stem = scratch / place.replace(" ", "-")
    train, test = (
        Rows(partial(read, clip, images, Path(f"{stem}-{part}")), *map(torch.from_numpy, columns(images)))
        for part, images in (("train", found.train), ("test", found.test))
    )
    for name in missing:
        made = cell(name, FORMS[name], Prompts(found.class_names, found.templates), train, test)
        write(file_of(place, name), {"setting": place, **made})
        print(f"{place}, {name}: {made['accuracy']:.4f}", flush=True)


def speed() -> Json:
    """Processor seconds of absorbing 100,000 random features, and of solving them, beside products of matrices."""
    rows = normalize(torch.randn(CHUNK, 768, dtype=torch.float64), dim=1)
    labels, domains = torch.randint(0, 1000, (CHUNK,)), torch.zeros(CHUNK, dtype=torch.int64)
    method: Any = method_class("multilayer_lda").create(
        options_of("multilayer_lda", {}), Prompts(tuple(map(str, range(1000))), ("{}",))
    )
    method.build(_NOWHERE, 768)

    def absorb() -> None:
        for part in torch.arange(CHUNK).split(BATCH):
            method.add(rows[part], labels[part])
            method.add_domains(rows[part], labels[part], domains[part])

    def solve() -> None:
        method.add(rows[:1], labels[:1])  # or the strength chosen before would be used again
        method.head([*range(1000)])

    def seconds(work: Callable[[], object]) -> float:
        took = []
        for _ in range(5):
            begin = time.process_time()
            work()
            took.append(time.process_time() - begin)
        return sorted(took)[2]

    whole = 100_000 / CHUNK
    return {
        "absorb_seconds": whole * seconds(absorb),
        "product_of_rows_seconds": whole * seconds(lambda: rows.T @ rows),
        "solve_seconds": seconds(solve),
        "product_seconds": seconds(lambda: method.gram @ method.gram),
        "machine": machine(),
    }


def main() -> None:
    """Compute what is missing and write the page; first what the verdict needs."""
    bench = Bench.from_arguments(__doc__ or "", HERE / "best", "caltech50", "pacs128", "cifar100")
    if not SPEED.exists():
        torch.set_num_threads(1)
        write(SPEED, speed())
    for names in ((*OTHERS[3:], "+ last stages", "+ means of domains"), tuple(FORMS)):
        for place, setting in SETTINGS.items():
            complete(place, setting, names, bench.scratch)
            (HERE / "best.md").write_text(page(kept()), encoding="utf-8")
    best_twin.run(bench)
    (HERE / "best.md").write_text(page(kept()), encoding="utf-8")


if __name__ == "__main__":
    main()
