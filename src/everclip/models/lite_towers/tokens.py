"""Turn prompts into token ids for ``lite``'s text tower, as open_clip and transformers do."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from everclip.models.lite_towers.text import PADDING

LENGTH = 77
FILE = "tokenizer.json"


class Tokenizer:
    """A WordPiece tokenizer of lower-case words.

    Args:
        files: content of tokenizer.json and of the files beside it, by name; they are written as they were read.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as open_clip does: threads would not survive a fork
        from tokenizers import Tokenizer as WordPiece

        self._files = dict(files)
        self._words = WordPiece.from_buffer(files[FILE])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files."""
        for name, content in self._files.items():
            Path(folder, name).write_bytes(content)

    def __call__(
        self, texts: str | Sequence[str], context_length: int | None = None
    ) -> Int64[Tensor, "p length"]:
        """Return token ids, cut or filled up to ``context_length``."""
        length = context_length or LENGTH
        self._words.enable_truncation(length)
        self._words.enable_padding(length=length, pad_id=PADDING, pad_token="[PAD]")
        found = self._words.encode_batch([_clean(t) for t in ([texts] if isinstance(texts, str) else texts)])
        return torch.tensor([encoding.ids for encoding in found])


def _clean(text: str) -> str:
    """Return a text with single spaces, its encoding and HTML repaired."""
    if text.isascii() and text.isprintable() and "&" not in text:  # where ftfy has nothing to do
        return " ".join(text.split())
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
