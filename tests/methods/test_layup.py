"""LayUP: golden numbers, what it reads of a tower, and its folds."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from everclip.methods.layup import LAMS, folds
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.trunk import Parts
from tests.methods.closed import LABELS, QUERY, T, by_class, learn, make, near, pictures
from tests.methods.test_rail import P


@pytest.mark.parametrize(
    ("lam", "expected"),
    [(0.1, [0.0710277, 0.08620974, 0.65303685]), (1.0, [0.17236877, 0.19387889, 0.4154904])],
)
def test_golden(lam: float, expected: list[float], clip: Clip) -> None:
    method = make("layup", lam=lam, lam_unit="absolute", lam_choice="fixed")
    method.build(clip, 5)
    method.add(torch.cat([T, (T @ P).relu()], 1), torch.tensor(LABELS))
    weight, bias = method.solve(clip, [0, 1, 2])
    near(torch.cat([QUERY, (QUERY @ P).relu()]) @ weight + bias, expected)


@torch.no_grad()
def test_class_tokens_as_they_are(clip: Clip) -> None:
    """The tower has two blocks; the last stands first."""
    images, heard = clip.normalise(pictures(5).images), []
    hooks = [
        block.register_forward_hook(lambda *found: heard.append(found[2][:, 0]))
        for block in clip.model.visual.transformer.resblocks
    ]
    clip.encode_image(images)
    for hook in hooks:
        hook.remove()
    assert_close(make("layup").extract(clip, images), torch.cat(heard[::-1], 1))
    assert_close(make("layup", blocks=1).extract(clip, images), heard[1])


@torch.no_grad()
def test_a_convolutional_tower_s_output_is_its_last_block(convolutional: str) -> None:
    """What follows its stages may be a layer of its own: their means alone would leave the tower's features out."""
    clip, heard = zoo.load(convolutional), []
    images, visual = clip.normalise(pictures(5).images), clip.model.visual
    stage = visual.get_submodule(Parts.of(visual, "").blocks[-1])
    hook = stage.register_forward_hook(lambda *found: heard.append(found[2].mean((2, 3))))
    output = visual(images)
    hook.remove()
    assert_close(make("layup", blocks=1).extract(clip, images), output)
    assert_close(make("layup", blocks=2).extract(clip, images), torch.cat([output, *heard], 1))


def test_folds_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    assert [mask.nonzero()[:, 0].tolist() for mask in folds(labels)] == [[0, 4, 5], [1, 6], [2, 7], [3, 8]]
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 2, 0, 1, 1, 1, 2, 0, 0])  # as scikit-learn cuts them
    found = [[0, 1, 2, 5], [3, 4, 6, 8], [7, 9, 10, 13], [11, 12, 14]]
    assert [mask.nonzero()[:, 0].tolist() for mask in folds(labels)] == found


@torch.no_grad()
def test_the_strength_is_the_first_of_the_best(clip: Clip) -> None:
    """Over two tasks, written out: fitted on earlier sums and three folds, tried on the fourth."""
    tasks, on = by_class([0, 1, 2], [3, 4, 5]), pictures()
    x = make("layup").extract(clip, clip.normalise(on.images)).double()
    y = torch.nn.functional.one_hot(on.labels, 6).double()
    method = learn(make("layup"), clip, tasks)
    right = []
    for lam in LAMS:
        shares = []
        for held in folds(on.labels[tasks[1]]):
            fit = torch.cat([tasks[0], tasks[1][~held]])
            gram = x[fit].T @ x[fit] + lam * torch.eye(x.shape[1])
            guess = (x[tasks[1][held]] @ torch.linalg.solve(gram, x[fit].T @ y[fit])).argmax(1)
            shares.append((guess == on.labels[tasks[1][held]]).double().mean().item())
        right.append(round(sum(shares) / 4, 9))
    assert method.chosen.item() == LAMS[right.index(max(right))]


def test_few_images_leave_the_strength(clip: Clip) -> None:
    method = learn(make("layup"), clip, [by_class([0, 1])[0][:6]])
    assert method.chosen == 0, "none was chosen"
