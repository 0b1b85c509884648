"""Class embeddings drawn around CLIP's, from a distribution per task (CLAP4CLIP, Jha et al. 2024).

    u_k  = e_k + V_k(z),    r ~ N( mu_j(u_k), sigma_j(u_k)^2 ),    sigma = 0.999 softplus( . ) + 0.001
    score_k = s <z_i, u_k + r>                                   k of task j; mu_j and sigma_j linear
    loss = CE( scores of each draw, y ) + kl_weight sum_dim mean_k KL( N(mu, sigma) || N(0, 1) )
           + apart CE( Q, diagonal ),    Q[k, k'] = mean_l <F[k, l], r[k']>          F unit-length text of template l

V is a transformer decoder layer: its queries are the classes, which attend to each other within their task, its keys
and values the batch's images. mu_j starts at M'M / d and sigma_j at D'D / d, with M and D the mean and the variance of
F over templates (0 for a single template). The last two terms run over the task's own classes. In a second phase, for
tasks with exemplars, all mu and sigma train at `balance_lr` on batches of equally many images of each class, V stays
fixed, without its dropout, and these terms are the sums of those of each task. A class without exemplars stays out.

At test time V sees the whole batch in the authors' code, with images of one task (`test=batch`); by default it sees
each image alone (ours). The mean over draws is taken exactly, r = mu. A class of several tasks gets the mean of its
heads' scores (ours). CE runs over `classes`: those with images now, which are all classes seen if each has exemplars.

    Parameters  the decoder's layer (4.2 million at d = 512); two d x d layers per task
    State       these: 17 MB and 2.1 MB per task (fp32) at d = 512
    Passes      1 of the image tower, without gradient
    Exemplars   trains on exemplars and new images, and on them again in a second phase

Paper: https://arxiv.org/abs/2403.19137
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, Images, MethodConfig, Phase, Prompts, Task
from everclip.methods.shared.classify import softmax_classes, softmax_labels
from everclip.methods.shared.frozen import Frozen, random
from everclip.methods.shared.gaussian import Heads, apart, divergence
from everclip.methods.shared.head import Columns, columns

BALANCE = "balance"


class Clap4clip(Frozen):
    """Probabilistic adapters of class embeddings."""

    class Config(MethodConfig):
        rates: ClassVar = ("lr_head",)
        search: ClassVar = {"apart": (0.0, 5.0, 15.0)}
        draws: int = Field(default=20, ge=1, description="draws of r per step")
        kl_weight: float = Field(default=0.001, ge=0, description="weight of the distance to N(0, 1)")
        classes: Literal["seen", "present"] = softmax_classes()
        apart: float = Field(default=15.0, ge=0, description="weight of the loss that keeps classes apart")
        balance_epochs: int = Field(default=2, ge=1, description="epochs of the second phase")
        balance_lr: float = Field(default=1e-4, gt=0, description="learning rate of the second phase")
        test: Literal["image", "batch"] = Field(
            default="image", description="images that V sees at test: each alone, or the whole batch"
        )

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.decoder: Any = nn.Identity()
        self.heads = Heads()
        self._per_template = torch.zeros(0, 0, 0)
        self._labels: list[int] = []
        self._balanced = False

    def build(self, clip: Clip, width: int) -> None:
        self.decoder = nn.TransformerDecoderLayer(
            width, 1, 2048, dropout=0.1, activation="gelu", batch_first=True
        )

    def widen(self, clip: Clip, task: Task) -> None:
        """Make the task's mu and sigma, initialised from the templates of the classes seen."""
        rows = self.per_template(clip)
        spread = rows.var(1) if rows.shape[1] > 1 else torch.zeros_like(rows[:, 0])
        self.heads.grow(task.classes, rows.mean(1), spread)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        super().begin_task(clip, task, train)
        self._per_template = self.per_template(clip)
        self._labels = softmax_labels(self.config.classes, self.seen, train)
        exemplars = np.isin(train.ids, task.train.ids, invert=True).any()
        self._balanced = bool(self.old and exemplars)

    def phases(self, task: Task) -> list[Phase]:
        rates = {"lr_head": self.config.balance_lr}
        second = Phase(BALANCE, self.config.balance_epochs, "class_balanced", train=rates)
        return [Phase(), second][: 1 + self._balanced]

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        if phase.name == BALANCE:
            yield from self.heads.parameters()
        else:
            yield from (*self.decoder.parameters(), *self.heads.newest().parameters())

    def adapted(self, z: Float[Tensor, "n m d"], text: Float[Tensor, "c d"]) -> Float[Tensor, "n h d"]:
        """Return u of each head, for ``n`` groups of images that V sees; ``text`` has the embeddings of ``seen``."""
        tasks = torch.tensor(self.heads.tasks, device=z.device)
        queries = text[self.places(torch.tensor(self.heads.labels))].expand(len(z), -1, -1)
        return queries + self.decoder(queries, z, tgt_mask=tasks[:, None] != tasks)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        with torch.no_grad():
            z = clip.encode_image(batch.images)
        devices = [clip.device] if clip.device.type == "cuda" else []
        # the decoder's dropout draws from torch's random state, and what enters the loss is fp32
        with torch.random.fork_rng(devices), torch.autocast(clip.device.type, enabled=False):
            torch.manual_seed(int(batch.rng("dropout").integers(2**63)))
            self.decoder.train(phase.name != BALANCE)
            u = self.adapted(z[None], self.text)
            self.decoder.train()
            mu, sigma = (part[0] for part in self.heads(u))
        draw, shape = random(batch, "draws", clip.device), (self.config.draws, *mu.shape)
        r = mu + sigma * torch.randn(shape, generator=draw, device=mu.device)
        return {"z": z, "u": u[0], "mu": mu, "sigma": sigma, "r": r, "scale": clip.logit_scale.exp()}

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        z, u, mu, sigma, r, scale = (features[n] for n in ("z", "u", "mu", "sigma", "r", "scale"))
        logits = self.heads.pooled(self.seen, scale * z @ (u + r).transpose(1, 2)).flatten(0, 1)
        logits = logits[:, self.places(torch.tensor(self._labels))]
        target = columns(self._labels, batch.labels).to(z.device).repeat(len(r))
        tasks, rows = (
            self.heads.tasks,
            self._per_template[self.places(torch.tensor(self.heads.labels))].mean(1),
        )
        wanted = dict.fromkeys(tasks) if phase.name == BALANCE else tasks[-1:]
        groups = [[place for place, task in enumerate(tasks) if task == one] for one in wanted]
        distances = [divergence(mu[own], sigma[own]) for own in groups]
        confusions = [apart(rows[own], r[:, own].mean(0)) for own in groups]
        return {
            "cross_entropy": cross_entropy(logits, target),
            "kl": self.config.kl_weight * torch.stack(distances).sum(),
            "apart": self.config.apart * torch.stack(confusions).sum(),
        }

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        text, scale = self.embed(clip, self.seen), clip.logit_scale.exp()

        def score(images: Images) -> Float[Tensor, "b c"]:
            self.decoder.eval()
            z = clip.encode_image(images)
            u = self.adapted(z[:, None] if self.config.test == "image" else z[None], text)
            means = u + self.heads(u)[0]
            self.decoder.train()
            return self.heads.pooled(self.seen, scale * (means * z[:, None]).sum(2))

        return Columns(score, self.seen, labels)
