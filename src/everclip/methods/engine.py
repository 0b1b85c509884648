"""A projection per task (summed) on both sides, and a Gaussian rule on image features (ENGINE, Zhou et al. 2025).

    z = unit( sum_j U_j f ),   t_k = unit( sum_j T_j e_k )                 j over tasks, one d x d layer each, with bias
    loss  = CLIP's loss of z and t over the batch and, of each old class, mean f + noise N(0, I)
            + image_weight ( CE( <z_i, f^_j>, own )  or  - mean <z_i, f^_i> )             f^: of the image with noise
    score = q unit(g) + (1 - q) ( (1 - r) <z, t_k> + r rr_k )

f and e are features as the frozen towers give them; earlier layers are frozen, kept as their sum. g are the scores of
methods/shared/gaussian.py on pooled features. The code multiplies cosines by the logit scale itself, 4.6, not by its
exponential (`scale=log`); its second term is the CE, the paper's the cosine (`image_loss`). With one class the first
term, which could only make similarities equal, is left out (ours).

`descriptions` is a JSON file of differences between classes, {"cat": {"dog": ["pointed ears", ...]}}, for which the
authors ask a language model: CE( <t_k, "cat with pointed ears">, own ) joins the loss, over the batch and the old
classes. At test time rr_k of the five best classes is the cosine of the image with the sum of such texts of k, one for
each of the other four, in the mean over three such sums. Without the file r is 0.

    Parameters  two d x d layers
    State       these and their sums; a mean per class; w x w sums and a sum per class (fp64), w the pooled width
    Passes      1 of the image tower, 2 with image_weight; without gradient
    Exemplars   trains on exemplars and new images; published without exemplars: memory.budget=0

Paper: https://arxiv.org/abs/2503.08510
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from everclip.losses.contrastive import clip_loss
from everclip.methods.base.method import Batch, Clip, Images, MethodConfig, Phase, Prompts, Task
from everclip.methods.shared.described import Described, compared, read_differences
from everclip.methods.shared.frozen import Summed, noisy, random
from everclip.methods.shared.gaussian import Rule
from everclip.methods.shared.head import Columns
from everclip.methods.shared.prototypes import ClassMeans


class Engine(ClassMeans, Described):
    """Projections on both sides, and a Gaussian rule on features that never train."""

    class Config(MethodConfig):
        rates: ClassVar = ("lr_head",)
        search: ClassVar = {"rule": (0.8, 0.95, 0.99), "image_weight": (0.0, 0.5, 2.0)}
        search_first: ClassVar = ("rule",)  # the authors choose it for each data set

        image_weight: float = Field(default=0.5, ge=0, description="weight of the term on noisy images")
        image_loss: Literal["contrast", "cosine"] = Field(
            default="contrast", description="form of the term on noisy images"
        )
        scale: Literal["log", "exp"] = Field(default="log", description="scale of cosines in the first term")
        noise: float = Field(
            default=0.25,
            ge=0,
            description="standard deviation of the noise on pixels, in 0..1, and on class means",
        )
        rule: float = Field(default=0.8, ge=0, le=1, description="q: weight of the Gaussian rule")
        running: bool = Field(default=False, description="mix the rule's matrices as the authors' code does")
        descriptions: str | None = Field(default=None, description="JSON file of differences between classes")
        description_weight: float = Field(default=2.0, ge=0, description="weight of the loss on differences")
        rerank: float = Field(default=0.5, ge=0, le=1, description="r: weight of the differences at test")

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        if config.descriptions is not None:
            self.differences = read_differences(config.descriptions, prompts.names)
        # noise needs pictures, not kept features
        pictures = config.image_weight > 0
        self.can(reads="pixels" if pictures else "pooled", shares=not pictures, centers=False)
        self.image, self.words = Summed(1), Summed(1)

    def build(self, clip: Clip, width: int) -> None:
        super().build(clip, width)
        self.image, self.words = Summed(width), Summed(width)

    def widen(self, clip: Clip, task: Task) -> None:
        """Add the last task's layers to the sum, and begin new ones."""
        if task.index:
            self.image.renew()
            self.words.renew()

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from (*self.image.newest.parameters(), *self.words.newest.parameters())

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        draw, words = random(batch, "noise", clip.device), self.words_seen(clip)
        raw, places = self.raw(clip, batch.images), self.places(batch.labels).to(clip.device)
        found = {"f": raw, "e": words[places], "scale": clip.logit_scale.exp(), "places": places}
        drawn, old = self.replay(draw, self.config.noise)
        found["f"], found["e"] = torch.cat([raw, drawn]), torch.cat([found["e"], words[old]])
        found["places"] = torch.cat([places, old])
        if self.config.image_weight:
            with torch.no_grad():
                found["noisy"] = clip.encode_image(noisy(batch.images, self.config.noise, draw))
        if self.differences:
            said, found["said"] = self.said(clip, batch, found["places"])
            found["told"] = found["e"][said]
        return found

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        z, t = self.image(features["f"]), self.words(features["e"])
        scale, terms = features["scale"], {}
        if len(features["places"].unique()) > 1:
            terms["clip"] = clip_loss(z, t, scale.log() if self.config.scale == "log" else scale)
        if self.config.image_weight:
            cosines = z[: len(batch)] @ features["noisy"].T
            own = torch.arange(len(cosines), device=z.device)
            contrast = self.config.image_loss == "contrast"
            image = cross_entropy(cosines, own) if contrast else -cosines.diagonal().mean()
            terms["image"] = self.config.image_weight * image
        if "said" in features and len(features["said"]):
            told = self.words(features["told"]) @ features["said"].T
            own = torch.arange(len(told), device=z.device)
            terms["said"] = self.config.description_weight * cross_entropy(told, own)
        return terms or {"clip": 0 * z.sum()}

    @torch.no_grad()
    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Add the task's images to the class means and to the rule's sums."""
        parts = [(self.raw(clip, b.images), self.pooled(clip, b.images), b.labels) for b in new]
        raw, rows, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        self.include(raw, labels)
        Rule(self.kept).add(len(self.prompts.names), rows, labels, self.config.running)

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        known = [label for label in self.seen if self.kept["counts"][label] > 0]
        places = [self.seen.index(label) for label in known]
        t, g = self.words(self.words_seen(clip))[places], Rule(self.kept).scorer(known)
        table = self.table(clip)[:, places][:, :, places] if self.differences else None
        q = self.config.rule

        def score(images: Images) -> Float[Tensor, "b c"]:
            features = clip.normalise(images)
            cosines = (z := self.image(self.raw(clip, features))) @ t.T
            if table is not None:
                r = self.config.rerank
                cosines = (1 - r) * cosines + r * compared(clip.encode_image(features), cosines, table)
            rule = normalize(g(self.pooled(clip, features)), dim=1).to(z)
            return q * rule + (1 - q) * cosines

        found = Columns(score, known, labels)
        found.to_logits = clip.logit_scale.exp().item()
        return found
