"""The map from new to old embeddings: what it recovers, and what it is read from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from everclip.index.maps import Map, fit, load
from everclip.system.reading import Unreadable

MARKS = "a" * 64, "b" * 64


def unit(count: int, width: int, seed: int) -> Tensor:
    found = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=-1)


def turn(width: int, seed: int = 3) -> Tensor:
    """A rotation."""
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]


def test_a_rotation_is_recovered() -> None:
    new, checks, rotation = unit(400, 20, 0), unit(50, 20, 1), turn(20)
    found = fit((new, checks), (new @ rotation, checks @ rotation), *MARKS)
    others = unit(100, 20, 2)
    assert float((found(others) * (others @ rotation)).sum(1).min()) > 0.9999
    assert (found.of, found.to) == MARKS


def test_a_shift_of_low_rank_needs_the_affine_part() -> None:
    """More than a rotation: one direction is pressed flat, and everything is moved."""
    new, checks, rotation = unit(900, 40, 0), unit(200, 40, 1), turn(40)
    flat = torch.eye(40) - 0.9 * torch.outer(torch.eye(40)[0], torch.eye(40)[0])

    def old(rows: Tensor) -> Tensor:
        return torch.nn.functional.normalize((rows @ rotation) @ flat + 0.05, dim=-1)

    found = fit((new, checks), (old(new), old(checks)), *MARKS)
    plain = fit((new[:0].new_zeros(1, 40), checks), (new.new_zeros(1, 40), old(checks)), *MARKS)
    others = unit(100, 40, 2)
    near = float((found(others) * old(others)).sum(1).mean())
    assert found.kind == "Procrustes and an affine part of rank 16"
    assert near > 0.99 > 0.9 > float((others * old(others)).sum(1).mean())
    assert float((plain(others) * others).sum(1).min()) > 0.9999  # of nothing to fit it is the identity


def test_of_few_pictures_it_stays_near_the_identity() -> None:
    """Directions that no picture shows are left alone, in place of being turned anyhow."""
    new = unit(5, 30, 0)
    found = fit((new, new[:0]), (new, new[:0]), *MARKS)
    others = unit(50, 30, 1)
    assert float((found(others) * others).sum(1).min()) > 0.999


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = fit((unit(40, 6, 0), unit(9, 6, 1)), (unit(40, 6, 2), unit(9, 6, 3)), *MARKS)
    made.save(tmp_path / "m")
    found = load(tmp_path / "m")
    assert torch.equal(found.matrix, made.matrix)
    assert torch.equal(found.bias, made.bias)
    assert (found.of, found.to, found.kind) == (made.of, made.to, made.kind)


def test_a_strangers_file_is_refused(tmp_path: Path) -> None:
    file, words = tmp_path / "m", {"of": MARKS[0], "to": MARKS[1], "kind": "k"}
    plain = {"matrix": torch.eye(4), "bias": torch.zeros(4)}
    save_file(plain, file, metadata=words)
    assert isinstance(load(file), Map)
    for tensors, about in (
        ({"matrix": torch.eye(4), "bias": torch.zeros(5)}, words),
        ({"matrix": torch.eye(4).double(), "bias": torch.zeros(4).double()}, words),
        ({"matrix": torch.eye(4) / 0, "bias": torch.zeros(4)}, words),
        ({"matrix": torch.eye(4)}, words),
        (plain, words | {"to": "../elsewhere"}),
        (plain, words | {"kind": "\x1b[2J"}),
        (plain, None),
    ):
        save_file(tensors, file, metadata=about)
        with pytest.raises(Unreadable):
            load(file)
    file.write_bytes(b"no tensors")
    with pytest.raises(Unreadable):
        load(file)
    file.unlink()
    with pytest.raises(Unreadable, match="No such file"):
        load(file)
