"""Read a frozen image tower at several depths, from several views of a picture, as one vector.

    block_0        the tower's output, or its output before the projection
    block_j        the output of its j-th last block: the mean over a stage's positions, or a token of a transformer
    f(view)        [ w_0 unit(r(block_0)) ; w_1 unit(r(block_1)) ; ... ],   r(a) = sign(a) sqrt(|a|) or a
    x              unit( mean of f over the views )

Views are the picture at each scale, and its mirror image at each. As each block has unit length, its weight squared
sets its share of |x|^2, whatever the tower's activations are; the signed root (Perronnin et al. 2010,
https://doi.org/10.1007/978-3-642-15561-1_11) brings few large activations and many small ones nearer to each other.
Means of stages next to the output are hypercolumns without their positions (Hariharan et al. 2015,
https://arxiv.org/abs/1411.5752).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from everclip.errors import UserError
from everclip.models.foreign import ModifiedResNet, TimmTransformer, VisionTransformer
from everclip.models.pooled import Features, both
from everclip.models.towers import is_convolutional
from everclip.models.trunk import Parts

Token = Literal["class", "mean"]
STAGES, BLOCKS = 6, 3
"""Number of last blocks that ``equal`` reads of a convolutional tower and of a transformer, whose blocks are much wider
and much more alike."""
FALLING = (0.5, 0.5, 0.25)


@dataclass(frozen=True)
class Depths:
    """What is read from a tower.

    Args:
        weights: of the last blocks, the very last first; the output has weight 1. ``equal``: 1 each, for ``STAGES`` or
            ``BLOCKS`` of them; None: those of ``FALLING``. Both as far as the tower's blocks are known.
        root: whether activations become their signed square roots.
        mirror: whether the mirror image is read too, where there are images.
        scales: sides of the views, as multiples of the picture's.
        token: what is read of a transformer's block: the class token, where there is one, or the mean of the patches.
        pooled: whether the output is the one before the projection.
        raw: whether only the blocks are read, unscaled: those with a weight above 0 that the tower has. A convolutional
            tower's output then counts as its last block, as what follows its stages may be much more than a norm and a
            projection.
    """

    weights: tuple[float, ...] | Literal["equal"] | None = "equal"
    root: bool = True
    mirror: bool = True
    scales: tuple[float, ...] = (1.0,)
    token: Token = "class"
    pooled: bool = False
    raw: bool = False

    def check(self, visual: nn.Module) -> None:
        """Refuse a tower that cannot be read this way. Raises UserError."""
        if self.weights and isinstance(self.weights, tuple):
            blocks = Parts.of(visual, self._otherwise).blocks
            if len(self.weights) > len(blocks) and not self.raw:
                raise UserError(
                    f"method.stages has {len(self.weights)} weights for {len(blocks)} blocks: leave some out"
                )
        fixed = isinstance(visual, ModifiedResNet) or not is_convolutional(visual)
        if self.scales != (1.0,) and fixed:
            raise UserError("this image tower takes no other sizes: use method.scales=[1.0]")

    def read(self, visual: nn.Module, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b m"]:
        """Return the rows x, in fp32, of normalised pictures, or from a trunk's output that holds them. Raises
        UserError like ``check`` and ``pooled``."""
        if isinstance(visual, Features):
            assert visual.width is not None
            return images[:, visual.width :]
        return self.beside(visual, images)[1]

    def beside(
        self, visual: nn.Module, images: Float[Tensor, "b ..."]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b m"]]:
        """Return the tower's output and the rows x. Raises UserError like ``read``."""
        self.check(visual)
        side, total, output = images.shape[-1], None, None
        for scale in self.scales:
            view = images if scale == 1 else resized(images, max(1, round(side * scale)))
            for picture in (view, view.flip(3)) if self.mirror and view.ndim == 4 else (view,):
                raw, rows = self._view(visual, picture)
                total = rows if total is None else total + rows
                output = raw if output is None and scale == 1 else output
        assert total is not None
        if output is None:  # no view is the picture itself
            output = _output(visual(images))
        return output, total if self.raw else normalize(total, dim=1)

    @property
    def _otherwise(self) -> str:
        return "another method" if self.raw else "method.stages=[]"

    def _weights(self, visual: nn.Module) -> tuple[float, ...]:
        if isinstance(self.weights, tuple):
            if self.raw and self.weights:
                return self.weights[
                    : len(Parts.of(visual, self._otherwise).blocks) + is_convolutional(visual)
                ]
            return self.weights
        try:
            blocks = Parts.of(visual, "").blocks
        except UserError:
            return ()
        alike = isinstance(getattr(visual, "trunk", visual), (VisionTransformer, TimmTransformer))
        equal = (1.0,) * (BLOCKS if alike else STAGES)
        return (equal if self.weights == "equal" else FALLING)[: len(blocks)]

    def _view(self, visual: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of one view, and its blocks side by side."""
        weights = self._weights(visual)
        counted = self.raw and is_convolutional(visual)  # the output, as a block
        with _listening(visual, len(weights) - counted) as heard:
            output, first = both(visual, images) if self.pooled else (_output(visual(images)), None)
        found = [_summary(visual, hidden, self.token) for hidden in reversed(heard)]
        if self.raw:
            pairs = zip(weights, [output, *found] if counted else found, strict=True)
            return output, torch.cat([block.float() for weight, block in pairs if weight], 1)
        blocks = [output if first is None else first, *found]
        return output, side_by_side(blocks, weights, self.root)


def side_by_side(blocks: Sequence[Tensor], weights: Sequence[float], root: bool) -> Float[Tensor, "b m"]:
    """Return f of one view: blocks ``[b, c_j]``, the output first, each made unit length and weighted.

    Args:
        weights: of the blocks after the output.
        root: whether activations become their signed square roots.
    """
    parts = [part.float() for part in blocks]
    if root:
        parts = [part.sign() * part.abs().sqrt() for part in parts]
    pairs = zip((1.0, *weights), parts, strict=True)
    return torch.cat([weight * normalize(part, dim=1) for weight, part in pairs], 1)


@contextmanager
def _listening(visual: nn.Module, count: int) -> Iterator[list[Tensor]]:
    """While open, collect the outputs of the last ``count`` blocks in the list that is yielded."""
    heard: list[Tensor] = []

    def hear(_: nn.Module, __: Any, found: Any) -> None:
        heard.append(found)

    paths = Parts.of(visual, "method.stages=[]").blocks[-count:] if count else ()
    with ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(visual.get_submodule(path).register_forward_hook(hear))
        yield heard


def _summary(visual: Any, hidden: Tensor, token: Token) -> Float[Tensor, "b c"]:
    """Return a vector per picture from a block's output: a map ``[b, c, h, w]`` or tokens ``[b, n, c]``."""
    if hidden.ndim == 4:
        return hidden.mean((2, 3))
    if isinstance(visual, VisionTransformer):
        if not visual.transformer.batch_first:
            hidden = hidden.transpose(0, 1)
        prefix, named = 1, True
    else:
        prefix, named = visual.trunk.num_prefix_tokens, visual.trunk.cls_token is not None
    return hidden[:, 0] if token == "class" and named else hidden[:, prefix:].mean(1)


def resized(images: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 s s"]:
    """Return pictures at another side, by cubic interpolation."""
    return interpolate(images, (side, side), mode="bicubic", align_corners=False)


def _output(found: Any) -> Tensor:
    """Return the features from a tower's output, which may hold its tokens too."""
    return found[0] if isinstance(found, tuple) else found
