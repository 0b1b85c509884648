"""Weights before they are written: no copy of what needs none."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from everclip.models.savable import savable


def test_only_what_safetensors_refuses_is_copied(tmp_path: Path) -> None:
    plain = torch.randn(4, 3)
    table = torch.randn(6, 2)
    last = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {
        "plain": plain,
        "tied": plain,
        "table": table,
        "rows": table[2:4],
        "conv": last,
        "empty": torch.zeros(0),
    }
    found = savable(state)
    assert found["plain"].data_ptr() == plain.data_ptr()
    assert found["table"].data_ptr() == table.data_ptr()
    assert found["tied"].data_ptr() != plain.data_ptr()
    save_file(found, tmp_path / "file")
    read = load_file(tmp_path / "file")
    assert all(torch.equal(read[name], value) for name, value in state.items())
