"""Step the optimizer: select parameters and rates, and refuse steps that are not finite."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from everclip.config.models import Train
from everclip.data.loader import Phase
from everclip.distributed import collectives
from everclip.errors import NonFinite, UserError
from everclip.methods.base.method import Method
from everclip.models.clip import Clip
from everclip.models.passes import Passes
from everclip.training.adamw import AdamW
from everclip.training.nonfinite import located

if TYPE_CHECKING:
    from everclip.models.fsdp import Shards

MOST_WARMUP = 500
"""Largest number of warm-up steps, as in FLYP."""
_CLIP_EPSILON = 1e-6
"""Epsilon that torch adds to the norm before dividing by it."""


class Update:
    """AdamW with linear warm-up and cosine decay to 0 over one phase of one task.

    The image tower and the logit scale train at ``train.lr``, the text tower at ``train.lr_text``, what the method
    adds (heads, projectors) at ``train.lr_head``. A rate of 0 freezes. Vectors and scalars are not decayed.

    Args:
        steps: optimizer steps of the phase.
        shard: whether the processes shard the towers' weights until ``close``.

    Attributes:
        passes: how the towers run in this phase.

    Raises:
        UserError: nothing is left to train, or the towers cannot run as ``train`` says.
    """

    def __init__(
        self, clip: Clip, method: Method, phase: Phase, train: Train, steps: int, shard: bool = False
    ) -> None:
        train = train.model_copy(update=dict(phase.train))
        assert train.lr is not None
        assert train.lr_text is not None
        assert train.weight_decay is not None
        self.train = train
        self.steps = steps
        self.warmup = min(MOST_WARMUP, math.ceil(train.warmup * steps))
        self.done = 0
        rates = {id(parameter): train.lr_text for _, parameter in clip.text_parameters()}
        rates |= {id(parameter): train.lr for _, parameter in clip.image_parameters()}
        rates[id(clip.logit_scale)] = train.lr
        head = train.lr if train.lr_head is None else train.lr_head
        wanted = list(method.trainable(clip, phase))
        held = clip.held()
        chosen = [p for p in wanted if rates.get(id(p), head) > 0 and id(p) not in held]
        if not chosen:
            raise UserError(
                "nothing to train: tune, train.lr and train.lr_text freeze all that the method trains; use"
                " tune=full, or give a rate above 0"
            )
        for parameter in [*clip.parameters(), *method.parameters()]:
            parameter.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        groups: dict[tuple[float, bool], list[int]] = {}
        for number, parameter in enumerate(chosen):
            groups.setdefault((rates.get(id(parameter), head), parameter.ndim > 1), []).append(number)
        self._shards = _shared(clip, chosen) if shard else None
        self._clip, self._phase, self._trained = clip, phase.name, chosen
        self.parameters = chosen if self._shards is None else self._shards.parameters
        stepped = chosen if self._shards is None else self._shards.parts
        self.optimizer = AdamW(
            [
                {
                    "params": [stepped[number] for number in members],
                    "lr": rate,
                    "base": rate,
                    "weight_decay": train.weight_decay * decayed,
                }
                for (rate, decayed), members in groups.items()
            ],
            fused=True,
        )
        self.passes = Passes(clip, train)

    def state_dict(self) -> dict[str, Any]:
        """Return how far the phase has come, and the optimizer's moments."""
        optimizer, shards = self.optimizer, self._shards
        moments = optimizer.state_dict() if shards is None else shards.whole_state(optimizer)
        return {"done": self.done, "optimizer": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state of the same phase and the model's present weights."""
        self.done, moments = state["done"], state["optimizer"]
        if self._shards is not None:
            self._shards.hand_out()
            moments = self._shards.shared_state(self.optimizer, moments)
        self.optimizer.load_state_dict(moments)

    def whole(self) -> AbstractContextManager[None]:
        """While open, give the model its whole towers if they are sharded. All processes call it together."""
        return nullcontext() if self._shards is None else self._shards.whole()

    def answered(self) -> AbstractContextManager[None]:
        """While open, for a step, turn torch's errors about a missing process into one line."""
        if self._shards is None:
            return nullcontext()
        from everclip.models.fsdp import answered

        return answered()

    def close(self) -> None:
        """Close the phase: the model keeps the trained weights, and nothing else of the update is left.

        Raises:
            NonFinite: a weight is not finite. No later step would notice what the last one did.
        """
        shards = self._shards
        del self.optimizer, self.passes, self.parameters, self._shards
        if shards is not None:
            shards.close()
            del shards
            gc.collect()  # FSDP leaves reference cycles on its modules
        if not all(bool(weight.isfinite().all()) for weight in self._trained):
            raise NonFinite(f'weights are not finite after phase "{self._phase}": {self.advice}')

    def factor(self, step: int) -> float:
        """Return the rate at a 0-based step, as a fraction of its base."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))

    @property
    def advice(self) -> str:
        """Advice against a loss that is not finite."""
        return "lower train.lr" + ("" if self.train.clip_norm else ", or set train.clip_norm=1")

    def step(
        self, terms: Mapping[str, Tensor], where: str, ids: Iterable[int]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Take one optimizer step on the sum of ``terms``, and clear the gradients.

        Args:
            where: place of the step and ``ids`` its images, for the message.

        Returns:
            The terms' values; and ``lr`` of the image tower and ``grad_norm`` before clipping.

        Raises:
            NonFinite: the loss or its gradient is not finite; neither a parameter nor the optimizer was changed.
        """
        stacked = torch.stack([term.float() for term in terms.values()])
        values = stacked.tolist()
        self._demand("loss", sum(values), where, ids)
        total = stacked.sum()
        rate = self.factor(self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate
        self._forget()
        if total.requires_grad:  # a batch without a single negative has nothing to learn from
            total.backward()
        if self._shards is not None:
            norm = self._shards.exchange()
        else:
            collectives.mean_gradients(self.parameters)
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        length, most = norm.item(), self.train.clip_norm or math.inf
        self._demand("gradient", length, where, ids)
        if length + _CLIP_EPSILON > most:  # else the factor is 1, and would cost a pass over all gradients
            stepped = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grads_with_norm_(stepped, most, norm)
        self.optimizer.step()
        # torch's fused step does not count as a change in place, by which kept text features are known to be stale
        torch.autograd.graph.increment_version([p for g in self.optimizer.param_groups for p in g["params"]])
        self._forget()  # their memory is the next forward pass's
        scale = self._clip.logit_scale
        if scale.requires_grad:  # a frozen one may be larger, as SigLIP's is
            with torch.no_grad():
                scale.clamp_(0, math.log(100))
        self.done += 1
        return dict(zip(terms, values, strict=True)), {
            "lr": (self.train.lr or 0.0) * rate,
            "grad_norm": length,
        }

    def skip(self) -> None:
        """Skip a step: only the schedule advances."""
        self._forget()
        self.done += 1

    def _forget(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad()
        if self._shards is not None:
            self._shards.forget()

    def _demand(self, what: str, value: float, where: str, ids: Iterable[int]) -> None:
        if not math.isfinite(value):
            raise NonFinite(f"the {what} is {value} {located(where, ids)}: {self.advice}")


def _shared(clip: Clip, chosen: list[nn.Parameter]) -> Shards:
    from everclip.models.fsdp import Shards  # takes half a second to import

    return Shards(clip, chosen)
