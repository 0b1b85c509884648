"""The shipped lists of prompts, against the ones they are copies of."""

from __future__ import annotations

from pathlib import Path

import pytest
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from everclip import data
from everclip.data.templates import file_of, names, set_name, shipped, suited
from everclip.training.plan import Plan
from tests.data.test_imagenet import train, val
from tests.running import configured, run


def test_imagenets_are_open_clips() -> None:
    assert len(OPENAI_IMAGENET_TEMPLATES) == 80
    assert set(shipped("imagenet")) == {template("{}") for template in OPENAI_IMAGENET_TEMPLATES}
    assert set(shipped("simple")) == {template("{}") for template in SIMPLE_IMAGENET_TEMPLATES}
    assert len(set(shipped("imagenet"))) == len(shipped("imagenet"))


def test_cifars_are_nine_pairs() -> None:
    """methods.md 5.5, from openai/CLIP data/prompts.md."""
    kinds = ["", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good "]
    expected = {f"a {kind}photo of {article} {{}}." for kind in kinds for article in ("a", "the")}
    expected |= {
        f"a photo of {article} {size} {{}}." for size in ("small", "big") for article in ("a", "the")
    }
    assert set(shipped("cifar100")) == expected
    assert len(shipped("cifar100")) == 18


def test_lists_are_known_by_their_prompts() -> None:
    assert [set_name(shipped(name)) for name in names()] == names()
    assert set_name(("{}", "a photo of a {}.")) == "lite"
    assert set_name(("a photo of a {}.",)) is None


def test_a_name_a_file_and_a_file_of_that_name(tmp_path: Path, photos: str, toy: str) -> None:
    assert names() == ["cifar100", "imagenet", "simple"]
    assert data.load(photos, templates="cifar100").templates == shipped("cifar100")
    (tmp_path / "own.txt").write_text("a {}\n")
    assert data.load(photos, templates=str(tmp_path / "own.txt")).templates == ("a {}",)
    assert file_of("other") == Path("other")
    results = run(tmp_path / "run", f"data={photos}", f"model={toy}", "templates=simple", "scenario.tasks=2")
    assert results["templates"] == list(shipped("simple"))


def test_a_file_of_the_folder_goes_before_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "simple").write_text("a {}\n")
    monkeypatch.chdir(tmp_path)
    assert file_of("simple") == Path("simple")
    (tmp_path / "simple").unlink()
    (tmp_path / "simple").mkdir()
    assert file_of("simple").is_file(), "a folder of that name is no list"


def test_lite_has_prompts_of_its_own(photos: str) -> None:
    from everclip.data.templates import TEMPLATES

    found = data.load(photos, templates="imagenet")
    assert suited(found, "lite").templates == TEMPLATES
    assert suited(found, "ViT-B-16:openai") is found
    own = data.load(photos)
    assert suited(own, "lite") is own, "those of the data set's own stay"


def test_a_run_of_lite(tmp_path: Path) -> None:
    """On a data set whose prompts are a shipped list, unless the config names one."""
    from everclip.data.templates import TEMPLATES

    data_set = f"data=imagenet:{val(train(tmp_path))}"
    for tokens, expected in (([], TEMPLATES), (["templates=imagenet"], shipped("imagenet"))):
        plan = Plan.of(configured(data_set, "model=lite", "method=zero_shot", *tokens))
        assert plan.prompts.templates == expected
