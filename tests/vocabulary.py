"""CLIP's vocabulary is read once in a process: each small model that a test loads would read it again."""

from __future__ import annotations

import functools
from typing import Any

from open_clip import SimpleTokenizer


@functools.cache
def read_once() -> None:
    """Have tokenizers share what they read, where they differ in the length of their texts alone."""
    read, known = SimpleTokenizer.__init__, vars(SimpleTokenizer())
    usual = known["context_length"]

    def begin(self: SimpleTokenizer, *args: Any, context_length: int | None = usual, **options: Any) -> None:
        if args or options:
            read(self, *args, context_length=context_length, **options)
        else:
            vars(self).update(known | {"context_length": context_length})

    SimpleTokenizer.__init__ = begin
