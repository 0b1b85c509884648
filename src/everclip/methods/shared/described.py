"""Compare images with descriptions of what distinguishes their class from others (ENGINE)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from everclip.errors import UserError
from everclip.methods.base.method import Batch, Clip, MethodConfig, Prompts
from everclip.methods.shared.frozen import CHUNK, Frozen, raw_prompts
from everclip.system.reading import read_json, readable

DRAWS, BEST = 3, 5
"""Differences read per pair of classes, and best classes that are compared."""
Differences = dict[str, dict[str, list[str]]]
"""Class name -> other class's name -> differences."""


class Described(Frozen):
    """Base of methods that may know ``differences`` of each class from others; empty without."""

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.differences: Differences = {}

    @torch.no_grad()
    def _embed(self, clip: Clip, texts: list[str]) -> Float[Tensor, "n d"]:
        return clip.encode_text(texts)

    def said(
        self, clip: Clip, batch: Batch, classes: Int64[Tensor, " n"]
    ) -> tuple[list[int], Float[Tensor, "n d"]]:
        """Return where ``classes``, as places in ``seen``, have a difference from another class seen, and the embedding
        of one for each."""
        rng, seen = batch.rng("differences"), {self.prompts.names[label] for label in self.seen}
        places, texts = [], []
        for place, one in enumerate(classes.tolist()):
            name = self.prompts.names[self.seen[one]]
            others = [words for other, words in self.differences.get(name, {}).items() if other in seen]
            if others:
                words = others[rng.integers(len(others))]
                places.append(place)
                texts.append(phrase(name, words[rng.integers(len(words))]))
        return places, self._embed(clip, texts) if texts else self.text.new_zeros(0, self.text.shape[1])

    @torch.no_grad()
    def table(self, clip: Clip) -> Float[Tensor, "t c c d"]:
        """Return ``DRAWS`` embeddings, as the text tower gives them, of each class seen with a difference from each
        other one; 0 where there are none. Fewer differences are read again."""
        count = len(self.seen)
        found = self.text.new_zeros(DRAWS, count, count, self.text.shape[1])
        places = {self.prompts.names[label]: place for place, label in enumerate(self.seen)}
        for name, one in places.items():
            differences = self.differences.get(name, {})
            known = {places[o]: words for o, words in differences.items() if o in places and o != name}
            texts = [
                phrase(name, words[draw % len(words)]) for words in known.values() for draw in range(DRAWS)
            ]
            if texts:
                parts = [raw_prompts(clip, texts[at : at + CHUNK]) for at in range(0, len(texts), CHUNK)]
                found[:, one, [*known]] = torch.cat(parts).view(len(known), DRAWS, -1).transpose(0, 1)
        return found


def phrase(name: str, words: str) -> str:
    """Return the text of a class with a difference, which no template surrounds."""
    return f"{name} with {words}"


def compared(
    z: Float[Tensor, "b d"], cosines: Float[Tensor, "b c"], table: Float[Tensor, "t c c d"]
) -> Float[Tensor, "b c"]:
    """Return rr: for each of an image's best classes its cosine with the sum of the class's embeddings with a
    difference from each of the others, the mean over draws; else 0."""
    best = cosines.topk(min(BEST, cosines.shape[1]), dim=1).indices
    found = torch.zeros_like(cosines)
    for image, classes in enumerate(best):
        summed = normalize(table[:, classes[:, None], classes].sum(2), dim=2)
        found[image, classes] = (summed @ z[image]).mean(0)
    return found


def read_differences(path: str, names: Sequence[str]) -> Differences:
    """Return the differences of the classes ``names`` alone. Raises UserError: an unreadable file, or another form."""
    form = 'use {"class": {"other class": ["difference", ...]}}'
    with readable(f"method.descriptions={path}", form):
        found: Any = read_json(Path(path))
    if not isinstance(found, dict):
        raise UserError(f"method.descriptions={path} is not a table of classes: {form}")
    known: Differences = {}
    for name in names:
        others = found.get(name, {})
        lists = others.values() if isinstance(others, dict) else [None]
        fits = (
            isinstance(words, list) and words and all(isinstance(w, str) for w in words) for words in lists
        )
        if not all(fits):
            raise UserError(f'method.descriptions={path}: "{name}" has no table of lists of texts: {form}')
        known[name] = {other: words for other, words in others.items() if other in names}
    return known
