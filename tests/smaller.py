"""What readers run, made to run sooner: fewer pictures, smaller ones, a smaller model."""

from __future__ import annotations

from collections.abc import Mapping


def smaller(text: str, changes: Mapping[str, str]) -> str:
    """The text with each key of ``changes``, all of which stand in it, replaced by its value."""
    for asked, quick in changes.items():
        assert asked in text, f'"{asked}" is there no more: change what replaces it'
        text = text.replace(asked, quick)
    return text
