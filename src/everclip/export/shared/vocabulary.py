"""Write open_clip's vocabulary as the files of a Hugging Face tokenizer.

    vocab.json, merges.txt      CLIP's byte-pair encoding
    tokenizer_config.json       its class, its special tokens and the longest text

Token ids are open_clip's up to the end token; after it open_clip pads with 0, and this tokenizer with the end token.
open_clip also repairs texts first (ftfy: curly quotes, ligatures, HTML entities); such texts have other ids.
"""

from __future__ import annotations

from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer

from everclip.export import write_json

START, END = "<|startoftext|>", "<|endoftext|>"
SIZE = 49_408
START_ID, END_ID = SIZE - 2, SIZE - 1


def write(folder: Path, length: int) -> None:
    """Write the files of a tokenizer for texts of at most ``length`` tokens, start and end included."""
    source = SimpleTokenizer()
    words = list(source.encoder)
    assert len(words) == SIZE
    words[START_ID:] = [START, END]  # open_clip spells them differently
    write_json(folder / "vocab.json", {word: place for place, word in enumerate(words)})
    merges = "\n".join(" ".join(pair) for pair in source.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": length,
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": END,
        },
    )
