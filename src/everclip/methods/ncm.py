"""Nearest class mean on frozen features (SimpleCIL, Zhou et al. 2023): no training, a sum and a count per class.

    score_k = <x, mu_k> / ( |x| |mu_k| ),    mu_k = mean of x over the training images of class k

x are unit-length image features, or with `feature=pooled` the tower's output before its projection, as in SimpleCIL;
`normalize` then makes each of them unit length before the mean (iCaRL's rule). A class that recurs in another domain
adds to its sum. With `adapt` the model learns the first task by another method's loss before any mean is taken (APER,
same paper, without its second tower). A label that was never trained scores -inf.

    Parameters  none
    State       a sum of features (fp64) and a count per class
    Passes      1 of the image tower in all; in the first task those of adapt too
    Exemplars   none

Paper: https://arxiv.org/abs/2303.07338
"""

from __future__ import annotations

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from everclip.methods.base.method import Clip, Images
from everclip.methods.shared.statistics import LinearStatistics, Rows, Scores, StatisticsConfig


class Ncm(LinearStatistics):
    """Class means."""

    class Config(StatisticsConfig):
        normalize: bool = Field(
            default=False, description="make pooled features unit length before the mean (projected ones are)"
        )

    second_moments = False
    config: Config

    def lift(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        return normalize(features, dim=1) if self.config.normalize else features

    def query(self, clip: Clip, images: Images) -> Rows:
        return normalize(super().query(clip, images), dim=1)

    def solve(self, clip: Clip, labels: list[int]) -> Scores:
        return normalize(self.sums[labels], dim=1).T, self.silence(labels)
