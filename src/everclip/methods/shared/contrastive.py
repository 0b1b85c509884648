"""Contrast image-caption pairs for GCL and GDRO, with two moving averages per sample, kept across tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from everclip.config import MethodConfig
from everclip.data.images import ImageSet
from everclip.losses import contrastive
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Capabilities, Clip, Method, Phase, Prompts, Task, pairs
from everclip.methods.base.sample_table import SampleTable


class ContrastiveConfig(MethodConfig):
    """Options of both losses."""

    tau: float = Field(default=0.05, gt=0, description="temperature, or its initial value if it is learned")
    temperature: Literal["fixed", "learnable", "per_sample"] = Field(
        default="fixed", description="constant, learned (RGCL-g), or learned per pair (RGCL)"
    )
    temperature_lr: float = Field(default=1e-4, gt=0, description="step size of learned temperatures")
    temperature_min: float = Field(default=0.005, gt=0, description="smallest learned temperature")
    temperature_max: float = Field(default=0.5, gt=0, description="largest learned temperature")
    rho: float = Field(
        default=8.0, ge=0, description="weight of a learned temperature's term in the objective"
    )
    gamma: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="weight of the new value in the moving averages; 1: the batch alone",
    )
    gamma_decay: int = Field(
        default=0,
        ge=0,
        description="epochs over which gamma falls from 1 along a cosine, for samples new in the task; 0:"
        " constant",
    )
    carry_over: bool = Field(default=True, description="whether to keep the estimators from task to task")
    negatives: Literal["instance", "other_class", "multi_positive"] = Field(
        default="instance",
        description="every other pair; only pairs of other classes; or these, with the mean similarity to"
        " all pairs of the class as the positive; for data with captions each caption is a class",
    )
    surrogate: Literal["identity", "squared_hinge"] = Field(
        default="identity",
        description="loss of a difference of similarities: itself, or max(0, margin + difference)^2",
    )
    margin: float = Field(
        default=0.3,
        ge=0,
        le=2,
        description="margin of the squared hinge: a negative this far below the positive costs nothing",
    )
    sampling: Literal["uniform", "class_balanced"] = Field(
        default="uniform",
        description="draw images directly, or first classes and then images of each, which weighs classes alike"
        " in gcl and in gdro with dro=none",
    )


@dataclass(frozen=True, eq=False)
class Pairs:
    """A batch of pairs, each compared with its negatives, after the estimators were updated.

    Args:
        losses: l(d1), l(d2), ``[b, b]`` each, with gradient; for a part of the batch ``[own, b]``.
        among: the negatives N_i.
        log_u: ``[b, 2]``; 0 for a pair without negatives.
        tau: the temperature, or one per pair.
        value: ``[b]``: tau log u1 + tau log u2, each pair's part of the objective.
        active: ``[b]``: pairs that have negatives.
        part: of the batch, where each process has a loss of its own (``collectives.Share.light``).
    """

    losses: contrastive.Sides
    among: Bool[Tensor, "b b"]
    log_u: Float[Tensor, "b 2"]
    tau: float | Float[Tensor, " b"]
    value: Float[Tensor, " b"]
    active: Bool[Tensor, " b"]
    part: contrastive.Part | None = None

    def surrogate(self, weights: Float[Tensor, " b"] | None = None) -> Float[Tensor, ""]:
        """Return the scalar to call backward on (equation 4)."""
        if self.part is not None:
            return self.part.surrogate(self.losses, self.log_u, self.tau, weights)
        return contrastive.surrogate(self.losses, self.log_u, self.among, self.tau, weights)


class Contrastive(Method):
    """Base of the global contrastive losses."""

    capabilities = Capabilities(pairs=True)
    passes = Passes(text="batch")

    def __init__(self, config: ContrastiveConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.options = config
        self.can(light=config.negatives != "multi_positive")  # its positives involve other images
        self.estimators = SampleTable(2)
        self.temperatures = SampleTable(1)
        if config.temperature == "learnable":
            self.register_buffer("tau", torch.tensor(config.tau))
        self.last: dict[str, float] = {}
        self._carried: set[int] = set()
        self._sums: Tensor  # by class: sum and number of losses
        self.register_buffer("_sums", torch.zeros(2, len(prompts.names)), persistent=False)

    def phases(self, task: Task) -> list[Phase]:
        return [Phase(sampler=self.options.sampling)]

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Note which samples come with an estimator; drop all estimators if nothing is carried over."""
        if not self.options.carry_over:
            self.estimators, self.temperatures = SampleTable(2), SampleTable(1)
        self._carried = set(self.estimators.ids().tolist())
        self._sums = torch.zeros(2, len(self.prompts.names), device=clip.device)

    def tables(self) -> dict[str, SampleTable]:
        return {"estimators": self.estimators, "temperatures": self.temperatures}

    def drop(self, ids: NDArray[Any]) -> None:
        self.estimators.drop(ids)
        self.temperatures.drop(ids)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return pairs(clip, self.prompts, batch)

    def diagnostics(self) -> dict[str, float]:
        return self.last

    def state_bytes(self) -> int:
        return super().state_bytes() - self._sums.nbytes  # these serve the log alone

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"class_sums": self._sums}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        self._sums = state["class_sums"].to(self._sums.device)

    def class_losses(self) -> dict[int, float]:
        sums, counts = self._sums.tolist()
        self._sums.zero_()
        return {label: total / n for label, (total, n) in enumerate(zip(sums, counts, strict=True)) if n}

    def compare(self, features: Mapping[str, Tensor], batch: Batch) -> Pairs:
        """Compare each pair with its negatives, and mix the batch's means into the moving averages (equation 4).

        The updated averages are then used.
        """
        options, share = self.options, batch.share
        among = contrastive.negatives(batch.said, options.negatives)
        own, part = slice(None), None
        if share is not None and share.light:
            own = share.own
            image, text = features["image"], features["text"]
            part = contrastive.Part(image, text, among, own, options.surrogate, options.margin)
            first, second = part.rows()
        else:
            positives = ~among if options.negatives == "multi_positive" else None
            first, second = contrastive.differences(features["image"] @ features["text"].T, positives)
        losses = contrastive.pair_losses((first, second), options.surrogate, options.margin)
        active, tau = among.any(1), self._temperature(batch, first)
        log_u, slope = self._average(losses, among[own], tau, own, batch)
        if share is not None and part is not None:
            log_u, slope = share.numbers(torch.cat([log_u, slope[:, None]], 1)).split([2, 1], 1)
            slope = slope[:, 0]
        self.estimators.set(batch.samples[active.cpu()], log_u[active])
        if options.temperature != "fixed" and active.any():
            self._learn_temperature(batch, slope, active)
        self.last = {}
        if active.any():
            self.last = {"log_u_mean": log_u[active].mean().item(), "log_u_max": log_u[active].max().item()}
        if options.temperature != "fixed":
            self.last["tau_mean"] = float(tau.mean()) if isinstance(tau, Tensor) else tau
        value = contrastive.objective(log_u, tau)
        met = torch.stack([value, torch.ones_like(value)])[:, active]
        self._sums.index_add_(1, batch.labels[active], met.to(self._sums))
        return Pairs(losses, among, log_u, tau, value, active, part)

    def _average(
        self,
        losses: contrastive.Sides,
        among: Bool[Tensor, "a b"],
        tau: float | Float[Tensor, " b"],
        own: slice,
        batch: Batch,
    ) -> tuple[Float[Tensor, "a 2"], Float[Tensor, " a"]]:
        """Return log u of the anchors ``own``, 0 if without negatives, and the slope of a learned temperature."""
        options, own_tau = self.options, tau[own] if isinstance(tau, Tensor) else tau
        old, seen = self.estimators.get(batch.samples[own])
        fresh = contrastive.log_means(losses, among, own_tau)
        gamma, seen = self._gamma(batch, fresh), seen[:, None].to(fresh.device)
        own_gamma = gamma[own] if isinstance(gamma, Tensor) else gamma
        log_u = contrastive.moving_average(old.to(fresh), seen, fresh, own_gamma)
        log_u = log_u.masked_fill(~among.any(1, keepdim=True), 0)
        if options.temperature == "fixed":
            return log_u, torch.zeros_like(log_u[:, 0])
        return log_u, contrastive.temperature_gradient(losses, log_u, among, own_tau, options.rho)

    def _gamma(self, batch: Batch, like: Tensor) -> float | Float[Tensor, "b 1"]:
        """Return the rate of the moving averages; a schedule spares what was carried over from earlier tasks."""
        options, epoch = self.options, batch.key[2]
        if epoch >= options.gamma_decay:
            return options.gamma
        cosine = math.cos(math.pi * epoch / options.gamma_decay)
        falling = options.gamma + 0.5 * (1 - options.gamma) * (1 + cosine)
        rates = [options.gamma if sample in self._carried else falling for sample in batch.samples.tolist()]
        return torch.tensor(rates).to(like)[:, None]

    def _temperature(self, batch: Batch, like: Tensor) -> float | Float[Tensor, " b"]:
        if self.options.temperature == "fixed":
            return self.options.tau
        if self.options.temperature == "learnable":
            return float(self.get_buffer("tau"))  # a copy: the buffer moves on before the loss is built
        values, seen = self.temperatures.get(batch.samples)
        return torch.where(seen, values[:, 0], self.options.tau).to(like)

    def _learn_temperature(
        self, batch: Batch, gradient: Float[Tensor, " b"], active: Bool[Tensor, " b"]
    ) -> None:
        """Take a step down the objective's gradient in tau; this batch has used the old tau."""
        options = self.options
        low, high = options.temperature_min, options.temperature_max
        if options.temperature == "learnable":
            tau = self.get_buffer("tau")
            tau.sub_(options.temperature_lr * gradient[active].mean().to(tau)).clamp_(low, high)
            return
        old = self._temperature(batch, gradient)
        assert isinstance(old, Tensor)
        new = (old - options.temperature_lr * gradient).clamp(low, high)
        self.temperatures.set(batch.samples[active.cpu()], new[active][:, None])


def valued(gradient: Float[Tensor, ""], value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return a term with the gradient of one scalar and the value of another, so that the objective is logged."""
    return gradient + (value - gradient).detach()
