"""Run the text tower on the fewest tokens that give the same features.

A caption of ten tokens is padded to the tower's full length, 77 for most. Where every token attends only to itself and
to earlier ones, and the features are taken at the end token, what follows it changes neither the features nor the
gradient. So the tokens, the position embeddings and the mask are cut after the last end token of the prompts at hand.
Towers that attend both ways mask their padding instead, or read it; they run unchanged (those of Hugging Face without
the columns that are padding in every prompt).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from everclip.models.foreign import CLIP, CustomTextCLIP, HFTextEncoder, TextTransformer

_TOKENIZED = 1000  # prompts at a time, to see which are too long
_KEPT = 1 << 17  # prompts whose tokens are kept, about 100 MB: a server is asked for new ones without end


class TextTower:
    """The text half of an open_clip model.

    Args:
        model: with a method ``encode_text`` from token ids to features.
        tokenizer: maps a list of prompts to token ids.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[..., Tensor]) -> None:
        self.put(model)
        self._cut = _cut_of(model)
        self._tokenizer = tokenizer
        self._tokens: dict[str, Int64[Tensor, " length"]] = {}
        self._lengths: dict[str, int] = {}
        text = hugging_face(model)
        self._padding: int | None = None if text is None else text.config.pad_token_id

    def put(self, model: nn.Module) -> None:
        """Use another model of the same architecture from here on."""
        self._encoder = _Encoder(model)

    @property
    def tokenizer(self) -> Callable[..., Tensor]:
        """The tokenizer itself."""
        return self._tokenizer

    def tokenize(self, prompts: Sequence[str]) -> Int64[Tensor, "p length"]:
        """Return token ids on the CPU, kept by prompt.

        For a Hugging Face text tower the columns that are padding in every prompt are dropped: such towers mask the
        padding, so those columns cost time and change nothing.
        """
        if len(self._tokens) > _KEPT:
            self._tokens.clear()
            self._lengths.clear()
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._tokens]
        if new:
            self._tokens.update(zip(new, self._tokenizer(new).long(), strict=True))
        tokens = torch.stack([self._tokens[prompt] for prompt in prompts])
        if self._padding is None:
            return tokens
        used = (tokens != self._padding).any(dim=0).nonzero()
        return tokens[:, : int(used.max()) + 1]

    def truncated(self, prompts: Sequence[str]) -> tuple[int, int]:
        """Return how many prompts are longer than the tower reads, and how many tokens it reads."""
        short = self._tokenizer(["a"])
        length, count = short.shape[1], 0
        long = [text for text in prompts if len(text.encode()) > length - 2]  # a token takes at least a byte
        for start in range(0, len(long), _TOKENIZED):
            part = long[start : start + _TOKENIZED]
            cut, whole = self._tokenizer(part), self._tokenizer(part, context_length=length + 1)
            count += int(((whole[:, :length] != cut).any(1) | (whole[:, -1] != short[0, -1])).sum())
        return count, length

    def length(self, prompt: str) -> int:
        """Return the number of tokens that the tower has to run on for a prompt."""
        if prompt not in self._lengths:
            self._lengths[prompt] = self.fitted(self.tokenize([prompt])).shape[1]
        return self._lengths[prompt]

    def fitted(self, tokens: Int64[Tensor, "p length"]) -> Int64[Tensor, "p fewer"]:
        """Return the columns of ``tokens`` that the tower has to be run on."""
        return tokens if self._cut is None else tokens[:, : self._cut.length(tokens)]

    def __call__(self, tokens: Int64[Tensor, "p length"]) -> Float[Tensor, "p d"]:
        """Return features of token ids, fitted or in full length, in the tower's precision and of any norm."""
        if self._cut is None:
            return self._encoder(tokens)
        shortened = self._cut.shortened(self._encoder.model, tokens.shape[1])
        return torch.func.functional_call(self._encoder, shortened, (tokens,))


def hugging_face(model: nn.Module) -> Any:
    """Return a model's text tower where it is a HFTextEncoder, else None; open_clip does not annotate its config."""
    return next((child for child in model.children() if isinstance(child, HFTextEncoder)), None)


class _Cut:
    """The way a causal tower is shortened.

    Args:
        prefix: of the tower's names in the model.
        end: id of the token at which the features are taken; None: the largest id of each prompt.
    """

    def __init__(self, prefix: str, end: int | None) -> None:
        self.prefix = prefix
        self.end = end

    def length(self, tokens: Int64[Tensor, "p length"]) -> int:
        """Return the number of tokens up to the last end token, which counts too."""
        marks = tokens if self.end is None else (tokens == self.end).int()
        return int(marks.argmax(dim=1).max()) + 1

    def shortened(self, model: nn.Module, length: int) -> dict[str, Tensor]:
        """Return a tower's position embeddings and mask for this number of tokens, by the names of ``_Encoder``."""
        tower = model.get_submodule(self.prefix)
        positions, mask = tower.get_parameter("positional_embedding"), tower.get_buffer("attn_mask")
        name = f"model.{self.prefix}." if self.prefix else "model."
        return {f"{name}positional_embedding": positions[:length], f"{name}attn_mask": mask[:length, :length]}


class _Encoder(nn.Module):
    """``encode_text`` as a module, which ``functional_call`` wants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model

    def forward(self, tokens: Int64[Tensor, "p length"]) -> Float[Tensor, "p d"]:
        return self.model.encode_text(tokens)  # pyright: ignore[reportCallIssue]


def _cut_of(model: Any) -> _Cut | None:
    """Return how the model's text tower is shortened; None where that would not be exact, or is not known to be."""
    if isinstance(model, CLIP):
        found = "", model.text_pool_type, model.text_eos_id, model.attn_mask
    elif isinstance(model, CustomTextCLIP) and isinstance(text := model.text, TextTransformer):
        if text.cls_emb is not None:  # its features are taken at a token that is appended to all others
            return None
        found = "text", text.pool_type, text.eos_id, text.attn_mask
    else:
        return None
    prefix, pool, end, mask = found
    if pool not in ("argmax", "eos") or not _causal(mask):
        return None
    return _Cut(prefix, int(end) if pool == "eos" else None)  # pyright: ignore[reportArgumentType]


def _causal(mask: object) -> bool:
    """Return whether an additive mask hides every later token and no earlier one."""
    if not isinstance(mask, Tensor):
        return False
    later = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return bool(mask[later].eq(-torch.inf).all() and mask[~later].eq(0).all())
