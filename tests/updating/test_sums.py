from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from everclip.methods.shared.sums import Sums


def rows(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(count, 5, generator=random), dim=1)
    return features, torch.arange(count) % 3, torch.arange(count) + 1000 * seed


def test_order_and_parts_do_not_matter() -> None:
    features, labels, ids = rows(12, 1)
    whole = Sums.empty(3, 5).plus(features, labels, ids)
    parts = Sums.empty(3, 5)
    for part in torch.randperm(12, generator=torch.Generator().manual_seed(0)).split(5):
        parts = parts.plus(features[part], labels[part], ids[part])
    torch.testing.assert_close(parts.gram, whole.gram)
    torch.testing.assert_close(whole.gram, features.double().T @ features.double())
    torch.testing.assert_close(parts.sums, whole.sums)
    assert whole.counts.tolist() == [4, 4, 4]


def test_an_image_counts_once() -> None:
    one = Sums.empty(3, 5).plus(*rows(6, 1))
    assert one.plus(*rows(6, 1)).counts.equal(one.counts)
    twice = [torch.cat([part, part]) for part in rows(4, 2)]
    assert one.plus(*twice).counts.equal(one.plus(*rows(4, 2)).counts)
    back = one.plus(*rows(4, 2)).minus(*twice)
    assert back.counts.equal(one.counts)
    torch.testing.assert_close(back.gram, one.gram, atol=1e-14, rtol=0)


def test_one_hot_rows_never_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images of many classes are added in parts."""
    features, labels, _ = rows(12, 1)
    weights = torch.linspace(0.5, 2, 12, dtype=torch.float64)
    whole, parts = Sums.empty(3, 5), Sums.empty(3, 5)
    whole.add_(features.double(), labels, weights)
    monkeypatch.setattr("everclip.methods.shared.sums.MOST_TARGETS", 7)
    parts.add_(features.double(), labels, weights)
    torch.testing.assert_close(parts.sums, whole.sums)
    torch.testing.assert_close(parts.gram, whole.gram)
    assert parts.counts.equal(whole.counts)
    assert parts.counts.equal(labels.bincount(minlength=3))


def test_minus_is_the_inverse_of_plus() -> None:
    base = Sums.empty(3, 5).plus(*rows(6, 1))
    there = base.plus(*rows(4, 2)).minus(*rows(4, 2))
    torch.testing.assert_close(there.gram, base.gram, atol=1e-14, rtol=0)
    assert there.ids.equal(base.ids)
    assert base.minus(*rows(4, 2)).gram.equal(base.gram)  # which were never in


def test_without_a_class_the_second_moments_come_from_the_others() -> None:
    """With all images of the other classes as exemplars the sums are those of these images alone."""
    features, labels, ids = rows(12, 1)
    other = labels != 1
    whole = Sums.empty(3, 5).plus(features, labels, ids)
    made = whole.without_classes([1], features[other], labels[other], ids[other])
    alone = Sums.empty(3, 5).plus(features[other], labels[other], ids[other])
    torch.testing.assert_close(made.gram, alone.gram)
    torch.testing.assert_close(made.sums, alone.sums[[0, 2]])
    assert made.counts.tolist() == [4, 4]
    assert sorted(made.labels.tolist()) == [0] * 4 + [1] * 4
    assert made.ids.equal(alone.ids)


def test_without_a_class_known_images_stay_exact_and_the_rest_is_estimated() -> None:
    """Taking out any known image leaves a positive definite G, with fewer known images than features too."""
    features, labels, ids = rows(60, 1)
    features = torch.cat([features, torch.randn(60, 35, generator=torch.Generator().manual_seed(3))], 1)
    known = (labels != 1) & (ids % 3 == 0)
    whole = Sums.empty(3, 40).plus(features, labels, ids)
    made = whole.without_classes([1], features[known], labels[known], ids[known])
    counts = torch.tensor([int((labels == label).sum()) for label in (0, 2)])
    assert made.counts.equal(counts)
    assert int(known.sum()) < 40
    left = made.minus(features[known], labels[known] // 2, ids[known])
    assert torch.linalg.eigvalsh(left.gram).min() > 0
    assert torch.linalg.eigvalsh(left.scatter).min() > -1e-9
    true = Sums.empty(3, 40).plus(*(part[labels != 1] for part in (features, labels, ids)))
    assert made.scatter.trace() == pytest.approx(true.scatter.trace().item(), rel=0.3)


def test_parts_are_left_out_of_the_whole() -> None:
    base, part = Sums.empty(3, 5).plus(*rows(6, 1)), Sums.empty(3, 5).plus(*rows(4, 2))
    left = base.plus(*rows(4, 2)).without(part)
    torch.testing.assert_close(left.gram, base.gram, atol=1e-14, rtol=0)
    assert left.counts.equal(base.counts)


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = Sums.empty(3, 5).plus(*rows(7, 1)).widened(6)
    made.save(tmp_path / "s.safetensors")
    again = Sums.load(tmp_path / "s.safetensors")
    for name, value in vars(made).items():
        assert vars(again)[name].equal(value)
    assert again.counts.tolist() == [3, 2, 2, 0, 0, 0]
    with pytest.raises(AssertionError):
        made.dropped([0])


def test_files_that_have_all_of_the_second_moments_are_read(tmp_path: Path) -> None:
    made, file = Sums.empty(3, 5).plus(*rows(6, 1)), tmp_path / "s.safetensors"
    made.save(file)
    assert load_file(file)["gram"].shape == (15,)
    half = Sums.load(file)
    save_file({name: value.contiguous() for name, value in vars(made).items()}, file)
    whole = Sums.load(file)
    assert whole.gram.equal(made.gram)
    torch.testing.assert_close(half.gram, whole.gram, rtol=1e-15, atol=1e-16)
