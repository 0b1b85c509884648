"""Read the image tower's output before its projection into the joint space."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everclip.errors import UserError
from everclip.models.foreign import TimmModel, VisionTransformer


class Features(nn.Module):
    """The rest of a tower whose features come ready-made: it returns them.

    Args:
        width: of the features, where pooled ones follow them in each row; None: a row is the features.
    """

    def __init__(self, width: int | None = None) -> None:
        super().__init__()
        self.width = width

    def forward(self, rows: Float[Tensor, "b w"]) -> Float[Tensor, "b d"]:
        return rows[:, : self.width]


def pooled(visual: nn.Module, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b d"]:
    """Return pooled fp32 features of normalised images, before the projection and not made unit length. Raises
    UserError where the tower has none.

    For a VisionTransformer these are the input of its projection, for a timm tower the input of its head. ResNets of
    OpenAI's kind project inside their attention pool and have none.
    """
    if isinstance(visual, Features) and visual.width is not None:
        return images[:, visual.width :]
    return both(visual, images)[1]


def both(
    visual: nn.Module, images: Float[Tensor, "b ..."]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b w"]]:
    """Return a tower's output and its pooled features, in one pass. Raises UserError like ``pooled``."""
    if isinstance(visual, VisionTransformer):
        narrow = _flat(visual, _before_matrix(visual, images))
        return (narrow if visual.proj is None else narrow @ visual.proj), narrow
    if isinstance(visual, TimmModel):
        trunk: Any = visual.trunk
        hidden = trunk.forward_features(images)
        # pre_logits: open_clip may have made the trunk's own classifier its projection
        narrow = _flat(visual, trunk.forward_head(hidden, pre_logits=True))
        return visual.head(trunk.forward_head(hidden)).float(), narrow
    raise _none(visual)


@torch.no_grad()
def projection_of(visual: nn.Module) -> tuple[Float[Tensor, "d w"], Float[Tensor, " d"]]:
    """Return W and b such that a whole tower's output is W x + b for its pooled features x. Raises UserError where the
    last step is not a linear map.

    They are the identity and 0 where the output is x itself.
    """
    if isinstance(visual, VisionTransformer):
        norm: Any = visual.ln_post
        matrix = torch.eye(len(norm.weight)).to(norm.weight) if visual.proj is None else visual.proj.T
        return matrix.float().clone(), matrix.new_zeros(len(matrix)).float()
    if isinstance(visual, TimmModel):
        trunk: Any = visual.trunk
        last = [trunk.get_classifier(), *visual.head.children()]
        linear = [part for part in last if not isinstance(part, nn.Identity | nn.Dropout)]
        if not linear:
            matrix = torch.eye(trunk.num_features).to(next(trunk.parameters())).float()
            return matrix, matrix.new_zeros(len(matrix))
        if len(linear) == 1 and isinstance(linear[0], nn.Linear):
            matrix, bias = linear[0].weight.float(), linear[0].bias
            return matrix.clone(), matrix.new_zeros(len(matrix)) if bias is None else bias.float().clone()
    kind = type(visual.trunk if isinstance(visual, TimmModel) else visual).__name__
    raise UserError(f"method=bofa needs an image tower ending in a linear projection, not {kind}: use a ViT")


def _flat(visual: nn.Module, features: Tensor) -> Float[Tensor, "b d"]:
    if features.ndim != 2:  # a map, or tokens: the pooling itself projects
        raise _none(visual)
    return features.float()


def _before_matrix(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Return the tower's output with the identity in place of its projection: exact, and open_clip's own pooling."""
    replaced = {}
    if visual.proj is not None:
        replaced["proj"] = torch.eye(len(visual.proj), dtype=visual.proj.dtype, device=visual.proj.device)
    output = torch.func.functional_call(visual, replaced, (images,))
    return output[0] if visual.output_tokens else output


def _none(visual: nn.Module) -> UserError:
    kind = type(visual.trunk if isinstance(visual, TimmModel) else visual).__name__
    return UserError(
        f"an image tower {kind} has no pooled output before its projection: use method.feature=projected"
    )
