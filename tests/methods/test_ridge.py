"""Ridge regression and RanPAC: golden numbers, the choice of lam, class weights and the text prior."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.data.prompts import PHOTO
from everclip.data.scenario import Task
from everclip.errors import RunError, UserError
from everclip.methods.shared import closed_form
from everclip.methods.shared.closed_form import best_lam, least, spanned
from everclip.methods.shared.ridge import GRID
from everclip.models.clip import Clip
from everclip.seeding import generator
from tests.methods.closed import (
    EVERYTHING,
    LABELS,
    LAM,
    QUERY,
    T,
    brute_force,
    by_class,
    give,
    learn,
    make,
    near,
    of_rows,
    part,
    pictures,
    scores,
)
from tests.methods.plain import PROMPTS, images, saved

W = [[0.81293331, -0.30830112, 0.33345604], [-0.25707099, 0.73900239, 0.35492975]]


@pytest.mark.parametrize("blocks", [[[0, 1, 2, 3, 4, 5]], [[0, 1, 2, 3], [4, 5]], [[5], [2, 4], [0, 3, 1]]])
def test_ridge_golden_and_lam_counts_once(blocks: list[list[int]], clip: Clip) -> None:
    """Adding lam with every task would give 0.77209197 in the corner, for two tasks."""
    method = of_rows(clip, "ridge", **LAM)
    for block in blocks:
        give(method, block)
        method.solve(clip, [0, 1, 2])
    weight, bias = method.solve(clip, [0, 1, 2])
    near(weight, W)
    near(QUERY @ weight + bias, [0.25222406, 0.28925087, 0.37968587])


def test_ridge_after_the_first_of_two_tasks(clip: Clip) -> None:
    method = of_rows(clip, "ridge", **LAM)
    give(method, range(4))
    weight, bias = method.solve(clip, [0, 1, 2])
    near(weight[:, :2], [[1.03283582, -0.08358209], [-0.02985075, 0.98507463]])
    assert bias.tolist() == [0, 0, -torch.inf]


@pytest.mark.parametrize("weighted", [False, True])
def test_class_weights_golden(weighted: bool, clip: Clip) -> None:
    method, labels = of_rows(clip, "ridge", class_weights=weighted, **LAM), [0, 0, 0, 0, 1, 1]
    give(method, range(6), labels, weighted)
    plain = [[0.50463219, 0.33345604], [0.48193141, 0.35492975]]
    balanced = [[0.34556403, 0.44552546], [0.31530863, 0.47518761]]
    near(method.solve(clip, [0, 1])[0], balanced if weighted else plain)


def test_ranpac_golden(clip: Clip) -> None:
    method = of_rows(clip, "ranpac", width=3, **LAM)
    method.projection.copy_(torch.tensor([[1, -1, 0.5], [-0.5, 1, 1]]))
    method.add(method.rows(T.float()), torch.tensor(LABELS))
    weight, _ = method.solve(clip, [0, 1, 2])
    expected = [
        [1.14860526, -0.01281648, -0.50784932],
        [0.21133266, 1.02520988, -0.96733615],
        [-0.21319007, -0.0123035, 0.98089511],
    ]
    assert_close(weight, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    scores = method.rows(QUERY[None].float()) @ weight
    assert scores[0].tolist() == pytest.approx([0.06964276, 0.08949972, 0.63545737], abs=1e-6)


def naive_choice(
    rows: np.ndarray, labels: np.ndarray, past: tuple[np.ndarray, np.ndarray], seed: int, task: int
) -> float:
    """The lam of the grid with the least error on the last fifth of a random order, one solution after another."""
    order = generator(seed, "ridge", task).permutation(len(rows))
    count = int(0.8 * len(rows))
    fit, held = order[:count], order[count:]
    x = np.concatenate([rows[fit], past[0]])
    y = np.concatenate([labels[fit], past[1]])
    errors = []
    for lam in GRID:
        weight = np.linalg.solve(x.T @ x + lam * np.eye(x.shape[1]), x.T @ np.eye(6)[y])
        errors.append(np.square(rows[held] @ weight - np.eye(6)[labels[held]]).mean())
    return GRID[int(np.argmin(errors))]


@torch.no_grad()
@pytest.mark.parametrize(("choice", "width"), list(itertools.product(["task", "seen"], [0, 12, 40])))
def test_lam_is_the_best_on_held_out_images(choice: str, width: int, clip: Clip) -> None:
    """With more random features than images to fit on, and with fewer."""
    tasks, on = by_class([0, 1, 2], [3, 4, 5]), pictures()
    method = learn(make("ranpac", width=width, lam_choice=choice), clip, tasks)
    rows = method.rows(method.extract(clip, clip.normalise(on.images))).numpy()
    labels = on.labels.numpy()
    past = (rows[tasks[0]], labels[tasks[0]]) if choice == "seen" else (rows[:0], labels[:0])
    expected = naive_choice(rows[tasks[1]], labels[tasks[1]], past, on.seed, 1)
    assert method.strength() == expected
    assert method.counts.tolist() == [8] * 6, "the held-out images are learned too"
    x, lam = rows, expected
    weight = np.linalg.solve(x.T @ x + lam * np.eye(x.shape[1]), x.T @ np.eye(6)[labels])
    assert_close(method.solve(clip, list(range(6)))[0].numpy(), weight, atol=1e-6, rtol=1e-6)


def test_lam_is_kept_where_nothing_can_be_held_out(clip: Clip) -> None:
    method = learn(make("ranpac", lam_choice="task", lam=0.5), clip, [EVERYTHING[:1]])
    assert method.strength() == pytest.approx(0.5 * method.gram.trace().item() / 24)
    method = learn(make("ranpac", lam_choice="task"), clip, [EVERYTHING[1:]])
    chosen = method.strength()
    assert chosen in GRID
    method.end_task(
        clip, Task(1, "task 2", (0,), images([0]), images([0])), [part(pictures(), EVERYTHING[:1])], []
    )
    assert method.strength() == chosen


@pytest.mark.parametrize("rows", [9, 30, 400])
@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("width", [20, 160])
def test_cross_validation_is_that_of_the_hat_matrix(rows: int, noise: float, drawn: bool, width: int) -> None:
    """With far fewer rows than features, fewer, and more; with a prior and without."""
    random = np.random.default_rng(7)
    true = random.normal(size=(width, 3))
    x = random.normal(size=(rows, width)) * np.linspace(0.05, 2, width)
    y = x @ true + noise * random.normal(size=(rows, 3))
    prior = true + 0.3 * random.normal(size=true.shape) if drawn else None
    gram, cross = torch.from_numpy(x.T @ x), torch.from_numpy(x.T @ y)
    found = best_lam(
        gram, cross, np.square(y).sum(), rows, None if prior is None else torch.from_numpy(prior)
    )
    assert found == pytest.approx(brute_force(x, y, prior), rel=1e-9)
    if not drawn:  # from the products of the rows, where they are fewer than features
        values, vectors = np.linalg.eigh(x @ x.T)
        kept = values > 1e-12 * values[-1]
        explained = np.square(vectors[:, kept].T @ y).sum(1)
        spectrum = torch.from_numpy(values[kept]), torch.from_numpy(explained)
        assert least(*spectrum, values.sum() / width, np.square(y).sum(), rows) == pytest.approx(
            found, rel=1e-9
        )


def test_few_images_whose_sums_have_more_directions_are_not_taken_for_few() -> None:
    """Sums that were estimated, or are of weighted images, are solved whole."""
    random = np.random.default_rng(3)
    x, y = (torch.from_numpy(random.normal(size=(300, size))) for size in (120, 3))
    assert spanned(x[:9].T @ x[:9], 9) is not None
    assert spanned(x.T @ x, 9) is None
    counted = [best_lam(x.T @ x, x.T @ y, y.square().sum().item(), count) for count in (9, 300)]
    values, vectors = torch.linalg.eigh(x.T @ x)
    explained = (vectors.T @ (x.T @ y)).square().sum(1) / values
    unit, square = values.mean().item(), y.square().sum().item()
    assert counted == pytest.approx([least(values, explained, unit, square, count) for count in (9, 300)])


def test_cross_validation_golden(clip: Clip) -> None:
    """The six rows of two features."""
    method = of_rows(clip, "ridge")
    give(method, range(6))
    expected = brute_force(T.numpy(), np.eye(3)[LABELS])
    assert method.strength() == pytest.approx(expected, rel=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("prior", ["none", "text"])
def test_ridge_chooses_by_cross_validation_in_any_order(weighted: bool, prior: str, clip: Clip) -> None:
    options = {"class_weights": weighted, "prior": prior}
    on = pictures()
    known = [0, 1, 2, 3, 4]
    images_of = torch.cat([by_class([label])[0] for label in known])
    x = make("ridge").extract(clip, clip.normalise(part(on, images_of).images)).double().numpy()
    labels = on.labels[images_of].numpy()
    root = np.sqrt(1 / np.bincount(labels)[labels])[:, None] if weighted else 1.0
    rows, y = root * x, root * np.eye(len(PROMPTS.names))[labels]
    text = None
    if prior == "text":
        names = [name if label in known else None for label, name in enumerate(PROMPTS.names)]
        embeddings = clip.class_embeddings(list(PROMPTS.names), PROMPTS.templates).double().numpy()
        text = np.where([[name is not None] for name in names], embeddings, 0.0).T
        text = text * ((rows.T @ y) * text).sum() / (text * (rows.T @ rows @ text)).sum()
    expected = brute_force(rows, y, text)
    for order in ([[0, 1], [2, 3, 4]], [[4], [0, 2], [1, 3]]):
        method = learn(make("ridge", **options), clip, by_class(*order))
        method.solve(clip, known)
        assert method.strength() == pytest.approx(expected, rel=1e-6)
    fixed = learn(make("ridge", **options, lam=0.7), clip, by_class(known))
    assert fixed.strength() == pytest.approx(0.7 * fixed.gram.diagonal().mean().item())


@pytest.mark.parametrize("choice", ["fixed", "task", "seen"])
def test_class_weights_make_classes_count_alike(choice: str, clip: Clip) -> None:
    """A class whose images are all there three times weighs no more."""
    options = {"class_weights": True, "lam_choice": choice}
    rare, often = EVERYTHING, torch.cat([EVERYTHING, *[by_class([0, 1])[0]] * 2])
    first, second = (learn(make("ridge", **options), clip, [which]) for which in (rare, often))
    assert_close(first.gram, second.gram)
    assert_close(first.sums, second.sums)
    assert second.counts.tolist() == [24, 24, 8, 8, 8, 8]
    if choice == "fixed":
        assert_close(scores(first, clip), scores(second, clip))


def test_absolute_lam_with_class_weights_is_on_the_scale_of_mean_weight_1(clip: Clip) -> None:
    which = torch.cat([EVERYTHING, *[by_class([0, 1])[0]] * 2])
    method = learn(make("ridge", class_weights=True, **LAM), clip, [which])
    on = part(pictures(), which)
    with torch.no_grad():
        x = method.rows(method.extract(clip, clip.normalise(on.images)))
    counts = on.labels.bincount()[on.labels].double()
    weights = 1 / counts / ((1 / 24 * 2 + 1 / 8 * 4) / 6)
    gram = (x * weights[:, None]).T @ x + 0.1 * torch.eye(16)
    expected = torch.linalg.solve(gram, (x * weights[:, None]).T @ method.summed.targets(on.labels))
    assert_close(method.solve(clip, list(range(6)))[0], expected, atol=1e-6, rtol=1e-6)


def test_absolute_lam_with_class_weights_when_classes_come_again(clip: Clip) -> None:
    """Each half of a class's images weighs 1 in all, which is no other problem than all of them together."""
    options = {"class_weights": True, **LAM, "lam_choice": "fixed"}
    once, twice = (
        learn(make("ridge", **options), clip, tasks) for tasks in ([EVERYTHING], EVERYTHING.split(24))
    )
    assert_close(twice.gram, 2 * once.gram)
    assert_close(scores(twice, clip), scores(once, clip))
    again = learn(make("ridge", **options), clip, [EVERYTHING[:6]])
    again.load_state_dict(saved(twice.state_dict()))
    assert again.strength() == twice.strength() == 2 * once.strength()
    state = saved(twice.state_dict())
    del state["_extra_state"]["met"]
    again.load_state_dict(state)
    assert again.strength() == once.strength(), "as a state from before is read"


def text(clip: Clip, labels: Sequence[int]) -> Tensor:
    return clip.class_embeddings([PROMPTS.names[label] for label in labels], [PHOTO]).detach().double()


def test_text_prior_is_zero_shot_at_a_large_lam(clip: Clip) -> None:
    method = learn(make("ridge", prior="text", lam=1e9, kappa=2.0), clip, by_class([0, 1]))
    with torch.no_grad():
        cosines = clip.encode_image(pictures().images).double() @ text(clip, range(6)).T
    assert_close(scores(method, clip), 2 * cosines, atol=1e-6, rtol=0)


@pytest.mark.parametrize("unseen", ["solved", "text"])
def test_text_prior_and_labels_never_trained(unseen: str, clip: Clip) -> None:
    method = learn(make("ridge", prior="text", unseen=unseen), clip, by_class([0, 3], [1]))
    gram, lam = method.gram, method.strength()
    kappa_e = text(clip, [0, 1, 3]).T
    cross = method.sums[[0, 1, 3]].T
    kappa = (cross * kappa_e).sum() / (kappa_e * (gram @ kappa_e)).sum()
    regular = gram + lam * torch.eye(len(gram))
    weight, bias = method.solve(clip, [5, 0, 1, 3])
    expected = torch.linalg.solve(regular, cross + lam * kappa * kappa_e)
    assert_close(weight[:, 1:], expected, atol=1e-6, rtol=1e-6)
    never = kappa * text(clip, [5])[0]
    if unseen == "solved":
        never = never - torch.linalg.solve(regular, gram @ never)
    assert_close(weight[:, 0], never, atol=1e-6, rtol=1e-6)
    assert bias.tolist() == [0] * 4


@pytest.mark.parametrize("options", [{"expand": 8}, {"feature": "pooled"}])
def test_text_prior_needs_features_of_the_text(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"method\.prior=text needs .* use method\.feature=projected"):
        make("ridge", prior="text", **options)


def test_the_random_layer_is_acils_and_ranpacs(clip: Clip) -> None:
    torch.manual_seed(0)
    uniform, normal = make("ridge").draw(16, 5000), make("ranpac").draw(16, 5000)
    assert uniform.abs().max() <= 0.25
    assert uniform.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.02)
    assert normal.std().item() == pytest.approx(1, rel=0.02)
    assert make("ranpac", width=0).random_features == 0


def test_features_that_are_not_finite_are_one_line() -> None:
    gram = torch.eye(3, dtype=torch.float64)
    gram[1, 1] = torch.nan
    for solve in (
        lambda: closed_form.ridge(gram, gram, 0.1),
        lambda: closed_form.Spectrum.of_gram(gram, gram),
    ):
        with pytest.raises(RunError, match=r"^image features are not finite"):
            solve()
