from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from everclip.cli.app import main
from everclip.cli.update import pairs
from everclip.data.pixels import Pixels
from everclip.errors import UserError
from everclip.methods.shared.sums import Sums
from everclip.updating import editing, start
from everclip.updating.classifiers import scores
from everclip.updating.editing import edit
from everclip.updating.forgetting import forget
from everclip.updating.gate import lost as lost_words
from everclip.updating.state import State
from tests.learned import learned
from tests.versions import COLD, WARM, begin, colours, first, updated, written


@pytest.fixture
def four(toy: str, tmp_path: Path) -> State:
    """A version that knows four colours."""
    state = written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    return written(updated(state, colours(tmp_path / "cold", COLD, 6)), state, tmp_path / "v2")


def test_where_labels_go() -> None:
    names = ("red", "yellow", "blue", "green")
    assert editing.rename(names, {"red": "blue", "blue": "red"}).names == ("blue", "yellow", "red", "green")
    merged = editing.merge(names, ["green", "yellow"], "warm")
    assert merged.names == ("red", "warm", "blue")
    assert merged.place == (0, 1, 2, 1)
    assert editing.merge(names, ["blue", "red"], "red").names == ("red", "yellow", "green")
    removed = editing.remove(names, ["yellow"])
    assert removed.names == ("red", "blue", "green")
    assert removed.place == (0, -1, 1, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda names: editing.rename(names, {"rde": "x"}), 'did you mean "red"'),
        (lambda names: editing.rename(names, {"red": "blue"}), "merge them"),
        (lambda names: editing.rename(names, {"red": "a\x1b[31mb"}), "cannot be printed"),
        (lambda names: editing.merge(names, ["red"], "x"), "at least two"),
        (lambda names: editing.merge(names, ["red", "red"], "x"), "at least two"),
        (lambda names: editing.merge(names, ["red", "blue"], "green"), "a class of its own"),
        (lambda names: editing.remove(names, [*names]), "leave at least one"),
        (lambda names: editing.remove(names, ["pink"]), 'no class is called "pink"'),
    ],
)
def test_what_cannot_be(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(("red", "blue", "green"))


def test_sums_of_a_merged_class_are_those_of_all_its_images() -> None:
    rows, labels = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 4
    sums = Sums.empty(4, 5).plus(rows, labels, torch.arange(20))
    place = torch.tensor([0, 1, 2, 1])
    merged, direct = sums.merged(place, 3), Sums.empty(3, 5).plus(rows, place[labels], torch.arange(20))
    for name in ("gram", "sums", "counts", "ids", "labels"):
        torch.testing.assert_close(getattr(merged, name), getattr(direct, name))


def test_a_renamed_class_gives_the_same_answers_under_its_name(four: State, tmp_path: Path) -> None:
    outcome = edit(four, editing.rename(four.known.names, {"red": "scarlet"}), None, 0.0)
    assert outcome.passed
    after = written(outcome, four, tmp_path / "v3")
    assert after.known.names == ("scarlet", "yellow", "blue", "green")
    assert after.version == 3
    test = colours(tmp_path / "t", WARM | COLD, 4, 5).whole()
    clip = four.encoder
    pixels = Pixels(test.store, clip.eval_transform, clip.image_size, 0)
    assert four.model is not None
    assert after.model is not None
    np.testing.assert_allclose(scores(four.model, test, pixels), scores(after.model, test, pixels), atol=1e-5)
    assert main(["rollback", str(tmp_path / "v3")]) == 0
    assert begin(str(tmp_path / "v3")).known.names == four.known.names


@pytest.mark.parametrize("named", ["before", "after"])
def test_held_out_images_of_changed_classes_are_tested_whatever_their_names(
    named: str, four: State, tmp_path: Path
) -> None:
    held = colours(tmp_path / "t", WARM | COLD, 4, 5)
    for change, now in (
        (editing.rename(four.known.names, {"red": "scarlet"}), "scarlet,yellow,blue,green"),
        (editing.merge(four.known.names, ["yellow", "green"], "leaf"), "red,leaf,blue,leaf"),
        (editing.remove(four.known.names, ["red"]), "red,yellow,blue,green"),
    ):
        if named == "after":
            held = colours(
                tmp_path / now, dict(zip(now.split(","), (WARM | COLD).values(), strict=True)), 4, 5
            )
        tested = edit(four, change, held, 100.0).verdict["test"]
        assert {row["class"] for row in tested["per_class"]} == {*change.names}


def test_a_merged_version_is_the_one_that_learned_one_class(four: State, toy: str, tmp_path: Path) -> None:
    after = edit(four, editing.merge(four.known.names, ["blue", "green"], "cold"), None, 100.0).state
    assert after.known.names == ("red", "yellow", "cold")
    assert after.sums.counts.tolist() == [6, 6, 12]
    assert [task.labels for task in after.known.tasks] == [[0, 1], [2]]
    assert sorted({*after.exemplars.labels.tolist(), *after.checks.labels.tolist()}) == [0, 1, 2]
    torch.testing.assert_close(after.sums.gram, four.sums.gram)
    again = updated(after, colours(tmp_path / "w", {"white": (240, 240, 240)}))  # the next update goes on
    assert again.state.known.names == ("red", "yellow", "cold", "white")
    assert again.state.sums.counts.tolist() == [6, 6, 12, 6]


def test_the_command(four: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    v2, v3, v4 = (str(tmp_path / name) for name in ("v2", "v3", "v4"))
    assert main(["classes", v2]) == 0
    assert "yellow" in capsys.readouterr().out
    assert main(["classes", v2, "-o", v3]) == 2
    assert not Path(v3).exists()
    assert main(["classes", v2, "merge", "blue", "green", "--into", "cold", "-o", v3]) == 0
    shown, said = capsys.readouterr()
    assert "4 classes before, 3 after" in shown
    assert "index valid" in shown
    assert "version 3" in said
    page = (tmp_path / "v3" / "verdict.html").read_text()
    assert "merged blue, green into cold" in page
    assert main(["classes", v3, "remove", "yellow", "-o", v4, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classes"]["after"] == ["red", "cold"]
    assert main(["classes", v4, "--json"]) == 0
    assert [row["class"] for row in json.loads(capsys.readouterr().out)] == ["red", "cold"]
    assert main(["predict", v4, str(tmp_path / "cold" / "blue"), "--json"]) == 0
    assert "cold" in capsys.readouterr().out


def test_names_with_an_equals_sign_are_renamed() -> None:
    names = ("a", "a=b", "red")
    assert pairs(["a=b=c", "red = x=y"], "rename", "OLD=NEW", names) == {"a=b": "c", "red": "x=y"}
    assert pairs(["a=c"], "rename", "OLD=NEW", names) == {"a": "c"}
    for words in (["a=b="], ["a"], ["=a"]):
        with pytest.raises(UserError, match="use OLD=NEW, two class names"):
            pairs(words, "rename", "OLD=NEW", names)


def test_bad_input_writes_nothing(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    colours(tmp_path / "other", {"pink": (230, 120, 170)}, 4, 5)
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["rename", "red=scarlet"], "needs --out"),
        (["rename", "red", "-o", "x"], "use OLD=NEW"),
        (["rename", "-o", "x"], "use OLD=NEW"),
        (
            ["rename", "red=a", "red=b", "-o", "x"],
            'rename has "red" twice, as "a" and as "b": give one of them',
        ),
        (["merge", "red", "yellow", "-o", "x"], "--into NAME"),
        (["remove", "red", "--into", "y", "-o", "x"], "--into NAME"),
        (["remove", "pink", "-o", "x"], "no class is called"),
        (["remove", "red", "-o", "x", "--max-drop", "101"], "percentage points"),
        (["remove", "red", "-o", "x", "--test", "warm"], "has no unlearned image"),
        (["rename", "red=scarlet", "-o", "x", "--test", "other"], '"pink", which is neither'),
    ):
        assert main(["classes", "v1", *words]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_what_loses_too_much_is_not_written(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names matter where the text tower classifies: under another name a class may be lost."""
    one = updated(begin(toy), colours(tmp_path / "both", WARM | COLD, 12), method="trained", exemplars=16)
    state = written(one, begin(toy), tmp_path / "v1")
    assert len(state.checks)
    lost = [
        (old, new, edited.verdict["gate"]["drop"])
        for old, new in product(state.known.names, ("zebra", "one two three four"))
        if not (edited := edit(state, editing.rename(state.known.names, {old: new}), None, 0.0)).passed
    ]
    assert lost, "no class is lost under a name that was not trained"
    old, new, drop = lost[0]
    out = tmp_path / "v2"
    words = ["classes", str(tmp_path / "v1"), "rename", f"{old}={new}", "-o", str(out), "--max-drop", "0"]
    assert main(words) == 3
    assert f"{lost_words(drop)} points lost and 0 allowed" in capsys.readouterr().err
    assert not out.exists()
    assert f"renamed {old} to {new}" in (tmp_path / "v2.verdict.html").read_text()


def of_run(root: Path, toy: str, photos: str, *tokens: str) -> State:
    """A version that classifies as the run that it was made from, which learned its classes in an order of its own."""
    run = begin(str(learned(root / "run", toy, photos, *tokens)))
    red = {"red": WARM["red"]}
    made = updated(run, colours(root / "new", red, 2, 3), colours(root / "held", red, 2, 9), method="nothing")
    state = written(made, run, root / "v1")
    assert state.model is not None
    assert state.model.names == state.known.names
    return state


@pytest.mark.parametrize(
    ("tokens", "most"),
    [
        (["method=ridge", "method.expand=64"], 100),
        (["method=ncm", "method.feature=pooled"], 100),
        (["method=multilayer_lda", "method.mirror=false"], 100),
        (["method=multilayer_lda", "scenario.kind=domain-incremental"], 100),
        (["method=ncm"], 3),
    ],
)
def test_a_runs_own_classifier_that_sums_do_not_give_is_not_edited(
    tokens: list[str],
    most: int,
    toy: str,
    photos: str,
    domains: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With other options it would be another classifier, or none that can be opened; of fewer images a worse one."""
    monkeypatch.setattr(start, "MOST_OLDER", most)
    data = domains if tokens[-1].startswith("scenario") else photos
    state = of_run(tmp_path, toy, data, *tokens)
    message = "classifier of a run: update it first"
    with pytest.raises(UserError, match=message):
        edit(state, editing.rename(state.known.names, {"red": "scarlet"}), None, 100.0)
    with pytest.raises(UserError, match=message):
        forget(state, ["red"], [])
    again = updated(state, colours(tmp_path / "more", {"red": WARM["red"]}, 2, 4), method="ridge").state
    assert "red" not in forget(again, ["red"], []).state.known.names


def test_a_runs_own_classifier_that_sums_give_is_edited(toy: str, photos: str, tmp_path: Path) -> None:
    state = of_run(tmp_path, toy, photos, "method=ridge", "method.lam=0.1")
    after = edit(state, editing.rename(state.known.names, {"red": "scarlet"}), None, 100.0).state
    assert after.model is not None
    assert state.model is not None
    assert state.model.labels != tuple(range(6))
    options = [dict(one.plan.config.method.options) for one in (state.model, after.model) if one.plan]
    assert options[0] == options[1]
    assert after.sums.counts.tolist() == [6 if name == "red" else 4 for name in state.known.names]
