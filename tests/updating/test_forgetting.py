from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import everclip
from everclip import data
from everclip.cli.app import main
from everclip.data.images import content_id
from everclip.errors import UserError
from everclip.inference.unknown import LOGIT
from everclip.updating import editing
from everclip.updating.candidates import NAMES
from everclip.updating.forgetting import _columns, forget
from everclip.updating.state import FROZEN_TRAINED, State
from tests.learned import learned
from tests.versions import COLD, ENDS, WARM, begin, colours, first, load, updated, written


def four(toy: str, root: Path, cold_seed: int = 0, method: str = "auto") -> State:
    """A version that knows four colours; ``cold_seed`` decides what the pictures of two of them are."""
    root.mkdir(exist_ok=True)
    one = first(toy, root)
    state = written(one, begin(toy), root / "v1")
    return written(
        updated(state, colours(root / "cold", COLD, 6, cold_seed), method=method), state, root / "v2"
    )


def test_an_image_is_taken_out_exactly(toy: str, tmp_path: Path) -> None:
    state = four(toy, tmp_path / "a")
    files = sorted((tmp_path / "a" / "cold" / "blue").iterdir())[:2]
    made = forget(state, [], [str(file) for file in files])
    after = made.state
    assert after.sums.counts.tolist() == [6, 6, 4, 6]
    assert made.report["images"] == 2
    gone = set(state.sums.ids.tolist()) - set(after.sums.ids.tolist())
    assert len(gone) == 2
    for part in (after.exemplars, after.checks):
        assert not gone & set(part.ids.tolist())
    for file in files:
        file.unlink()
    again = updated(
        begin(str(tmp_path / "a" / "v1")), data.load(f"imagefolder:{tmp_path / 'a' / 'cold'}")
    ).state.sums
    torch.testing.assert_close(after.sums.gram, again.gram, atol=1e-6, rtol=0)
    torch.testing.assert_close(after.sums.sums, again.sums, atol=1e-6, rtol=0)


def test_with_its_images_a_class_is_taken_out_exactly(toy: str, tmp_path: Path) -> None:
    state = four(toy, tmp_path / "a")
    made = forget(state, ["blue", "green"], [str(tmp_path / "a" / "cold")])
    assert made.report["exact"]
    assert not made.report["second_moments_made_anew"]
    before = begin(str(tmp_path / "a" / "v1"))
    torch.testing.assert_close(made.state.sums.gram, before.sums.gram, atol=1e-6, rtol=0)
    torch.testing.assert_close(made.state.sums.sums, before.sums.sums, atol=1e-6, rtol=0)
    assert made.state.known.names == ("red", "yellow")


@pytest.mark.parametrize("names", [["blue"], ["green", "blue"]])
def test_without_its_images_nothing_of_a_class_is_left(names: list[str], toy: str, tmp_path: Path) -> None:
    """Two versions that differ in the pictures of a class alone are the same once they have forgotten it."""
    made = []
    for number, name in enumerate("ab"):
        root = tmp_path / name
        state = four(toy, root, cold_seed=0)
        other = colours(root / "more", {names[0]: (90 * number + 20, 77, 130)}, 6, 40 + number)
        made.append(forget(updated(state, other).state, names, []).state)
    one, two = made
    assert one.known.names == two.known.names
    torch.testing.assert_close(one.sums.gram, two.sums.gram, atol=1e-12, rtol=0)
    for field in ("sums", "counts", "ids", "labels"):
        assert getattr(one.sums, field).equal(getattr(two.sums, field))
    assert one.exemplars.ids.tolist() == two.exemplars.ids.tolist()
    assert (one.sums.gram.diagonal() > 0).all()


@pytest.mark.parametrize("method", ["ridge", "means", "layers", "trained"])
def test_a_version_works_on_without_a_class(method: str, toy: str, tmp_path: Path) -> None:
    state = four(toy, tmp_path / "a", method=method)
    made = forget(state, ["yellow"], [])
    assert made.report["weights_trained_on_them"] == (method == "trained")
    model = made.state.model
    assert model is not None
    assert model.names == ("red", "blue", "green")
    assert np.isfinite(model.logits(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))).all()
    assert made.state.known.names == model.names
    again = updated(made.state, colours(tmp_path / "b", {"yellow": (230, 220, 50)}))
    assert again.state.known.names == ("red", "blue", "green", "yellow")


@pytest.mark.parametrize("method", ["ridge", "layers"])
def test_images_that_are_kept_can_still_be_left_out_without_a_class(
    method: str, toy: str, tmp_path: Path
) -> None:
    """The next update leaves check images out of sums that were estimated from the few images that are kept."""
    root = tmp_path / "a"
    one = updated(begin(toy), colours(root / "w", WARM, 40), method=method)
    state = written(one, begin(toy), root / "v1")
    state = written(updated(state, colours(root / "c", COLD, 40), method=method), state, root / "v2")
    made = forget(state, ["yellow"], []).state
    assert len(made.exemplars) + len(made.checks) < int(made.sums.counts.sum())
    for part in (made.checks, made.exemplars):
        rows, labels = _columns(made, part)
        left = made.sums.minus(rows, labels, torch.from_numpy(part.ids))
        assert torch.linalg.eigvalsh(left.gram).min() > -1e-9
    assert made.model is not None
    assert made.model.unknown is not None
    assert made.model.unknown.score == LOGIT, "no image is in the sums exactly as it was"
    again = updated(made, colours(tmp_path / "b", {"yellow": (230, 220, 50)}), method=method)
    assert again.state.model is not None
    assert again.state.model.unknown is not None
    assert again.state.model.unknown.score == LOGIT


@pytest.mark.parametrize("method", ["finetune", "ncm"])
def test_weights_that_a_run_has_trained_are_still_there(
    method: str, toy: str, photos: str, tmp_path: Path
) -> None:
    """Closed forms on a trained run's features have no trained weights of their own, but the run saw the class."""
    run = begin(str(learned(tmp_path / "run", toy, photos, f"method={method}")))
    one = written(
        updated(run, colours(tmp_path / "n", {"red": WARM["red"]}), method="ridge"), run, tmp_path / "v1"
    )
    two = written(
        editing.edit(one, editing.rename(one.known.names, {"red": "scarlet"}), None, 100.0),
        one,
        tmp_path / "v2",
    )
    made = forget(two, ["blue"], [])
    assert made.report["weights_trained_on_them"] == (method == "finetune")
    assert forget(made.state, ["scarlet"], []).report["weights_trained_on_them"] == (method == "finetune")
    earlier = replace(two, record={key: value for key, value in two.record.items() if key != FROZEN_TRAINED})
    assert forget(earlier, ["blue"], []).report["weights_trained_on_them"], "of what is not noted it is said"


def test_the_command_writes_a_version_that_proves_it(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four(toy, tmp_path / "a")
    out = tmp_path / "v3"
    assert main(["forget", str(tmp_path / "a" / "v2"), "--class", "red", "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert "still has all of it" in told
    everything = b"".join(file.read_bytes() for file in out.iterdir() if file.suffix in (".json", ".html"))
    assert b'"red"' not in everything
    assert not [file for file in out.iterdir() if file.name.startswith("before")]
    record = json.loads((out / "update.json").read_text())
    assert record["forgotten"][0]["classes"] == 1
    assert begin(str(out)).known.names == ("yellow", "blue", "green")
    assert main(["forget", str(tmp_path / "a" / "v2"), "--class", "rde", "-o", str(tmp_path / "v4")]) == 2
    assert 'did you mean "red"?' in capsys.readouterr().err
    assert main(["forget", str(tmp_path), "--class", "red", "-o", str(tmp_path / "v4")]) == 2
    assert "is not a version" in capsys.readouterr().err


def test_names_that_a_class_had_are_forgotten_too(toy: str, tmp_path: Path) -> None:
    state = four(toy, tmp_path / "a")
    for number, edit in enumerate(
        (
            ["rename", "red=john smith"],
            ["rename", "john smith=person"],
            ["merge", "person", "yellow", "--into", "pair"],
        )
    ):
        out = tmp_path / f"e{number}"
        assert main(["classes", state.spec, *edit, "--max-drop", "100", "-o", str(out)]) == 0
        state = begin(str(out))
        assert (
            state.record["history"][0]["classes"]
            == [["john smith", "yellow"], ["person", "yellow"], ["pair"]][number]
        )
    assert main(["forget", state.spec, "--class", "pair", "-o", str(tmp_path / "less")]) == 0
    whole = b"".join(file.read_bytes() for file in (tmp_path / "less").iterdir() if file.suffix == ".json")
    assert not [
        name for name in (b'"red"', b"red to", b"john", b"person", b"yellow", b'"pair"') if name in whole
    ]
    history = json.loads((tmp_path / "less" / "update.json").read_text())["history"]
    assert [line["classes"] for line in history] == [[], ["blue", "green"], [], [], []]
    assert [line["chosen"] for line in history[2:]] == [
        "renamed classes",
        "renamed classes",
        "merged classes",
    ]
    assert {line["chosen"] for line in history[:2]} <= {*NAMES}


def test_a_version_without_a_history_forgets(toy: str, tmp_path: Path) -> None:
    state = four(toy, tmp_path / "a")
    record = {key: value for key, value in state.record.items() if key != "history"}
    made = forget(replace(state, record=record), ["red"], [])
    assert made.state.known.names == ("yellow", "blue", "green")


def test_what_is_named_twice_is_forgotten_once(toy: str, tmp_path: Path) -> None:
    state = four(toy, tmp_path / "a")
    file = str(tmp_path / "a" / "cold" / "green" / "0.png")
    once, twice = forget(state, ["red"], [file]), forget(state, ["red", "red"], [file, file])
    assert twice.report["classes"] == 1
    assert twice.report["images"] == 1
    assert twice.state.known.names == once.state.known.names == ("yellow", "blue", "green")
    assert twice.state.sums.counts.tolist() == once.state.sums.counts.tolist() == [6, 6, 5]
    for ours, theirs in (
        (twice.state.exemplars, once.state.exemplars),
        (twice.state.checks, once.state.checks),
    ):
        assert ours.labels.tolist() == theirs.labels.tolist()


@pytest.mark.parametrize("named", [False, True])
def test_a_class_of_which_a_check_image_alone_is_left_is_learned_from_it(
    named: bool, toy: str, tmp_path: Path
) -> None:
    """Otherwise thresholds would be scored by a classifier that does not know the class, and the next update be made
    without it. With a class that is known by name alone, distances come with the removal of that one."""
    start = begin(toy, ["red", "blue", "pink"]) if named else begin(toy)
    colours(tmp_path / "two", WARM)
    colours(tmp_path / "one" / "x", {"black": ENDS["black"]}, 2, 3)
    (tmp_path / "one" / "x" / "black").rename(tmp_path / "two" / "black")
    new = load(f"imagefolder:{tmp_path / 'two'}", start)
    state = written(
        updated(start, new, method="ridge" if named else "layers", exemplars=8), start, tmp_path / "v1"
    )
    black = state.known.names.index("black")
    (left,) = state.checks.of_classes([black]).ids.tolist()
    files = sorted((tmp_path / "two" / "black").iterdir())
    learned_ones = [str(file) for file in files if content_id(file.read_bytes()) != left]
    after = forget(state, ["blue", "pink"] if named else [], learned_ones).state
    black = after.known.names.index("black")
    assert left in after.exemplars.of_classes([black]).ids.tolist()
    assert not len(after.checks.of_classes([black]))
    assert len(after.checks) == len(state.checks) - 1
    assert after.model is not None
    assert after.model.unknown is not None
    assert (after.model.unknown.score, after.model.unknown.images) == (
        "relative_mahalanobis",
        len(after.checks),
    )
    assert np.isfinite(after.model.logits(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))).all()
    again = updated(after, colours(tmp_path / "more", {"white": ENDS["white"]}))
    assert {row["name"] for row in again.verdict["candidates"] if row["eligible"]} >= {
        "means",
        "ridge",
        "layers",
    }
    with pytest.raises(
        UserError, match='no image of "black" would be left to know it by: use --class "black"'
    ):
        forget(state, [], [str(file) for file in files])


def test_the_text_tower_knows_a_class_without_an_image(toy: str, tmp_path: Path) -> None:
    state = updated(begin(toy), colours(tmp_path / "warm", WARM), method="nothing").state
    after = forget(state, [], [str(tmp_path / "warm" / "red")]).state
    assert after.known.names == state.known.names
    assert after.sums.counts.tolist() == [0, 6]


@pytest.mark.parametrize("command", [["forget", "--class", "b"], ["classes", "remove", "b"]])
def test_a_version_on_features_that_keeps_no_image_works_on_without_a_class(
    command: list[str], tmp_path: Path
) -> None:
    labels = [name for name in "abc" for _ in range(12)]
    rows = (
        np.random.default_rng(0).normal(size=(36, 8)) + 4 * np.eye(8)[["abc".index(name) for name in labels]]
    )
    learner = everclip.Learner("features:8", exemplars=0, progress=False)
    learner.learn(features=rows, labels=labels).save(tmp_path / "v1")
    name, *more = command
    assert main([name, str(tmp_path / "v1"), *more, "-o", str(tmp_path / "v2")]) == 0
    left = everclip.Learner.load(tmp_path / "v2", progress=False)
    assert np.mean(np.array(left.predict(features=rows[:12])) == "a") > 0.9
    assert left.learn(features=rows[12:24], labels=["d"] * 12).classes == ["a", "c", "d"]


def test_what_was_not_learned_cannot_be_forgotten(toy: str, tmp_path: Path) -> None:
    state = four(toy, tmp_path / "a")
    for classes, files, message in (
        ([], [], "nothing to forget"),
        (list(WARM | COLD), [], "no class would be left"),
        ([], [str(tmp_path / "gone.png")], "cannot be read"),
        ([], [str(tmp_path / "a" / "warm-test")], "is not an image that"),
    ):
        with pytest.raises(UserError, match=message):
            forget(state, classes, files)


def test_held_out_images_in_a_folder_are_left_alone(
    toy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fifth of what an update is given may be held out; one of these named by itself is a mistake."""
    state = four(toy, tmp_path / "a")
    folder = tmp_path / "some"
    folder.mkdir()
    for source, name in (("warm/red/0", "0"), ("warm/red/1", "1"), ("warm-test/red/0", "held-out")):
        shutil.copyfile(tmp_path / "a" / f"{source}.png", folder / f"{name}.png")
    found = forget(state, [], [str(folder)])
    assert found.report["images"] == 2
    assert "1 of 3 images were not learned, such as" in caplog.text
    with pytest.raises(UserError, match=r"held-out\.png is not an image that"):
        forget(state, [], [str(folder), str(folder / "held-out.png")])
