"""Co2L: supervised contrast with new images as anchors; distils relations between images from the previous task.

    L   = (tau/tau_base) (1/2B) sum_{i new} l_i + w mean_i CE( q*_i, q_i )
    l_i = mean_{p != i, y_p = y_i} [ -<z_i, z_p>/tau + log sum_{a != i} exp( <z_i, z_a>/tau ) ]
    q_i = softmax_{j != i}( <z_i, z_j>/tau_student ),    q*_i = softmax_{j != i}( <z*_i, z*_j>/tau_teacher )

over two views of B images, new and exemplars, with z the unit-length projections of the image features and z* those of
the frozen model of the previous task; the second term starts with the second task. Exemplars are contrasts and
positives but not anchors. After each task a linear probe is learned on the frozen features of new images and exemplars,
with classes drawn equally often. SimCLR or SogCLR, which contrast images, can replace the contrast of classes. Where a
class recurs in another domain, its exemplars are positives here; in the authors' code for domains they are negatives.

    Parameters  a projector of two layers; a linear head
    State       the projector and the head; one moving average (fp32) per exemplar with method.objective=sogclr
    Passes      2 of the image tower (two views), 2 of its frozen copy after the first task; 1 for the probe
    Exemplars   trains on exemplars and new images

Paper: https://arxiv.org/abs/2106.14413
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from everclip.losses import supcon
from everclip.methods.base.method import Batch
from everclip.methods.shared.represent import TwoViews, ViewsConfig


class Co2l(TwoViews):
    """Contrastive continual learning."""

    class Config(ViewsConfig):
        search: ClassVar = {"tau": (0.1, 0.5), "distill": (0.3, 1.0, 3.0), "probe_penalty": (0.01, 0.1, 1.0)}

        tau: float = Field(default=0.5, gt=0, description="temperature of the objective")
        tau_base: float = Field(
            default=0.07, gt=0, description="the contrast of classes is multiplied by tau / tau_base"
        )
        asymmetric: bool = Field(default=True, description="whether exemplars are excluded as anchors")
        distill: float = Field(default=1.0, ge=0, description="w: weight of the relations; 0: off")
        tau_student: float = Field(default=0.2, gt=0, description="temperature of the current relations")
        tau_teacher: float = Field(
            default=0.01, gt=0, description="temperature of the previous task's relations"
        )

    config: Config

    def contrast(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        config = self.config
        z = normalize(self.projector(features["image"]), dim=1)
        loss = self.objective(z, batch, batch.current if config.asymmetric else None)
        if config.objective == "supcon":
            loss = config.tau / config.tau_base * loss
        past = self.past(features)
        if past is None or config.distill == 0:
            return {"contrast": loss}
        relations = supcon.relation_distillation(past, z, config.tau_teacher, config.tau_student)
        return {"contrast": loss, "relations": config.distill * relations}
