"""Learn small modules on the features of frozen towers, for methods that leave CLIP unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize

from everclip.data.images import ImageSet
from everclip.data.prompts import fill
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Classifier, Clip, Images, Method, MethodConfig, Prompts, Task
from everclip.methods.shared.head import columns
from everclip.methods.shared.weights import Kept
from everclip.models.pooled import pooled

CHUNK = 256
"""Prompts of one pass."""


class Frozen(Kept, Method):
    """Base of methods whose towers stay as they are. What they add trains at ``train.lr_head``.

    Attributes:
        seen: labels in the order learned; old: how many of them were known before the task.
        text: unit-length embeddings of ``seen``, over the data set's templates.
    """

    passes = Passes(lambda stage: (0.0, 1.0), "none", after=(0.0, 1.0), frozen=lambda stage: 0.0)

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.seen: list[int] = []
        self.old = 0
        self.text: Tensor = torch.zeros(0, 0)
        self._words: Tensor = torch.zeros(0, 0)
        self.can(needs_text=True)

    @torch.no_grad()
    def grow(self, clip: Clip, task: Task) -> None:
        """Append the task's classes; make modules before the first task and for each."""
        first, self.old = not self.seen, len(self.seen)
        self.seen += [label for label in task.classes if label not in self.seen]
        self.kept_to(clip)
        self.text = self.embed(clip, self.seen)
        if first:
            self.build(clip, self.text.shape[1])
        self.widen(clip, task)
        self.to(clip.device)

    def build(self, clip: Clip, width: int) -> None:
        """Make modules before the first task, for features of this width."""

    def widen(self, clip: Clip, task: Task) -> None:
        """Make the modules of a task, whose classes are already in ``seen``."""

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Embed the classes seen, which a resumed run has not done yet."""
        self.text = self.embed(clip, self.seen)

    @torch.no_grad()
    def embed(self, clip: Clip, labels: Iterable[int]) -> Float[Tensor, "c d"]:
        return super().embed(clip, labels)

    def places(self, labels: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Return the positions of labels in ``seen``."""
        return columns(self.seen, labels)

    @torch.no_grad()
    def raw(self, clip: Clip, images: Images) -> Float[Tensor, "n d"]:
        """Return fp32 features as the image tower gives them, of the whole batch if processes share it."""
        return clip.whole(clip.model.encode_image(clip.normalise(images)).float())

    @torch.no_grad()
    def pooled(self, clip: Clip, images: Images) -> Float[Tensor, "b w"]:
        """Return fp32 features before the projection. Raises UserError for a tower that has none."""
        return pooled(clip.model.visual, clip.normalise(images))

    @torch.no_grad()
    def raw_text(self, clip: Clip, labels: Sequence[int]) -> Float[Tensor, "c d"]:
        """Return fp32 embeddings of classes as the text tower gives them, the mean over templates."""
        names, templates = [self.prompts.names[label] for label in labels], self.prompts.templates
        prompts = [fill(template, name) for name in names for template in templates]
        parts = [prompts[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)]
        # the first caller may be a step in bf16, or the test of a run that resumed after its last step
        with torch.autocast(clip.device.type, enabled=False):
            rows = torch.cat([raw_prompts(clip, part) for part in parts])
        return rows.view(len(names), len(templates), -1).mean(1)

    @torch.no_grad()
    def per_template(self, clip: Clip) -> Float[Tensor, "c l d"]:
        """Return unit-length embeddings of the classes seen, by template."""
        names = [self.prompts.names[label] for label in self.seen]
        return torch.stack([clip.class_embeddings(names, [one]) for one in self.prompts.templates], 1)

    def words_seen(self, clip: Clip) -> Float[Tensor, "c d"]:
        """Return ``raw_text`` of the classes seen, computed once for a task."""
        if len(self._words) != len(self.seen):
            self._words = self.raw_text(clip, self.seen)
        return self._words

    def cells(
        self, clip: Clip, batches: Iterable[Batch], raw: bool = False
    ) -> dict[tuple[int, int], Float[Tensor, "n d"]]:
        """Return the features of images by (label, domain), unit-length unless ``raw``."""
        parts: list[Tensor] = []
        places: dict[tuple[int, int], list[int]] = {}
        count = 0
        for batch in batches:  # whose pictures are not kept: a task's would fill the memory
            parts.append(self.raw(clip, batch.images) if raw else clip.encode_image(batch.images))
            for key in zip(batch.labels.tolist(), batch.domains.tolist(), strict=True):
                places.setdefault(key, []).append(count)
                count += 1
        rows = torch.cat(parts)
        return {key: rows[places[key]] for key in sorted(places)}


def raw_prompts(clip: Clip, prompts: list[str]) -> Float[Tensor, "p d"]:
    """Return fp32 features from the text tower, computed anew even where a run keeps those of a frozen one."""
    return clip.text(clip.text.fitted(clip.tokenize(prompts)).to(clip.device)).float()


def total(layers: nn.ModuleList, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return the sum of the outputs of layers for rows."""
    return torch.stack([layer(rows) for layer in layers]).sum(0)


def dropped(values: Tensor, share: float, draw: torch.Generator | None) -> Tensor:
    """Return values with a fraction of them at 0 and the others scaled up; unchanged without a generator."""
    if draw is None or share == 0:
        return values
    keep = torch.empty_like(values).bernoulli_(1 - share, generator=draw)
    return values * keep / (1 - share)


def random(batch: Batch, stream: str, device: torch.device) -> torch.Generator:
    """Return the generator of a step's random numbers, which a resume repeats."""
    return torch.Generator(device).manual_seed(int(batch.rng(stream).integers(2**63)))


def noisy(images: Tensor, noise: float, draw: torch.Generator) -> UInt8[Tensor, "b 3 h w"]:
    """Return uint8 pictures with normal noise, added to pixels in 0..1."""
    pixels = images.to(draw.device) / 255
    changed = pixels + noise * torch.randn(pixels.shape, generator=draw, device=draw.device)
    return (changed.clamp(0, 1) * 255).to(torch.uint8)


class Summed(nn.Module):
    """The unit-length sum of a layer per task, all but the newest kept as one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whole, self.newest = nn.Linear(width, width), nn.Linear(width, width)
        for part in self.whole.parameters():
            nn.init.zeros_(part)

    @torch.no_grad()
    def renew(self) -> None:
        """Add the newest layer to the others, and begin a new one."""
        for whole, newest in zip(self.whole.parameters(), self.newest.parameters(), strict=True):
            whole += newest
        width = len(self.whole.weight)
        self.newest = nn.Linear(width, width).to(self.whole.weight.device)

    def forward(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return normalize(self.whole(rows) + self.newest(rows), dim=1)


class Cosines(Classifier):
    """``<f(images), w_k>``, both of unit length; ``encode`` is f, and w_k the embeddings of the classes' names."""

    any_name = True

    def __init__(self, clip: Clip, encode: Callable[[Images], Tensor], weights: Float[Tensor, "n d"]) -> None:
        super().__init__()
        self.encode, self.weights = encode, weights
        self.to_logits = clip.logit_scale.exp().item()

    def forward(self, images: Images) -> Float[Tensor, "b c"]:
        return self.encode(images) @ self.weights.T
