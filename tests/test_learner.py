from __future__ import annotations

import copy
import gc
import importlib.machinery
import json
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import rich.console
import torch
from PIL import Image

import everclip
from everclip.cli.app import main
from everclip.data import load
from everclip.data.gathered import Encoded
from everclip.data.given import checked, encoded, lines, named, several, to_test
from everclip.errors import RunError, UserError, check_range
from everclip.inference.learned import is_version
from everclip.seeding import unchanged
from everclip.system import progress
from everclip.updating.versions import rollback
from tests.learned import coloured
from tests.pictures import COLOURS, image_folder, picture

COLD = {"blue": (40, 60, 220), "green": (40, 180, 60)}


def pictures(names: list[str], seed: int = 0, count: int = 6) -> tuple[list[Image.Image], list[str]]:
    """Noisy pictures of colours, and their names."""
    found = [
        (picture(COLOURS[name], seed + 100 * i + n), name)
        for i, name in enumerate(names)
        for n in range(count)
    ]
    return [image for image, _ in found], [name for _, name in found]


class Damaged(Image.Image):
    """Raises what a decoder of Pillow may when a picture is read at last."""

    def __init__(self) -> None:
        super().__init__()
        self._size, self._mode = (4, 4), "RGB"

    def load(self) -> None:
        raise SyntaxError("broken PNG file")


@pytest.fixture
def learner(toy: str) -> everclip.Learner:
    return everclip.Learner(toy, progress=False, exemplars=4)


def test_it_learns_grows_saves_and_loads(learner: everclip.Learner, tmp_path: Path) -> None:
    images, labels = pictures(["red", "black", "white"])
    assert learner.learn(images, labels) is learner
    assert learner.classes == ["red", "black", "white"]
    verdict = learner.update(*pictures(["blue"]), test=pictures(["red", "blue"], 5000, 3))
    assert verdict["gate"]["passed"]
    assert verdict["test"]["images"] == 6
    found = learner.predict_proba(images)
    assert found.shape == (18, 4)
    np.testing.assert_allclose(found.sum(1), 1)
    assert [learner.classes[i] for i in found.argmax(1)] == learner.predict(images)
    again = everclip.Learner.load(learner.save(tmp_path / "colours"), progress=False)
    np.testing.assert_allclose(again.predict_proba(images), found, atol=1e-5)
    images[0].save(tmp_path / "p.png")
    assert main(["predict", str(tmp_path / "colours"), str(tmp_path / "p.png")]) == 0
    assert main(["rollback", str(tmp_path / "colours")]) == 2  # no class was known before
    again.update(*pictures(["green"]))
    again.save(tmp_path / "more")
    assert main(["rollback", str(tmp_path / "more")]) == 0
    assert everclip.Learner(str(tmp_path / "more"), progress=False).classes == learner.classes


def test_each_save_goes_back_to_the_one_before(learner: everclip.Learner, tmp_path: Path) -> None:
    learner.learn(*pictures(["red", "black"]))
    learner.save(tmp_path / "v1")
    learner.update(*pictures(["blue"]))
    for name in ("v2", "copy"):  # without an update between them both are the same version
        learner.save(tmp_path / name)
        assert everclip.Learner(str(tmp_path / name / "before")).classes == ["red", "black"]
    learner = everclip.Learner(str(tmp_path / "v2"), progress=False)
    for name in ("green", "white"):
        learner.update(*pictures([name]))
        learner.save(tmp_path / name)
    assert everclip.Learner(str(tmp_path / "white" / "before")).classes == ["red", "black", "blue", "green"]
    for seed in (50, 60):
        learner.learn(*pictures(["red"], seed))
    learner.save(tmp_path / "last")
    record = json.loads((tmp_path / "last" / "update.json").read_text())
    assert record["parent"] == {"spec": str(tmp_path / "white"), "version": 4}
    assert (record["version"], len(record["history"])) == (6, 6)
    assert main(["rollback", str(tmp_path / "white")]) == 0


def test_the_version_before_is_found_from_another_folder_or_missed(
    learner: everclip.Learner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    learner.learn(*pictures(["red", "black"]))
    learner.save("v1")
    for known in (learner, everclip.Learner.load("v1", progress=False, exemplars=4)):
        monkeypatch.chdir(tmp_path)
        known.update(*pictures(["blue"]))
        monkeypatch.chdir(tmp_path / "other")
        out = tmp_path / f"next{known is learner}"
        known.save(out)
        assert is_version(out / "before")
        assert str(tmp_path) not in (out / "update.json").read_text()
    known.update(*pictures(["green"]))
    out.rename(tmp_path / "moved")
    known.save("v3")
    said = f"{out} is missing: v3 keeps no previous version, and lacks 8 images that were kept to learn from"
    assert f"{said} (put it back, and" in caplog.messages[-1]
    assert not Path("v3", "before").exists()
    (tmp_path / "moved").rename(out)
    assert is_version(known.save("v4") / "before")
    kept = [len(everclip.Learner.load(name)._state.exemplars) for name in ("v3", "v4")]
    assert kept[0] < kept[1] == len(known._state.exemplars)


def test_what_was_learned_is_saved_though_the_version_before_was_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner = everclip.Learner("features:8", progress=False, exemplars=4)
    first, second = tmp_path / "v1", tmp_path / "v2"
    for name, folder in (("a", first), ("b", second)):
        found, labels = rows([name])
        learner.learn(features=found, labels=labels)
        shutil.rmtree(first, ignore_errors=True)
        learner.save(folder)
    assert caplog.messages[-1].startswith(f"{first} is missing: {second} keeps no previous version (put it")
    again = everclip.Learner.load(second, progress=False, exemplars=4)
    assert again.classes == ["a", "b"]
    assert sorted(again._state.exemplars.ids) == sorted(learner._state.exemplars.ids)  # as they are in memory
    found, labels = rows(["c"])
    again.learn(features=found, labels=labels)
    before = again.predict_proba(features=found)
    second.rename(tmp_path / "moved")
    last = everclip.Learner.load(again.save(tmp_path / "v3"), progress=False)
    assert "and lacks 8 images that were kept to learn from (put it back" in caplog.text
    assert last.classes == ["a", "b", "c"]
    np.testing.assert_array_equal(last.predict_proba(features=found), before)
    assert set(last._state.exemplars.labels) == set(last._state.checks.labels) == {2}
    assert last.learn(features=rows(["d"])[0], labels=["d"] * 12).classes == ["a", "b", "c", "d"]
    with pytest.raises(UserError, match="or the one before it was missing"):
        rollback(tmp_path / "v3")
    (tmp_path / "moved").rename(second)
    again.save(tmp_path / "v4")
    for folder, kept in (("v3", 4), ("v4", 12)):  # the verdict counts what was written
        verdict = json.loads((tmp_path / folder / "verdict.json").read_text())
        assert verdict["memory"]["exemplars"] + verdict["memory"]["checks"] == kept
        assert verdict["memory"]["bytes"] == 32 * kept
        assert (
            f"{verdict['memory']['exemplars']} exemplars" in (tmp_path / folder / "verdict.html").read_text()
        )


def test_a_kept_image_whose_file_has_gone_is_named_and_nothing_is_written(toy: str, tmp_path: Path) -> None:
    learner = everclip.Learner(toy, progress=False, exemplars=2)
    photos = image_folder(tmp_path / "photos", {"train": 4, "test": 2})
    learner.learn(load(f"imagefolder:{photos}"))
    photos.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"/\d\.png cannot be read \(No such file .*\): put it back"):
        learner.save(tmp_path / "v1")
    assert not (tmp_path / "v1").exists()
    (tmp_path / "moved").rename(photos)
    assert is_version(learner.save(tmp_path / "v1"))


def test_an_earlier_version_may_go_once_a_later_one_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def learn(learner: everclip.Learner, name: str) -> None:
        found, labels = rows([name])
        learner.learn(features=found, labels=labels)

    first = everclip.Learner("features:8", progress=False, exemplars=4)
    learn(first, "a")
    first.save(tmp_path / "v1")
    (learner, other) = (everclip.Learner(str(tmp_path / "v1"), progress=False, exemplars=4) for _ in range(2))
    for name in "bc":
        learn(learner, name)
        learn(other, name)
        if name == "b":
            learner.save(tmp_path / "v2")
    (tmp_path / "v1").rename(tmp_path / "moved")
    learner.save(tmp_path / "v3")
    shutil.rmtree(tmp_path / "v2")
    learner.save(tmp_path / "v4")  # the same version again, without the one before
    assert [text for text in caplog.messages if "lacks" in text or "cannot be read" in text] == []
    (tmp_path / "moved").rename(tmp_path / "v1")
    learn(learner, "d")
    learn(other, "d")
    for mine, others in (
        (learner._state.exemplars, other._state.exemplars),
        (learner._state.checks, other._state.checks),
    ):
        np.testing.assert_array_equal(mine.ids, others.ids)
        np.testing.assert_array_equal(mine.labels, others.labels)
    found, _ = rows(["a", "b", "c", "d"], 1)
    np.testing.assert_array_equal(learner.predict_proba(features=found), other.predict_proba(features=found))


def test_the_callers_random_state_stays(toy: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    learner = everclip.Learner(toy, classes=["red", "black"], progress=False, method="trained")
    images, labels = pictures(["red", "black"])
    learner.learn(images, labels).update(*pictures(["blue"]))
    learner.partial_fit(*pictures(["green"])).predict(images)
    everclip.Learner.load(learner.save(tmp_path / "v1"), progress=False).embed(images)
    assert torch.get_rng_state().equal(state)


def test_the_callers_random_state_stays_when_threads_learn_at_once() -> None:
    state = torch.get_rng_state()
    first, second, alone = Event(), Event(), Event()

    def leave_last() -> None:
        assert first.wait(60)
        with unchanged():
            torch.manual_seed(2)
            second.set()
            assert alone.wait(60)

    with ThreadPoolExecutor(1) as threads:
        last = threads.submit(leave_last)
        with unchanged():
            torch.manual_seed(1)
            first.set()
            assert second.wait(60)
        alone.set()
        last.result()
    assert torch.get_rng_state().equal(state)


def test_an_image_may_be_unknown(learner: everclip.Learner) -> None:
    images, labels = pictures(["red", "black", "white"], count=40)
    learner.learn(images, labels)
    mixed = images[:9] + pictures(["blue", "green"], 5000)[0]
    plain, found = learner.predict(mixed), learner.predict(mixed, unknown_at=0.5)
    assert all(new in (None, old) for old, new in zip(plain, found, strict=True))
    assert 0 < found.count(None) < len(mixed)
    assert learner.predict(mixed, unknown_at=0.04).count(None) <= found.count(None)
    assert learner.predict(mixed, unknown_at="50%") == found
    with pytest.raises(
        UserError, match="a rate of 1 % needs 99 held-out images of known classes, 75 more"
    ) as said:
        learner.predict(images, unknown_at=0.01)
    assert "give 99 with save(FOLDER), everclip predict FOLDER --calibrate DATA and Learner.load" in str(
        said.value
    )
    for wrong, shown in ((5, "5"), (10**400, "10+..."), ("5", '"5"'), ("5%%", '"5%%"'), ("much", '"much"')):
        with pytest.raises(UserError, match=f"unknown_at is {shown}: use a rate of false alarms above 0"):
            learner.predict(images, unknown_at=wrong)


def test_every_kind_of_image_is_the_same_picture(learner: everclip.Learner, tmp_path: Path) -> None:
    images, labels = pictures(["red", "black"])
    learner.learn(images, labels)
    one = images[0]
    one.save(tmp_path / "p.png")
    kinds = [
        one,
        np.asarray(one),
        tmp_path / "p.png",
        str(tmp_path / "p.png"),
        (tmp_path / "p.png").read_bytes(),
    ]
    found = learner.predict_proba(kinds)
    assert np.abs(found - found[0]).max() < 1e-9
    stacked = learner.predict_proba(np.stack([np.asarray(one)] * 2))
    np.testing.assert_allclose(stacked[0], found[0], atol=1e-9)


def test_a_dataset_has_its_own_labels(learner: everclip.Learner, tmp_path: Path) -> None:
    from everclip import data

    found = data.load(coloured(tmp_path / "cold", COLD, 6))
    learner.learn(found)
    assert learner.classes == ["blue", "green"]
    assert len(learner.predict(found)) == 12
    with pytest.raises(UserError, match="its own labels"):
        learner.learn(found, ["blue"])
    with pytest.raises(UserError, match=r"test is not a pair .* or a Dataset"):
        to_test((found, None), None)


def test_a_stream_is_learned_when_it_is_asked(learner: everclip.Learner) -> None:
    images, labels = pictures(["red", "black", "white"])
    for start in range(0, 18, 4):
        learner.partial_fit(images[start : start + 4], labels[start : start + 4])
    assert learner.classes == ["red", "black", "white"]
    learner.partial_fit(*pictures(["blue"], 900, 2))
    assert len(learner.predict(images)) == 18
    assert learner.classes[-1] == "blue"


def test_a_gate_leaves_the_learner_as_it_was(toy: str) -> None:
    learner = everclip.Learner(toy, progress=False, exemplars=4)
    learner.learn(*pictures(["red", "black"]))
    before = learner.predict_proba(pictures(["red"])[0])
    swapped = pictures(["red", "black"], 7000, 40)
    names = {"red": "blue", "black": "green"}
    test = pictures(["red", "black"], 9000, 4)
    verdict = learner.update(swapped[0], [names[n] for n in swapped[1]], test=test, max_drop=0)
    assert not verdict["gate"]["passed"]
    assert learner.classes == ["red", "black"]
    np.testing.assert_array_equal(learner.predict_proba(pictures(["red"])[0]), before)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([picture((9, 9, 9), 1)], ["a", "b"], "1 images and 2 labels"),
        ([], [], "0 images and 0 labels"),
        ([picture((9, 9, 9), 1)], [" "], "label 0 is empty"),
        ([np.zeros((4, 4, 3))], ["a"], "image 0 is float64"),
        ([7], ["a"], "image 0 is a int: give a path"),
        (["gone.png"], ["a"], "gone.png cannot be read"),
        ([b"no picture"], ["a"], 'no image of "a"'),
        ("abc", ["a"] * 3, r"images is one image: give a list of images, or an array \[n, h, w, 3\]"),
        (b"abc", ["a"] * 3, "images is one image"),
        (np.asarray(picture((9, 9, 9), 1)), ["a"] * 32, "images is one image"),
        (torch.zeros(8, 8, dtype=torch.uint8), ["a"] * 8, "images is one image"),
        ([np.zeros((0, 4, 3), np.uint8)], ["a"], "image 0 has no pixels: leave it out"),
        ([torch.zeros(4, 4, 3, dtype=torch.bfloat16)], ["a"], r"image 0 is float32 \[4, 4, 3\]: give uint8"),
        (["~nobody-of-this-name/a.png"], ["a"], "~nobody-of-this-name/a.png cannot be read"),
        (["a\0.png"], ["a"], "cannot be read"),
        ([Damaged()], ["a"], r"image 0 cannot be read \(.+\): leave it out"),
        ([picture((9, 9, 9), 1)] * 3, "cat", 'labels is one text, "cat": give a list'),
        ([picture((9, 9, 9), 1)], np.array("cat"), 'labels is one ndarray, "cat": give a list'),
        ([picture((9, 9, 9), 1)], [None], "label 0 is missing: give one class name per image"),
        ([picture((9, 9, 9), 1)], np.array([np.nan]), "label 0 is missing"),
        ([picture((9, 9, 9), 1)], [[0]], "label 0 is a list"),
    ],
)
def test_what_is_no_image_is_said(images: Any, labels: Any, message: str, learner: everclip.Learner) -> None:
    with pytest.raises(UserError, match=message):
        learner.learn(images, labels)


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (Path("a.png"), "one image"),
        (picture((9, 9, 9), 1), "one image"),
        (iter(["a.png"]), "a list_iterator"),
        (np.array(Path("a.png"), dtype=object), "a ndarray"),
    ],
)
def test_what_is_no_list_of_images_is_said(images: Any, what: str) -> None:
    with pytest.raises(UserError, match=f"images is {what}: give a list of images"):
        several(images)


def test_labels_may_be_tensors_and_images_paths_in_an_array(
    learner: everclip.Learner, tmp_path: Path
) -> None:
    images, labels = pictures(["red", "black"])
    learner.learn(images, torch.tensor([label == "red" for label in labels]).int())
    assert learner.classes == ["1", "0"]
    images[0].save(tmp_path / "p.png")
    assert learner.predict(np.array([str(tmp_path / "p.png")])) == learner.predict(images[:1])


def test_a_number_is_one_class_however_it_is_given(tmp_path: Path) -> None:
    found, _ = rows(["a", "b"], count=4)
    labels = [1, 1.0, np.float32(1), torch.tensor(1.0), 0.5, np.float64(0.5), torch.tensor(0.5), "0.5"]
    learner = everclip.Learner("features:8", progress=False)
    assert learner.learn(features=found, labels=labels).classes == ["1", "0.5"]
    learner.partial_fit(features=found + 1, labels=torch.tensor([2.0] * 8).bfloat16())
    assert learner.update(features=found + 2, labels=["3.0"] * 8, test=(found + 9, [1.0] * 4 + [0.5] * 4))[
        "test"
    ]
    assert learner.classes == ["1", "0.5", "2", "3.0"]
    learner.learn(features=found + 3, labels=np.full(8, 3.0))  # as an earlier release called it
    assert learner.partial_fit(features=found + 4, labels=[3.0] * 8).classes == ["1", "0.5", "2", "3.0"]
    learner.learn(features=found + 5, labels=np.full(8, 3))
    assert learner.classes == ["1", "0.5", "2", "3.0"]
    learner.partial_fit(features=found + 6, labels=["4.0"] * 8)  # waits
    assert learner.partial_fit(features=found + 7, labels=[4, 4.0] * 4).classes[4:] == ["4.0"]
    verdict = learner.update(features=found + 8, labels=["5.0"] * 8, test=(found + 10, [5, 5.0] * 4))
    assert verdict["test"]["images"] == 8
    assert named([1, 1.0, True], ("label", "labels"), "names", ["1", "1.0"]) == ["1", "1.0", "True"]


def test_two_spellings_in_one_batch_are_warned_of(
    learner: everclip.Learner, caplog: pytest.LogCaptureFixture
) -> None:
    found, labels = rows(["a", "A", "b"])
    of_rows = everclip.Learner("features:8", progress=False)  # which has no text tower
    assert of_rows.partial_fit(features=found, labels=labels).classes == ["a", "A", "b"]
    images, _ = pictures(["red", "black", "white"])
    names = [name for name in ("a", "A", "b") for _ in range(6)]
    learner.partial_fit(images[:6], names[:6])
    assert learner.partial_fit(images[6:], names[6:]).classes == ["a", "A", "b"]
    learner.update(*pictures(["blue"]), test=(pictures(["red", "black", "white"], 5000)[0], names))
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert 'read the classes "a" and "A" alike: rename one' in said


def test_the_classes_may_be_numbers_or_an_array(toy: str) -> None:
    for classes, names in (([1, 2.0, "b"], ["1", "2", "b"]), (np.array(["a", "b"]), ["a", "b"]), ([], [])):
        assert everclip.Learner(toy, classes=classes, progress=False).classes == names
    with pytest.raises(UserError, match=r'^classes is one text, "cat": give a list, one name per class$'):
        everclip.Learner(toy, classes="cat")
    with pytest.raises(UserError, match=r"^class 1 is missing: give one name per class$"):
        everclip.Learner(toy, classes=["a", None])
    with pytest.raises(UserError, match='classes 1 and 2 of the classes given are both named "1"'):
        everclip.Learner(toy, classes=[1, 1.0])


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "F", "PA", "L", "I;16"])
def test_a_picture_in_memory_is_what_its_file_would_be(
    learner: everclip.Learner, tmp_path: Path, mode: str
) -> None:
    learner.learn(*pictures(["red", "black"]))
    image = picture((200, 90, 20), 1)
    if mode == "PA":
        image = image.convert("P")
    elif mode == "I;16":
        image = image.convert("L").convert("I")
    image = image.convert(mode)
    suffix = "png" if mode in ("L", "I;16") else "tiff"
    if mode == "PA":  # no format keeps it
        image.convert("RGBA").save(tmp_path / "p.tiff")
    else:
        image.save(tmp_path / f"p.{suffix}")
    np.testing.assert_array_equal(
        learner.predict_proba([image]), learner.predict_proba([tmp_path / f"p.{suffix}"])
    )


def test_a_test_that_is_no_pair_and_one_text_are_said(learner: everclip.Learner) -> None:
    learner.learn(*pictures(["red", "black"]))
    test: Any = pictures(["blue"])[0]
    with pytest.raises(UserError, match=r"give test=\(images, labels\), or a Dataset"):
        to_test(test, None)
    with pytest.raises(UserError, match="texts is one text: give a list"):
        learner.embed(texts="a dog")
    with pytest.raises(UserError, match="images is one image"):
        learner.embed(np.zeros((8, 8, 3), np.uint8))
    wrong: dict[str, Any] = {"text 1 is a int: give a list of texts": ["a", 1], "texts is a int: give": 5}
    for message, texts in wrong.items():
        with pytest.raises(UserError, match=message):
            lines(texts)
    assert learner.embed(texts=["a", "b"]).shape == (2, 16)


def test_a_stream_with_a_bad_image_says_what_is_lost(
    learner: everclip.Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = pictures(["red", "black"])
    learner.partial_fit([*images, b"no picture"], [*labels, "blue"])
    with pytest.raises(UserError, match="none of the last 13 images of partial_fit was learned: give them"):
        learner.predict(images)
    failure = RunError("the loss is not finite")
    learner.partial_fit(images, labels)
    with monkeypatch.context() as patch:
        patch.setattr("everclip.learner.update", lambda *_: (_ for _ in ()).throw(failure))
        with pytest.raises(
            UserError, match=r"not finite; none of the last 12 images of partial_fit was learned"
        ):
            learner.predict(images)
    learner.partial_fit(images, labels)
    with monkeypatch.context() as patch:
        patch.setattr("everclip.learner.update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            learner.predict(images)
    assert learner.classes == ["red", "black"]


def test_before_it_learns_it_says_so(learner: everclip.Learner, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="knows no class yet"):
        learner.predict([picture((9, 9, 9), 1)])
    with pytest.raises(UserError, match="nothing was learned yet"):
        learner.save(tmp_path / "x")


@pytest.mark.parametrize(
    ("value", "shown"), [(2.5, "2.5"), (True, "true"), (-1, "-1"), (float("nan"), "NaN"), (10**6, "1000000")]
)
def test_what_is_no_number_of_exemplars_is_said(value: float, shown: str) -> None:
    said = re.escape(f"--exemplars is {shown}: use a whole number from 0 to 100000")
    with pytest.raises(UserError, match=f"^{said}$"):
        check_range("--exemplars", value, 0, 100_000)


def test_what_is_no_image_size_is_said(toy: str) -> None:
    with pytest.raises(UserError, match=r"^--image-size is 8: use a whole number from 16 to 4096$"):
        everclip.Learner(toy, image_size=8)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--seed is -1: use a whole number from 0 to 4294967295$"):
        everclip.Learner(seed=-1)


def test_a_notebook_has_a_bar_where_widgets_are(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = rich.console.Console(force_jupyter=True, force_terminal=False)
    monkeypatch.setattr(progress, "Console", lambda **_: notebook)
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert progress.Progress()._bar is None
    monkeypatch.setattr(progress, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    assert progress.Progress()._bar is not None


def test_a_drop_that_was_asked_for_is_measured(learner: everclip.Learner) -> None:
    learner.update(*pictures(["red", "black"]), max_drop=1)  # no class was known before
    with pytest.raises(UserError, match=r"old classes of .* may lose 1 point, but no test image"):
        learner.update(*pictures(["blue"]), max_drop=1)
    with pytest.raises(UserError, match="give some, or use --unmeasured"):
        learner.update(*pictures(["blue"]), test=pictures(["blue"], 5000, 3), max_drop=100)
    assert learner.classes == ["red", "black"]
    assert learner.update(*pictures(["blue"]))["gate"]["drop"] is None
    assert learner.classes == ["red", "black", "blue"]


def rows(names: list[str], seed: int = 0, count: int = 12) -> tuple[np.ndarray, list[str]]:
    """Noisy features around a mean a name."""
    labels = [name for name in names for _ in range(count)]
    means = {name: np.random.default_rng(sum(map(ord, name))).normal(size=8) for name in names}
    noise = np.random.default_rng(seed).normal(size=(len(labels), 8))
    return np.stack([means[name] for name in labels]) + 0.3 * noise, labels


def test_it_learns_features_grows_saves_and_loads(tmp_path: Path) -> None:
    learner = everclip.Learner("features:8", progress=False, exemplars=4)
    found, labels = rows(["a", "b", "c"])
    for start in range(0, 36, 9):
        learner.partial_fit(features=found[start : start + 9], labels=labels[start : start + 9])
    held, truth = rows(["a", "b", "c"], 1)
    assert np.mean(np.array(learner.predict(features=held)) == truth) > 0.9
    again = everclip.Learner.load(learner.save(tmp_path / "v1"), progress=False)
    np.testing.assert_array_equal(again.predict_proba(features=held), learner.predict_proba(features=held))
    more, names = rows(["d", "e"])
    verdict = again.update(features=more, labels=names, test=rows(["a", "d"], 2), max_drop=50)
    assert verdict["gate"]["passed"]
    assert {one["name"] for one in verdict["candidates"]} == {"nothing", "means", "ridge", "layers"}
    assert again.classes == ["a", "b", "c", "d", "e"]
    assert np.mean(np.array(again.predict(features=more)) == names) > 0.9
    again.save(tmp_path / "v2")
    assert main(["forget", str(tmp_path / "v2"), "--class", "b", "-o", str(tmp_path / "v3")]) == 0
    left = everclip.Learner.load(tmp_path / "v3", progress=False)
    assert left.classes == ["a", "c", "d", "e"]
    assert left.learn(features=found, labels=labels).classes == ["a", "c", "d", "e", "b"]


def test_a_version_that_took_the_place_of_another_is_not_learned_from(tmp_path: Path) -> None:
    learner = everclip.Learner("features:8", progress=False, exemplars=4)
    found, labels = rows(["a", "b"])
    learner.learn(features=found, labels=labels).save(tmp_path / "v1")
    learner = everclip.Learner.load(tmp_path / "v1", progress=False, exemplars=4)
    more, names = rows(["c"])
    learner.learn(features=more, labels=names).save(tmp_path / "v2")
    stale = everclip.Learner.load(tmp_path / "v2", progress=False, exemplars=4)
    assert main(["rollback", str(tmp_path / "v2")]) == 0
    more, names = rows(["d"])
    with pytest.raises(
        UserError, match=r"v2.images\.zip has changed since it was opened: load the model again"
    ):
        stale.learn(features=more, labels=names)
    stale.partial_fit(features=more, labels=names)
    with pytest.raises(UserError, match=r"load the model again.*; the last 12 images of partial_fit wait"):
        stale.predict(features=more)
    (tmp_path / "v2").rename(tmp_path / "v1b")
    (tmp_path / "v2.undone").rename(tmp_path / "v2")
    assert stale.classes == ["a", "b", "c", "d"]


def test_threads_wait_for_each_other(tmp_path: Path) -> None:
    learner = everclip.Learner("features:8", progress=False)
    found, labels = rows(["a", "b"])
    learner.partial_fit(features=found, labels=labels)
    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(lambda _: learner.classes, range(4))] == [["a", "b"]] * 4

        def learn(name: str) -> None:
            more, names = rows([name])
            learner.partial_fit(features=more, labels=names)
            learner.learn(features=more + 0.1, labels=names)
            learner.predict(features=more)
            learner.save(tmp_path / name)

        list(threads.map(learn, "cdef"))
    assert sorted(learner.classes) == list("abcdef")
    assert learner._state.sums.counts.tolist()[:2] == [12, 12]
    assert learner._state.sums.counts.sum() == 24 + 4 * 24


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_and_its_original_wait_for_each_other(
    learner: everclip.Learner, copied: Callable[[everclip.Learner], everclip.Learner]
) -> None:
    learner.learn(*pictures(["red", "blue"]))
    images, _ = pictures(["red", "blue"], 5000)
    wanted = learner.predict_proba(images)
    both = [learner, copied(learner)] * 8
    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(lambda one: one.predict_proba(images), both):
            np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_copy_learns_alone() -> None:
    learner = everclip.Learner("features:8", progress=False)
    found, labels = rows(["a", "b"])
    learner.partial_fit(features=found, labels=labels)
    for other in (copy.copy(learner), copy.deepcopy(learner)):
        more, names = rows(["c"])
        other.partial_fit(features=more, labels=names)
        assert other.classes == ["a", "b", "c"]
        assert other._lock is learner._lock  # they have the same towers
    assert learner.classes == ["a", "b"]


def test_a_picture_with_another_name_is_forgotten_in_what_was_saved(tmp_path: Path) -> None:
    """The model that a learner began with, and a folder that lacks the picture, have nothing to forget."""
    learner = everclip.Learner("features:8", progress=False)
    found, labels = rows(["a", "b"])
    learner.learn(features=found, labels=labels)
    unsaved = r"else save the model, and load what everclip forget SAVED --images FILE -o FOLDER makes"
    with pytest.raises(UserError, match=unsaved):
        learner.learn(features=found[:1], labels=["b"])
    folder = learner.save(tmp_path / "saved")
    with pytest.raises(UserError, match=unsaved):
        learner.learn(features=found[:1], labels=["b"])
    with pytest.raises(UserError, match=f"everclip forget {folder} --images FILE"):
        everclip.Learner.load(folder, progress=False).learn(features=found[:1], labels=["b"])


def test_a_learner_is_saved_and_not_pickled(learner: everclip.Learner) -> None:
    with pytest.raises(UserError, match=r"cannot be pickled: use save\(folder\), and Learner.load\(folder\)"):
        pickle.dumps(learner)


def test_features_may_be_tensors_of_any_float() -> None:
    values = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = encoded(values.float().numpy(), 8)
    for one in (values, values.double(), values.float().requires_grad_()):
        assert encoded(one, 8) == wanted
    assert encoded(values.tolist(), 8) == wanted


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([[1.0, 2.0], [3.0]], r"features are not an array \(.*\): give floats \[n, d\]"),
        (torch.zeros(2, 8, dtype=torch.int64), r"features are int64 \[2, 8\]: give floats \[n, 8\]"),
        (np.array(3.0), "features is a ndarray without rows: give floats"),
    ],
)
def test_what_is_no_array_of_features_is_said(features: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        everclip.Learner("features:8", progress=False).learn(features=features, labels=["a", "b"])


def test_what_has_no_length_is_said() -> None:
    with pytest.raises(UserError, match='labels is one int, "5": give a list, one class name per image'):
        checked(["a.png"], 5)
    with pytest.raises(UserError, match="features is a float without rows: give floats"):
        checked(0.5, ["a"])


def test_it_holds_the_images_that_it_keeps_alone() -> None:
    def held() -> int:
        gc.collect()
        return sum(len(one.keys) for one in gc.get_objects() if type(one) is Encoded)

    before = held()
    learner = everclip.Learner("features:8", progress=False, exemplars=4)
    for seed in range(2):
        found, labels = rows(["a", "b"], seed)
        learner.learn(features=found, labels=labels)
        assert held() - before == 8


def test_a_run_on_features_is_learned_on(tmp_path: Path) -> None:
    found, labels = rows(["a", "b", "c", "d"])
    text = np.stack([rows([name], 5, 30)[0].mean(0) for name in "abcd"])
    np.savez(tmp_path / "f.npz", features=found, labels=labels, classnames=list("abcd"), text_features=text)
    for method in ("ridge", "zero_shot"):
        out = f"out={tmp_path / method}"
        assert (
            main(
                ["train", f"data=features:{tmp_path / 'f.npz'}", f"method={method}", "scenario.tasks=2", out]
            )
            == 0
        )
        learner = everclip.Learner(str(tmp_path / method), progress=False)
        more, names = rows(["e"])
        learner.learn(features=more, labels=names)
        assert sorted(learner.classes) == list("abcde")
        held, truth = rows(["a", "e"], 3)
        assert np.mean(np.array(learner.predict(features=held)) == truth) > 0.9


def test_a_saved_version_of_a_run_on_features_learns_a_class_without_a_text(tmp_path: Path) -> None:
    found, labels = rows(["a", "b"])
    text = np.stack([rows([name], 5, 30)[0].mean(0) for name in "ab"])
    np.savez(tmp_path / "f.npz", features=found, labels=labels, classnames=list("ab"), text_features=text)
    words = (f"data=features:{tmp_path / 'f.npz'}", "method=zero_shot", "scenario.tasks=1")
    assert main(["train", *words, f"out={tmp_path / 'run'}"]) == 0
    learner = everclip.Learner(str(tmp_path / "run"), method="nothing", progress=False)
    learner.learn(features=found, labels=labels).save(tmp_path / "v1")
    learner = everclip.Learner.load(tmp_path / "v1", progress=False)
    more, names = rows(["c"])
    assert learner.learn(features=more, labels=names).classes == ["a", "b", "c"]
    for number, words in enumerate((["forget", "v1", "--class", "b"], ["classes", "v1", "remove", "b"])):
        out = str(tmp_path / f"w{number}")
        assert main([words[0], str(tmp_path / words[1]), *words[2:], "-o", out]) == 0
        assert everclip.Learner.load(out, progress=False).classes == ["a"]


def test_features_and_images_are_not_mixed_up(learner: everclip.Learner, tmp_path: Path) -> None:
    of_rows = everclip.Learner("features:8", progress=False)
    images, names = pictures(["red", "black"])
    found, labels = rows(["a", "b"])
    wrong = {
        "features:8 takes features: give features=": lambda: of_rows.learn(images, names),
        "takes images: give images=": lambda: learner.predict(features=found),
        "give either images or features": lambda: of_rows.partial_fit(found, labels, features=found),
        r"features are float64 \[24, 3\]: give floats \[n, 8\]": lambda: of_rows.learn(
            features=found[:, :3], labels=labels
        ),
        r"features are float64 \[8\]": lambda: of_rows.learn(features=found[0], labels=labels[:8]),
        r"features are int64 \[24, 8\]": lambda: of_rows.learn(features=found.astype(int), labels=labels),
        "row 0 of features is not finite": lambda: of_rows.learn(features=found * np.nan, labels=labels),
        "24 images and 1 labels": lambda: of_rows.learn(features=found, labels=["a"]),
        "knows no class by name": lambda: everclip.Learner("features:8", classes=["a", "b"]),
        "image_size=96: features:8 reads no images": lambda: everclip.Learner("features:8", image_size=96),
        "--method trained trains towers": lambda: everclip.Learner(
            "features:8", method="trained", progress=False
        ).learn(features=found, labels=labels),
    }
    for message, call in wrong.items():
        with pytest.raises(UserError, match=message):
            call()
