"""ENGINE: golden numbers, its loss against loops, the rule of all images together, and a file of differences."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from everclip.errors import UserError
from everclip.losses.contrastive import clip_loss
from everclip.methods.shared.described import compared
from everclip.methods.shared.gaussian import Rule
from tests.methods.closed import LABELS, QUERY, T, near, on_apples_gpu
from tests.methods.stages import Course, batch

IMAGES = torch.tensor([[1, 0], [0.6, 0.8], [0.8, 0.6]], dtype=torch.float64)


def course_of(toy: str, photos: str, *options: str) -> Course:
    return Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=3", "method=engine", *options)


def test_golden_losses() -> None:
    texts = torch.tensor([[1, 0], [0, 1], [1, 0]], dtype=torch.float64)
    near(clip_loss(IMAGES, texts, math.log(100)), 0.71957656)
    near(clip_loss(IMAGES, texts, 100.0), 3.5643824)


def test_golden_rule() -> None:
    kept: dict[str, Tensor] = {}
    for block in ([0, 1, 2, 3], [4, 5]):
        Rule(kept).add(6, T[block], torch.tensor(LABELS)[block])
    near(Rule(kept).scorer([0, 1, 2])(QUERY[None])[0], [33.25020392, 29.31635101, 45.23881304])


def test_golden_rule_of_the_code() -> None:
    kept: dict[str, Tensor] = {}
    for block in ([0, 1, 2, 3], [4, 5]):
        Rule(kept).add(6, T[block], torch.tensor(LABELS)[block], running=True)
    near(kept["rule mixed"], [[120.84144042, 23.43613405], [23.43613405, 84.95661648]])


def test_the_rule_of_rows_on_apples_gpus_is_beside_them() -> None:
    kept: dict[str, Tensor] = {}
    Rule(kept).add(6, on_apples_gpu(4, 2), on_apples_gpu(4).long())
    assert {value.device.type for value in kept.values()} == {"cpu"}, "there is no fp64"


@pytest.mark.parametrize("scale", ["log", "exp"])
def test_the_loss_by_hand(scale: str, toy: str, photos: str) -> None:
    course = course_of(toy, photos, f"method.scale={scale}", "method.image_loss=cosine").learn(0)
    task = course.enter(1)
    method, (phase,) = course.method, course.learner.phases(task)
    method.begin_phase(course.clip, phase)
    on = course.sample(task)
    features = method.encode(course.clip, on, phase)
    assert len(features["f"]) == len(on) + 2, "each old class once more"
    terms = method.loss(features, on, phase)

    def made(layers: Any, rows: Tensor) -> Tensor:
        return torch.stack([normalize(layers.whole(row) + layers.newest(row), dim=0) for row in rows])

    z, t = made(method.image, features["f"]), made(method.words, features["e"])
    factor = features["scale"].log() if scale == "log" else features["scale"]
    sides = []
    for i in range(len(z)):
        rows = torch.stack([factor * z[i] @ other for other in t])
        columns = torch.stack([factor * other @ t[i] for other in z])
        sides.append(-(rows.log_softmax(0)[i] + columns.log_softmax(0)[i]) / 2)
    assert_close(terms["clip"], torch.stack(sides).mean(), rtol=1e-4, atol=1e-5)
    cosine = torch.stack([a @ b for a, b in zip(z, features["noisy"], strict=False)]).mean()
    assert_close(terms["image"], -0.5 * cosine, rtol=1e-4, atol=1e-6)


def test_earlier_layers_are_summed_and_stay(toy: str, photos: str) -> None:
    course = course_of(toy, photos).learn(0)
    first = course.method.image.newest.weight.detach().clone()
    task = course.enter(1)
    assert torch.equal(course.method.image.whole.weight, first)
    assert not torch.equal(course.method.image.newest.weight, first)
    course.phase(task, course.learner.phases(task)[0])
    course.leave(task)
    assert torch.equal(course.method.image.whole.weight, first)


def test_scores_are_a_mixture(toy: str, photos: str) -> None:
    rule, cosines, both = (
        course_of(toy, photos, f"method.rule={q}").learn(0).scores(*range(6)) for q in (1, 0, 0.25)
    )
    known = torch.isfinite(rule).all(0)
    assert known.sum() == 2
    assert_close(both[:, known], 0.25 * rule[:, known] + 0.75 * cosines[:, known], rtol=1e-4, atol=1e-6)


def test_a_file_of_differences(toy: str, photos: str, tmp_path: Path) -> None:
    plan = course_of(toy, photos).plan
    names = plan.prompts.names
    (tmp_path / "words.json").write_text(
        json.dumps({one: {o: ["ears", "a tail"] for o in names} for one in names})
    )
    course = course_of(toy, photos, f"method.descriptions={tmp_path / 'words.json'}", "method.image_weight=0")
    task = course.enter(0)
    method, (phase,) = course.method, course.learner.phases(task)
    update, on = course.update(phase), course.sample(task)
    assert {"clip", "said"} == course.step(update, on, phase).keys()
    features = method.encode(course.clip, on, phase)
    assert len(features["said"]) == len(on)
    course.leave(task)
    assert course.scores(*range(6)).isfinite().all(0).sum() == 2
    task = course.enter(1)
    (phase,) = course.learner.phases(task)
    method.begin_phase(course.clip, phase)
    on = course.sample(task)
    features = method.encode(course.clip, on, phase)
    labels = [*on.labels.tolist(), *course.plan.tasks[0].classes]
    assert_close(features["told"], method.words_seen(course.clip)[method.places(torch.tensor(labels))])
    with torch.no_grad():
        texts = [
            course.clip.encode_text([f"{names[k]} with {d}" for k in labels]) for d in ("ears", "a tail")
        ]
    for place, row in enumerate(features["said"]):
        assert any(torch.allclose(row, text[place], atol=1e-5) for text in texts), "without a template"


def test_a_class_without_images_leaves_others_their_differences(
    toy: str, photos: str, tmp_path: Path
) -> None:
    plan = course_of(toy, photos).plan
    names, file = plan.prompts.names, tmp_path / "words.json"
    file.write_text(json.dumps({one: {other: [f"the ears of {other}"] for other in names} for one in names}))
    options = ("method.rule=0", "method.rerank=1", "method.image_weight=0", f"method.descriptions={file}")
    course = Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=2", "method=engine", *options)
    first, *others = course.enter(0).classes
    course.method.end_task(course.clip, course.plan.tasks[0], [batch(others * 2)], [])
    said = [f"{names[one]} with the ears of {names[other]}" for one, other in (others, others[::-1])]
    with torch.no_grad():
        expected = course.clip.encode_image(course.images()) @ course.clip.encode_text(said).T
    assert_close(course.scores(*others), expected)
    assert course.scores(first).isinf().all()


def test_differences_by_hand() -> None:
    """For each draw, the cosine with the sum of a class's texts; of the best five classes alone."""
    random = torch.Generator().manual_seed(0)
    z, table = torch.tensor([[0.6, 0.8, 0.0]]), torch.randn(3, 6, 6, 3, generator=random)
    table = table * (1 - torch.eye(6))[:, :, None]
    cosines = torch.tensor([[0.1, 0.6, 0.5, 0.4, 0.3, 0.2]])
    found = compared(z, cosines, table)[0]
    assert found[0] == 0, "not among the best five"
    for k in range(1, 6):
        sums = [sum(table[draw, k, j] for j in range(1, 6) if j != k) for draw in range(3)]
        expected = np.mean([float(z[0] @ one) / float(torch.as_tensor(one).norm()) for one in sums])
        assert found[k].item() == pytest.approx(expected, rel=1e-5)


def test_the_table_of_differences(toy: str, photos: str, tmp_path: Path) -> None:
    """Embeddings as the text tower gives them; a class with fewer than three differences has them again."""
    plan, file = course_of(toy, photos).plan, tmp_path / "words.json"
    first, second = (plan.prompts.names[label] for label in plan.tasks[0].classes)
    file.write_text(json.dumps({first: {second: ["ears", "a tail"]}}))
    course = course_of(toy, photos, f"method.descriptions={file}")
    course.enter(0)
    table = course.method.table(course.clip)
    texts = course.clip.tokenize([f"{first} with {words}" for words in ("ears", "a tail", "ears")])
    with torch.no_grad():
        assert_close(table[:, 0, 1], course.clip.text(texts))
    assert (table[:, 0, 1].norm(dim=1) - 1).abs().min() > 1e-3, "not of unit length"
    assert not table[:, 1].any()
    assert not table[:, 0, 0].any()


@pytest.mark.parametrize("content", ["[1]", '{"class_0": 3}', '{"class_0": {"class_1": [3]}}', "{"])
def test_what_is_no_file_of_differences(content: str, toy: str, photos: str, tmp_path: Path) -> None:
    name = course_of(toy, photos).plan.prompts.names[0]
    (tmp_path / "words.json").write_text(content.replace("class_0", name))
    with pytest.raises(UserError, match=r"^method\.descriptions=.*words\.json"):
        course_of(toy, photos, f"method.descriptions={tmp_path / 'words.json'}")
