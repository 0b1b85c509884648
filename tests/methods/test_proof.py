"""PROOF: golden numbers of the loss and of both ways to test, and what a task freezes and keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from everclip.data.loader import Phase
from everclip.losses.contrastive import clip_loss
from everclip.methods.proof import Proof
from everclip.methods.shared.attention import Attend
from everclip.methods.shared.frozen import total
from tests.methods.closed import near
from tests.methods.plain import PROMPTS
from tests.methods.plain import batch as rows_of
from tests.methods.stages import Course, batch, same, state

F = torch.tensor([[2, 0, 1], [0, 1, 1]], dtype=torch.float64)
TEXTS = torch.tensor([[1, 0, 0], [0, 1, 0.5]], dtype=torch.float64)
MEANS = torch.tensor([[0.9, 0.1, 0.3], [0.1, 0.8, 0.4]], dtype=torch.float64)
SECOND = torch.tensor([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]], dtype=torch.float64)


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(3, 3).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_()
    return layer


def by_hand(**options: Any) -> Proof:
    """Two tasks, whose projections are the identity and a swap, with attention of identities."""
    method = Proof(Proof.Config.model_validate(options), PROMPTS)
    method.seen = method._labels = [0, 1]
    for layers in (method.image, method.words):
        layers.extend([linear(torch.eye(3)), linear(SECOND)])
    method.context.append(nn.Parameter(torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)))
    method.attend = Attend(3, 0.1).double()
    with torch.no_grad():
        for layer in (method.attend.query, method.attend.key, method.attend.value, method.attend.out):
            layer.weight.copy_(torch.eye(3))
        method.attend.out.bias.zero_()
    counts = torch.zeros(6, dtype=torch.float64)
    counts[:2] = 1
    sums = torch.cat([MEANS, torch.zeros(4, 3, dtype=torch.float64)])
    method.kept = {"sums": sums, "counts": counts, "new sums": 0 * sums, "new counts": 0 * counts}
    return method


def test_golden_loss() -> None:
    method = by_hand()
    z, (e, p) = normalize(total(method.image, F), dim=1), method.projected(TEXTS)
    fused, texts, means = method.attend(z, e, p, torch.cat([*method.context]))
    near(fused @ texts.mean(0).T, [[2.84322690, 0.44807798], [-1.17513410, 1.90467756]])
    scale = torch.tensor(10.0, dtype=torch.float64)
    features = {"z": z, "e": e, "scale": scale, "fused": fused, "text": texts.mean(0), "means": means.mean(0)}
    terms = method.loss(features, rows_of([0, 1]), Phase())
    near(torch.stack([*terms.values()]), [0.06609161, 0.09410280, 0.17671063])
    near(torch.stack([*terms.values()]).sum(), 0.33690504)
    near(clip_loss(z, e, 10.0), 0.17671063)
    third = by_hand(third="classes").loss(features, rows_of([0, 1]), Phase())["classes"]
    near(third - cross_entropy(10 * z @ e.T, torch.tensor([0, 1])), 0.0)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("batch", [[7.55143452, 2.83177247], [-3.16441634, 2.60559328]]),
        ("image", [[6.71671013, 2.90282047], [-1.68079154, 4.95007727]]),
    ],
)
@torch.no_grad()
def test_golden_scores(test: str, expected: list[list[float]]) -> None:
    method = by_hand(test=test)
    near(method.compare(F, *method.projected(TEXTS)), expected)


def test_attention_by_hand() -> None:
    attend, parts = Attend(4, 0.0), [torch.randn(n, 4) for n in (2, 3, 3, 1)]
    found = attend(*parts)
    for image in range(2):
        tokens = torch.cat([parts[0][image : image + 1], *parts[1:]])
        rows = []
        for one in tokens:
            weights = torch.stack([attend.query(one) @ attend.key(other) / 2 for other in tokens]).softmax(0)
            mixed = sum(w * attend.value(other) for w, other in zip(weights, tokens, strict=True))
            rows.append(attend.norm(one + attend.out(mixed)))
        expected = torch.stack(rows)
        for part, place in zip(found, (slice(0, 1), slice(1, 4), slice(4, 7)), strict=True):
            torch.testing.assert_close(part[image].view(-1, 4), expected[place])


@pytest.mark.parametrize("text", ["paper", "code"])
def test_what_a_task_trains_and_keeps(text: str, toy: str, photos: str) -> None:
    words = (f"data={photos}", f"model={toy}", "scenario.tasks=3", "method=proof", f"method.text={text}")
    course = Course.of(*words).learn(0)
    method = course.method
    first = [state(part[0]) for part in (method.image, method.words)]
    context = method.context[0].detach().clone()
    course.learn(1)
    assert same(state(method.image[0]), first[0])
    assert same(state(method.words[0]), first[1]) == (text == "paper")
    assert torch.equal(method.context[0], context)
    assert (method.kept["counts"] > 0).sum() == 4
    assert method.kept["new counts"].sum() == 0
    assert (course.scores(*range(6)) == -torch.inf).all(0).sum() == 2


def test_a_class_that_comes_again_has_the_mean_of_all_its_images(toy: str, domains: str) -> None:
    words = (f"data={domains}", f"model={toy}", "scenario.kind=domain-incremental", "method=proof")
    course = Course.of(*words).learn(0, 1)
    assert course.method.kept["counts"].tolist() == [4.0, 4.0, 4.0], "two of each in either task"


@pytest.mark.parametrize("classes", ["seen", "present"])
def test_absent_classes_in_the_softmax(classes: str, toy: str, photos: str) -> None:
    words = (f"data={photos}", f"model={toy}", "scenario.tasks=3", "method=proof", "method.third=classes")
    course = Course.of(*words, f"method.classes={classes}").learn(0)
    task, method = course.enter(1, memory=False), course.method
    course.phase(task, course.learner.phases(task)[0])
    on, phase = batch([*task.classes] * 2), course.learner.phases(task)[1]
    features = method.encode(course.clip, on, phase)
    among = method.seen if classes == "seen" else [*task.classes]
    where = [method.seen.index(label) for label in among]
    target = torch.tensor([among.index(label) for label in on.labels.tolist()])
    logits = {name: features["fused"] @ features[name][where].T for name in ("text", "means")}
    logits["classes"] = features["scale"] * features["z"] @ features["e"][where].T
    terms = method.loss(features, on, phase)
    assert terms.keys() == logits.keys()
    for name, found in terms.items():
        torch.testing.assert_close(found, cross_entropy(logits[name], target))
