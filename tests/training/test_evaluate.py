"""Scores of test images, and what is computed from them, against loops written out here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from everclip.config import config_hash
from everclip.data.loader import Loader
from everclip.data.pixels import Pixels
from everclip.data.scenario import seen
from everclip.methods.base.method import TextClassifier
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.training.evaluate import Scores, evaluate, evaluate_pretrained
from everclip.training.plan import Plan
from tests.running import configured, run, timeless


@pytest.fixture
def scores() -> Scores:
    """Three classes in the order 7, 2, 5; two tasks, the second with class 5 alone."""
    table = [[3, 1, 0], [0, 1, 9], [1, 2, 0], [0, 0, 4], [5, 0, 1]]
    truth, tasks = [7, 2, 2, 5, 5], [0, 0, 0, 1, 1]
    arrays = (np.array(tasks), np.array(truth), np.arange(10, 15))
    return Scores((7, 2, 5), *arrays, np.array(table, dtype=np.float32))


def naive(scores: Scores, among: int, rows: list[int]) -> float:
    right = 0
    for row in rows:
        best = max(range(among), key=lambda column: scores.scores[row, column])
        right += scores.labels[best] == scores.truth[row]
    return right / len(rows)


def test_accuracy_is_among_the_classes_known_by_then(scores: Scores) -> None:
    assert scores.accuracy(0, 2) == naive(scores, 2, [0, 1, 2]) == 1.0
    assert scores.accuracy(0, 3) == naive(scores, 3, [0, 1, 2]) == pytest.approx(2 / 3)
    assert scores.accuracy(1, 3) == naive(scores, 3, [3, 4]) == 0.5


def test_accuracy_up_to_a_task_weighs_images_alike(scores: Scores) -> None:
    assert scores.accuracy_up_to(0, 3) == naive(scores, 3, [0, 1, 2])
    assert scores.accuracy_up_to(1, 3) == naive(scores, 3, [0, 1, 2, 3, 4]) == 0.6
    assert [scores.count(task) for task in (0, 1)] == [3, 2]


def test_accuracy_per_class(scores: Scores) -> None:
    assert scores.per_class(3, 2) == {2: 0.5, 5: 0.5, 7: 1.0}
    assert scores.per_class(2, 1) == {2: 1.0, 7: 1.0}


def test_the_best_labels_with_margin_and_confidence(scores: Scores) -> None:
    top = scores.top(3, 2, k=2)
    assert top["top"].tolist() == [[7, 2], [5, 2], [2, 7], [5, 7], [7, 5]]
    assert top["margin"].tolist() == [2, 8, 1, 4, 4]
    assert top["id"].tolist() == [10, 11, 12, 13, 14]
    first = np.exp([3, 1, 0])
    assert top["confidence"][0] == pytest.approx(first[0] / first.sum())
    alone = scores.top(1, 1, k=5)
    assert alone["top"].tolist() == [[7], [7], [7]]
    assert np.isinf(alone["margin"]).all()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of each pass of the image tower from here on, in order."""
    passes: list[int] = []
    whole = Clip.encode_image

    def counting(self: Clip, images: torch.Tensor, *more: Any) -> torch.Tensor:
        passes.append(len(images))
        return whole(self, images, *more)

    monkeypatch.setattr(Clip, "encode_image", counting)
    return passes


def test_both_references_encode_a_test_image_once(
    tmp_path: Path, toy: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"data={photos}", f"model={toy}", "method=zero_shot", "cache.trunk=off")
    passes = counted(monkeypatch)
    run(tmp_path / "plain", *words, "references=none")
    plain = sum(passes)
    passes.clear()
    run(tmp_path / "both", *words, "references=all")
    start = json.loads((tmp_path / "both" / "metrics.jsonl").read_text().splitlines()[0])
    assert sum(passes) == plain + sum(task["train"] for task in start["tasks"])


def test_a_head_is_tested_without_dropout_and_trains_on_with_it(toy: str, photos: str) -> None:
    plan = Plan.of(configured(f"data={photos}", f"model={toy}"))
    clip = zoo.load(toy)
    loader = Loader(Pixels(plan.data.train.store, clip.eval_transform, clip.image_size, 0, 0), 4, "none", 0)
    size, classes = clip.image_size or 0, len(seen(plan.tasks))
    head = nn.Sequential(nn.Linear(3 * size**2, classes), nn.Dropout(0.5))

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images.flatten(1).float())

    found, again = (evaluate(lambda labels: Holder(), plan.tasks, loader) for _ in range(2))
    assert (found.scores == again.scores).all()
    assert all(module.training for module in head.modules())


def test_zero_shot_is_scored_as_by_the_classifier_of_texts(toy: str, photos: str) -> None:
    plan = Plan.of(configured(f"data={photos}", f"model={toy}"))
    clip = zoo.load(toy)
    loader = Loader(Pixels(plan.data.train.store, clip.eval_transform, clip.image_size, 0, 0), 4, "none", 0)
    names = [plan.prompts.names[label] for label in seen(plan.tasks)]
    weights = clip.class_embeddings(names, plan.prompts.templates).detach()
    found, features = evaluate_pretrained(clip, weights, plan.tasks, loader)
    other = evaluate(lambda labels: TextClassifier(clip, weights), plan.tasks, loader)
    assert (found.scores == other.scores).all()
    assert (found.truth == other.truth).all()
    assert (found.tasks == other.tasks).all()
    assert found.to_logits == other.to_logits
    assert [len(rows[0]) for rows in features.values()] == [len(task.test) for task in plan.tasks]
    rows, labels, _ = features[1]
    assert torch.equal(labels, torch.from_numpy(found.truth[found.tasks == 1]))
    assert torch.allclose(rows @ weights.T, torch.from_numpy(found.scores[found.tasks == 1]), atol=1e-6)


def test_the_task_ahead_can_be_left_out(
    tmp_path: Path, toy: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the forward transfer is the same, with fewer images tested; it is the same run to a sweep."""
    words = (f"data={photos}", f"model={toy}", "method=gcl", "cache.trunk=off")
    passes = counted(monkeypatch)
    whole = run(tmp_path / "whole", *words)
    most = sum(passes)
    passes.clear()
    short = run(tmp_path / "short", *words, "evaluate.ahead=false")
    start = json.loads((tmp_path / "short" / "metrics.jsonl").read_text().splitlines()[0])
    assert most - sum(passes) == sum(task["test"] for task in start["tasks"][1:])
    assert whole["forward_transfer"] is not None
    assert short["forward_transfer"] is None
    assert {**timeless(whole), "forward_transfer": None} == timeless(short)
    hashes = {config_hash(configured(*words, *more)) for more in ([], ["evaluate.ahead=false"])}
    assert len(hashes) == 1
