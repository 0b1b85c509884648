"""LDA on several layers: the solution of all images at once in any order, images taken out, options, runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.data.scenario import Task
from everclip.methods.shared import layers
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.runs.run import Run
from tests.methods.closed import (
    COURSES,
    EVERYTHING,
    by_class,
    learn,
    make,
    part,
    pictures,
    scores,
)
from tests.methods.plain import images, saved
from tests.running import run, timeless

NAME = "multilayer_lda"


@pytest.fixture(scope="module")
def clip(toy: str) -> Clip:
    return zoo.load(toy).requires_grad_(False)


def at_once(clip: Clip, method: Any, shrinkage: float) -> Tensor:
    """The classifier of all pictures together, from its definition: cosines between whitened images and means."""
    on = pictures()
    x = method.depths.read(clip.model.visual, clip.normalise(on.images)).double()
    means = torch.stack([x[on.labels == label].mean(0) for label in range(6)])
    centred = x - means[on.labels]
    sigma = centred.T @ centred / len(x)
    values, vectors = torch.linalg.eigh(sigma + shrinkage * sigma.diagonal().mean() * torch.eye(len(sigma)))
    root = vectors @ (vectors / values.sqrt()).T
    classes = torch.nn.functional.normalize((means - means.mean(0)) @ root, dim=1)
    return (x - means.mean(0)) @ root @ classes.T


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("shrinkage", [0.3, "gcv"])
def test_any_order_of_tasks_gives_the_solution_of_all_images(course: str, shrinkage: Any, clip: Clip) -> None:
    tasks, size = COURSES[course]
    method = learn(make(NAME, shrinkage=shrinkage), clip, tasks, size)
    whole = learn(make(NAME, shrinkage=shrinkage), clip, [EVERYTHING])
    result, expected = scores(method, clip), at_once(clip, method, whole.shrinkage(whole.cells()))
    assert method.shrinkage(method.cells()) == pytest.approx(whole.shrinkage(whole.cells()), rel=1e-6)
    assert_close(result, expected, atol=1e-6 * expected.abs().max().item(), rtol=0)
    assert method.counts.tolist() == [8] * 6


def test_what_is_taken_out_was_never_there(clip: Clip) -> None:
    """A class, and single images of another."""
    on, method = pictures(), learn(make(NAME), clip, [EVERYTHING])
    gone = (on.labels == 2) | (torch.arange(48) < 8)
    taken = part(on, gone.nonzero()[:, 0])
    method.remove(method.rows(method.extract(clip, taken.images)), taken.labels, taken.domains)
    left = learn(make(NAME), clip, [(~gone).nonzero()[:, 0]])
    result, expected = scores(method, clip), scores(left, clip)
    finite = expected.isfinite()
    assert finite.any(0).tolist() == [True, True, False, True, True, True]
    assert_close(result[finite], expected[finite], atol=1e-6 * expected[finite].abs().max().item(), rtol=0)
    assert (result[~finite] == -torch.inf).all()


def test_strength_is_chosen_anew_for_as_many_other_images(clip: Clip) -> None:
    method, other = (learn(make(NAME), clip, by_class(part)) for part in ([0, 1, 2], [3, 4, 5]))
    wanted, before = (one.shrinkage(one.cells()) for one in (method, other))
    state = method.get_extra_state()
    for older in (state | {"strength": "large"}, {key: state[key] for key in state if key != "strength"}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(method, "get_extra_state", lambda older=older: older)
            other.load_state_dict(saved(method.state_dict()))
        assert other.shrinkage(other.cells()) == wanted != before


def test_strength_is_saved_with_the_sums_that_it_belongs_to(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choosing it again would take most of the time in which a model opens."""
    method, other = (learn(make(NAME), clip, by_class(part)) for part in ([0, 1, 2], [3, 4, 5]))
    wanted = method.shrinkage(method.cells())
    other.load_state_dict(saved(method.state_dict()))
    monkeypatch.setattr(layers, "strength", lambda *_: 7.0)
    assert other.shrinkage(other.cells()) == wanted
    learn(other, clip, by_class([3]))
    assert other.shrinkage(other.cells()) == 7.0


def test_state_of_lite_is_at_most_32_megabytes(clip: Clip) -> None:
    method = make(NAME)
    method.build(clip, 1280 + 320 + 192 + 112 + 80 + 40 + 24)
    method._built = True
    assert method.state_bytes() <= 32 * 2**20
    assert method.state_dict()["gram"].numel() == 2048 * 2049 // 2
    assert len(method.state_dict()) == 4


def test_logits_are_those_of_a_discriminant_with_its_mean_length(clip: Clip) -> None:
    method = learn(make(NAME, shrinkage=1.0), clip, [EVERYTHING])
    classifier: Any = method.classifier(clip, tuple(range(6)))
    means = method.sums / 8
    offsets = means - means.mean(0)
    sigma = method.gram / 48 - means.T @ means / 6
    regular = sigma + sigma.diagonal().mean() * torch.eye(len(sigma))
    lengths = (offsets.T * torch.linalg.solve(regular, offsets.T)).sum(0).sqrt()
    assert classifier.to_logits == pytest.approx(lengths.mean().item(), rel=1e-6)


def test_priors_are_a_classes_fraction_of_the_images(clip: Clip) -> None:
    uneven = [torch.arange(48)[(torch.arange(48) % 6 < 3) | (torch.arange(48) < 24)]]
    plain, prior = (learn(make(NAME, log_priors=on), clip, uneven) for on in (False, True))
    one, other = (method.classifier(clip, tuple(range(6))) for method in (plain, prior))
    counts = torch.tensor([8, 8, 8, 4, 4, 4]) / 36
    difference: Any = (other.bias - one.bias) * other.to_logits
    assert_close(difference, counts.double().log())


def test_adapting_first_reads_a_tower_that_trains(clip: Clip) -> None:
    assert make(NAME).capabilities.depths is not None
    adapting = make(NAME, adapt="clip").capabilities
    assert (adapting.depths, adapting.reads) == (None, "pixels")


# Runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", ["auto", "off"])
def test_a_run_in_tasks_equals_joint_training(trunk: str, tmp_path: Path, toy: str, photos: str) -> None:
    tokens = (f"data={photos}", f"model={toy}", f"cache.trunk={trunk}")
    tasks = run(tmp_path / "tasks", *tokens, f"method={NAME}")
    joint = run(tmp_path / "joint", *tokens, "method=joint", f"method.loss={NAME}")
    assert tasks["last"] == joint["last"]
    assert tasks["optimizer_steps"] == joint["optimizer_steps"] == 0
    assert tasks["memory_bytes"] == 0


def test_kept_rows_are_the_pictures(tmp_path: Path, toy: str, photos: str) -> None:
    tokens = (f"data={photos}", f"model={toy}", f"method={NAME}")
    kept, computed = (run(tmp_path / trunk, *tokens, f"cache.trunk={trunk}") for trunk in ("on", "off"))
    assert kept["matrix"] == computed["matrix"]
    assert kept["zero_shot_after_stage"] == computed["zero_shot_after_stage"]


# Domains --------------------------------------------------------------------------------------------------------

DOMAINS = torch.arange(48) // 6 % 3


def of_domains(clip: Clip, which: Tensor, **options: Any) -> Any:
    """A method that has learned these pictures, in batches of seven."""
    on, method = pictures(), make(NAME, shrinkage=0.5, **options)
    method.build(clip, method.extract(clip, clip.normalise(on.images[:1])).shape[1])
    blocks = [replace(part(on, block), domains=DOMAINS[block]) for block in which.split(7)]
    method.absorb(clip, Task(0, "a task", (), images([0]), images([0])), blocks)
    return method


def nearest_cell(clip: Clip, which: Tensor, extra: float) -> Tensor:
    """The largest cosine with one of a class's means, by definition."""
    on = pictures()
    x = make(NAME).depths.read(clip.model.visual, clip.normalise(on.images)).double()
    y, domain = on.labels[which], DOMAINS[which]
    pooled = torch.stack([x[which][y == k].mean(0) for k in range(6)])
    cells = {
        (k, d): x[which][(y == k) & (domain == d)]
        for k in range(6)
        for d in range(3)
        if ((y == k) & (domain == d)).any()
    }
    centred = torch.cat([rows - rows.mean(0) for rows in cells.values()])
    sigma = centred.T @ centred / len(which)
    values, vectors = torch.linalg.eigh(sigma + 0.5 * sigma.diagonal().mean() * torch.eye(len(sigma)))
    root = vectors @ (vectors / values.sqrt()).T
    found = torch.full((48, 6), -torch.inf, dtype=torch.float64)
    for (k, _), rows in cells.items():
        mean = (rows.sum(0) + extra * pooled[k]) / (len(rows) + extra)
        direction = torch.nn.functional.normalize((mean - pooled.mean(0)) @ root, dim=0)
        found[:, k] = torch.maximum(found[:, k], (x - pooled.mean(0)) @ root @ direction)
    return found


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize("extra", [10.0, 0.5])
def test_means_of_domains_are_drawn_to_the_pool_in_any_order(
    order: list[int], extra: float, clip: Clip
) -> None:
    which = torch.cat([DOMAINS.eq(domain).nonzero()[:, 0] for domain in order])
    result = scores(of_domains(clip, which, domain_shrinkage=extra), clip)
    expected = nearest_cell(clip, torch.arange(48), extra)
    assert_close(result, expected, atol=1e-6 * expected.abs().max().item(), rtol=0)


def test_an_image_is_taken_out_of_its_domain(clip: Clip) -> None:
    method, gone = of_domains(clip, torch.arange(48)), torch.arange(40, 48)
    on = part(pictures(), gone)
    method.remove(method.rows(method.extract(clip, on.images)), on.labels, DOMAINS[gone])
    result, expected = scores(method, clip), scores(of_domains(clip, torch.arange(40)), clip)
    assert_close(result, expected, atol=1e-6 * expected.abs().max().item(), rtol=0)


def test_one_mean_for_all_domains_and_labels_asked_apart(clip: Clip) -> None:
    alone = of_domains(clip, torch.arange(48), domain_shrinkage=None)
    assert_close(scores(alone, clip), at_once(clip, alone, 0.5))
    some = of_domains(clip, (pictures().labels != 3).nonzero()[:, 0])
    mixed = scores(some, clip, [4, 3, 0])
    assert (mixed[:, 1] == -torch.inf).all()
    assert_close(mixed[:, [0, 2]], scores(some, clip)[:, [4, 0]])


def test_sums_of_domains_are_restored(clip: Clip) -> None:
    method, again = of_domains(clip, torch.arange(48)), of_domains(clip, torch.arange(6))
    again.load_state_dict(saved(method.state_dict()))
    assert torch.equal(scores(again, clip), scores(method, clip))
    assert method.state_bytes() - again.state_bytes() == 0
    width = len(method.gram)
    assert method.state_bytes() == 8 * (width**2 + 3 * 6 * width + 3 * 6)


@pytest.mark.parametrize(("device", "where"), [("meta", "meta"), ("mps", "cpu")])
def test_sums_of_domains_are_restored_where_the_model_is(device: str, where: str, clip: Clip) -> None:
    """Apple's GPUs have no fp64, and counts are used with it."""
    method, again = of_domains(clip, torch.arange(48)), of_domains(clip, torch.arange(6))
    again.kept_to(SimpleNamespace(device=torch.device(device)))
    assert not again.kept, "names that are not there yet"
    again.load_state_dict(saved(method.state_dict()))
    assert {name: kept.device.type for name, kept in again.kept.items()} == dict.fromkeys(method.kept, where)


def test_a_domain_incremental_run_stopped_and_resumed(
    tmp_path: Path, toy: str, domains: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = (f"data={domains}", f"model={toy}", f"method={NAME}", "scenario.kind=domain-incremental")
    whole, written = run(tmp_path / "whole", *tokens), Run.log

    def ending(self: Run, event: str, **fields: object) -> None:
        written(self, event, **fields)
        if event == "stage" and fields["stage"] == 2:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", ending)
        with pytest.raises(InterruptedError):
            run(tmp_path / "parts", *tokens)
    assert timeless(run(tmp_path / "parts", *tokens)) == timeless(whole)
