"""Map the embeddings of a new encoder to those of an old one, so that new queries search old embeddings.

    m(x) = unit(x A + b),    A = R + W

R is the orthogonal matrix that brings the new embeddings X of some pictures nearest to the old ones Y of the same (the
orthogonal Procrustes problem, Schoenemann 1966, https://doi.org/10.1007/BF02289451), drawn to the identity, as
training began with the old encoder:

    X' Y + mu I = U S V',    R = U V'

W and b are ridge regression of what is left, Y - X R, cut to a low rank by the directions in which its fitted values
spread most (reduced-rank regression, Izenman 1975, https://doi.org/10.1016/0047-259X(75)90042-1). mu, the strength of
the ridge and the rank are those whose mapped embeddings are nearest to the old ones on pictures that were not fitted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from everclip.errors import why
from everclip.system.reading import Unreadable, open_regular

FILE = "index.safetensors"
"""File of a version whose queries search an earlier encoder's embeddings."""
PULLS = (0.01, 0.1, 1.0)
"""mu, as a multiple of n / d, what n unit-length embeddings have in one of d directions on average."""
RIDGES = (0.1, 1.0, 10.0)
"""The strength of the ridge, as a multiple of the same."""
RANKS = (16, 64, 256)
_MOST = 1 << 30
_MARK = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Map:
    """A map of embeddings.

    Args:
        of, to: fingerprints of the encoder whose embeddings it takes, and of the one whose embeddings it gives.
        kind: how it was chosen, in words.
    """

    matrix: Float32[Tensor, "d d"]
    bias: Float32[Tensor, " d"]
    of: str
    to: str
    kind: str

    def __call__(self, rows: Float32[Tensor, "n d"]) -> Float32[Tensor, "n d"]:
        """Return unit-length embeddings as the old encoder might have given them."""
        return torch.nn.functional.normalize(rows @ self.matrix + self.bias, dim=-1)

    def save(self, file: Path) -> None:
        """Write the map. Raises OSError."""
        words = {"of": self.of, "to": self.to, "kind": self.kind}
        save_file({"matrix": self.matrix.contiguous(), "bias": self.bias.contiguous()}, file, metadata=words)


def load(file: Path) -> Map:
    """Return the map in a file. Raises Unreadable where it holds none."""
    try:
        open_regular(file, _MOST).close()
        with safe_open(file, framework="pt") as found:
            words, matrix, bias = found.metadata() or {}, found.get_tensor("matrix"), found.get_tensor("bias")
    except Unreadable:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise Unreadable(why(error)) from error
    width = len(bias) if bias.ndim == 1 else 0
    plain = matrix.dtype == bias.dtype == torch.float32 and matrix.shape == (width, width)
    if not (plain and width and matrix.isfinite().all() and bias.isfinite().all()):
        raise Unreadable("it holds no map of embeddings")
    of, to = words.get("of", ""), words.get("to", "")
    if not all(map(_MARK.fullmatch, (of, to))) or not words.get("kind", "").isprintable():
        raise Unreadable("it does not say which encoders it is of")
    return Map(matrix, bias, of, to, words.get("kind", ""))


def fit(
    new: tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]],
    old: tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]],
    of: str,
    to: str,
) -> Map:
    """Return the map that is best on pictures it was not fitted on.

    Args:
        new, old: unit-length embeddings of the same pictures, those to fit on and those to choose on; without any of
            the latter, the map is chosen on those to fit on.
        of, to: fingerprints of the two encoders.
    """
    x, y = new[0].double(), old[0].double()
    chosen_on = (new[1].float(), old[1].float()) if len(new[1]) else (new[0].float(), old[0].float())

    def near(one: Map) -> float:
        return float((one(chosen_on[0]) * chosen_on[1]).sum(1).mean())

    none = torch.zeros(x.shape[1])
    turned = max((Map(r.float(), none, of, to, "Procrustes") for r in _turns(x, y)), key=near)
    return max((turned, *_bent(turned, x, y)), key=near)


def _turns(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, "d d"]]:
    """Yield R for each pull to the identity."""
    product, one = x.T @ y, torch.eye(x.shape[1], dtype=x.dtype)
    for pull in PULLS:
        u, _, v = torch.linalg.svd(product + pull * len(x) / x.shape[1] * one)
        yield u @ v


def _bent(turned: Map, x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Iterator[Map]:
    """Yield the map with W and b for each strength and rank."""
    left = y - x @ turned.matrix.double()
    means = x.mean(0), left.mean(0)
    centred, wanted = x - means[0], left - means[1]
    values, axes = torch.linalg.eigh(centred.T @ centred)
    seen = axes.T @ (centred.T @ wanted)
    for ridge in RIDGES:
        weight = axes @ (seen / (values.clamp(min=0) + ridge * len(x) / x.shape[1])[:, None])
        fitted = centred @ weight
        _, directions = torch.linalg.eigh(fitted.T @ fitted)
        for rank in RANKS:
            if rank < x.shape[1]:
                kept = directions[:, -rank:]
                part = weight @ kept @ kept.T
                bias = means[1] - means[0] @ part
                kind = f"Procrustes and an affine part of rank {rank}"
                yield replace(turned, matrix=turned.matrix + part.float(), bias=bias.float(), kind=kind)
