"""Distances to classes, against sums over images written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from everclip import methods
from everclip.config import Config
from everclip.data.prompts import Prompts
from everclip.methods.shared.layers import Layers
from everclip.methods.shared.mahalanobis import distances, left_out, usable
from everclip.methods.shared.statistics import Statistics

WIDTH, SHARE = 6, 0.7


def method(name: str, **options: object) -> Statistics:
    """A closed form of four classes, without images."""
    config = Config.model_validate({"method": {"name": name, **options}})
    made = methods.build(config, Prompts(("a", "b", "c", "d"), ("a {}",)))
    assert isinstance(made, Statistics)
    made.register_buffer("gram", torch.zeros(WIDTH, WIDTH, dtype=torch.float64))
    made.register_buffer("sums", torch.zeros(4, WIDTH, dtype=torch.float64))
    made.register_buffer("counts", torch.zeros(4, dtype=torch.int64))
    return made


def images(n: int = 40, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, labels and domains."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(n, WIDTH, generator=random, dtype=torch.float64)
    labels = torch.arange(n) % classes
    return rows + 2 * labels[:, None] * torch.eye(WIDTH)[0], labels, torch.arange(n) // classes % 2


def naive(
    rows: np.ndarray, group: np.ndarray, x: np.ndarray, among: list[int], relative: bool, share: float
) -> np.ndarray:
    """The equations of the module, with inverses and loops; groups are labels or (label, domain)."""
    means = {g: rows[group == g].mean(0) for g in np.unique(group)}
    spread = sum(np.outer(r - means[g], r - means[g]) for r, g in zip(rows, group, strict=True)) / len(rows)
    p = np.linalg.inv(spread + share * np.trace(spread) / WIDTH * np.eye(WIDTH))
    total = np.cov(rows.T, bias=True)
    q = np.linalg.inv(total + share * np.trace(total) / WIDTH * np.eye(WIDTH))
    found = []
    for one in x:
        near = min((one - means[g]) @ p @ (one - means[g]) for g in among)
        away = one - rows.mean(0)
        found.append(near - away @ q @ away * relative)
    return np.array(found)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [3, 1]])
def test_a_distance_is_that_of_its_equation(relative: bool, labels: list[int]) -> None:
    made = method("multilayer_lda", shrinkage=SHARE)
    rows, of, _ = images()
    made.add(rows, of)
    x = images(7)[0] + 1
    found = distances(made, labels)[relative](x).numpy()
    wanted = naive(rows.numpy(), of.numpy(), x.numpy(), labels, relative, SHARE)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_a_class_in_two_domains_has_two_means() -> None:
    made = method("multilayer_lda", shrinkage=SHARE)
    assert isinstance(made, Layers)
    rows, of, domains = images()
    made.include(rows, of, domains)
    group = (2 * of + domains).numpy()
    x = images(5)[0] - 1
    found = distances(made, [0, 2])[0](x).numpy()
    np.testing.assert_allclose(
        found, naive(rows.numpy(), group, x.numpy(), [0, 1, 4, 5], False, SHARE), rtol=1e-9
    )


def test_an_image_left_out_is_as_if_it_had_never_been_added() -> None:
    """But for n and the shrinkage, which are those of all images."""
    made = method("multilayer_lda", shrinkage=SHARE)
    rows, of, _ = images()
    made.add(rows, of)
    chosen = torch.tensor([0, 7, 13, 39])
    near, relative = (part.numpy() for part in left_out(made, rows[chosen], of[chosen]))
    every, labels, n = rows.numpy(), of.numpy(), len(rows)
    means = np.array([every[labels == label].mean(0) for label in range(4)])
    lams = [
        SHARE * np.trace(scatter) / n / WIDTH * np.eye(WIDTH)
        for scatter in ((every - means[labels]).T @ (every - means[labels]), n * np.cov(every.T, bias=True))
    ]
    for number, one in enumerate(chosen.tolist()):
        others, theirs = np.delete(every, one, 0), np.delete(labels, one)
        means = np.array([others[theirs == label].mean(0) for label in range(4)])
        spread = (others - means[theirs]).T @ (others - means[theirs]) / n
        total = (others - others.mean(0)).T @ (others - others.mean(0)) / n
        p, q = np.linalg.inv(spread + lams[0]), np.linalg.inv(total + lams[1])
        wanted = min((every[one] - mean) @ p @ (every[one] - mean) for mean in means)
        away = every[one] - others.mean(0)
        assert near[number] == pytest.approx(wanted, rel=1e-9)
        assert relative[number] == pytest.approx(wanted - away @ q @ away, rel=1e-9, abs=1e-9)
    assert (near > distances(made, [0, 1, 2, 3])[0](rows[chosen]).numpy()).all()


def test_which_sums_can_say_it() -> None:
    rows, of, _ = images(30, 3)
    for name, options, can in (
        ("ridge", {}, True),
        ("ridge", {"class_weights": True}, False),
        ("slda", {}, True),
        ("slda", {"streaming": True}, False),
        ("ncm", {}, False),
    ):
        made = method(name, **options)
        made.add(rows, of)
        assert usable(made, [0, 1, 2]) == can, (name, options)
        assert not usable(made, [0, 3])  # never trained


def test_one_image_per_class_is_enough() -> None:
    made = method("slda")
    rows, of, _ = images(4)
    made.add(rows, of)
    found = distances(made, [0, 1, 2, 3])[1](rows)
    assert bool(found.isfinite().all())
