"""data=hf:FOLDER reads what is in the folder, asks nobody, and unpacks nothing; the hub is not asked to see what is
there."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from everclip.cli import _needs
from everclip.cli.app import main
from everclip.config import load_config
from everclip.data.formats import hub
from everclip.data.sources.hf import HuggingFace
from everclip.errors import UserError
from tests.data.hf_sets import counts, datasets, load, parquet, saved, table
from tests.data.web import serving
from tests.pictures import image_folder

pytestmark = pytest.mark.usefixtures("hf_cache")


def card(root: Path, patterns: object, name: str = "README.md") -> Path:
    """A folder whose card, or the file beside it, says which files there are."""
    text = json.dumps({"configs": [{"config_name": "default", "data_files": patterns}]})
    (root / name).write_text(f"---\n{text}\n---\n" if name == "README.md" else text)
    return root


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "patterns", ["{}/*.parquet", "data/../../other/data/*", "file://{}/*", "zip://a::http://x/y"]
)
@pytest.mark.parametrize(
    "within", [str, lambda text: [text], lambda text: [{"split": "train", "path": [text]}]]
)
def test_a_card_names_files_of_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, patterns: str, within: Any
) -> None:
    """Others are not even looked for."""
    other = parquet(tmp_path / "other", train=table(3)) / "data"
    root = card(parquet(tmp_path / "set", train=table(2)), within("data/*"), name)
    assert sum(map(sum, counts(load(root)))) == 8
    card(root, within(patterns.format(other)), name)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: pytest.fail("it was looked for"))
    with pytest.raises(UserError, match=r"asks for .*: name files of its own in README\.md") as caught:
        load(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["{}/data-00000-of-00001.arrow", "../../other/train/data-00000-of-00001.arrow"]
)
def test_a_saved_folder_names_its_own_files(tmp_path: Path, place: str) -> None:
    other = saved(tmp_path / "other", train=table(3)) / "train"
    root = saved(tmp_path / "set", train=table(2))
    state = root / "train" / "state.json"
    said = json.loads(state.read_text()) | {"_data_files": [{"filename": place.format(other)}]}
    state.write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"which lies outside of .*: use save_to_disk again") as caught:
        load(root)
    assert str(state) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["../other/train", "{}", "..", "x::http://127.0.0.1:9"])
def test_a_saved_folder_has_its_own_splits(tmp_path: Path, split: str) -> None:
    other = saved(tmp_path / "other", train=table(3)) / "train"
    root = saved(tmp_path / "set", train=table(2))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": [split.format(other)]}))
    with pytest.raises(UserError, match="use the name of a folder beside it"):
        load(root)


def test_a_file_that_links_out_of_the_folder(tmp_path: Path, hf_cache: Path) -> None:
    """Into the cache a link may lead, as in what the hub's client keeps."""
    other = parquet(tmp_path / "other", train=table(3)) / "data" / "train-00000-of-00001.parquet"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").symlink_to(other)
    with pytest.raises(UserError, match=r"which lies outside of it: leave it out"):
        load(tmp_path / "set")
    (tmp_path / "set" / "train.parquet").unlink()
    (tmp_path / "set" / "train.parquet").symlink_to(shutil.copy(other, hf_cache / "blob"))
    assert sum(map(sum, counts(load(tmp_path / "set")))) == 12


def test_names_that_link_out_of_the_folder(tmp_path: Path, hf_cache: Path) -> None:
    root, other = saved(tmp_path / "set", train=table(3)), tmp_path / "secret"
    other.write_text("red\tprivate\n")
    (root / "classnames.txt").symlink_to(other)
    with pytest.raises(UserError, match=r"classnames.txt links out of .*set: copy the file there"):
        load(root)
    (root / "classnames.txt").unlink()
    (root / "classnames.txt").symlink_to(shutil.copy(other, hf_cache / "blob"))
    assert "private" in load(root).class_names


@pytest.mark.parametrize("named", ["train/more.zip", "train/red/more.zip"])
def test_archives_are_not_unpacked(tmp_path: Path, hf_cache: Path, named: str) -> None:
    root = image_folder(tmp_path / "set", {"train": 3}, 2)
    assert sum(map(sum, counts(load(root)))) == 6
    with zipfile.ZipFile(root / named, "w") as archive:
        archive.writestr("red/9.png", b"x")
    with pytest.raises(UserError, match=r"has the archive .*: unpack it, and remove it") as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_files_of_the_hub_are_on_the_hub(tmp_path: Path) -> None:
    hub._check_files("org/name", ["hf://datasets/org/name@abc/data/train.parquet"], False, None)
    with pytest.raises(UserError, match=r"hf:org/name has .*passwd"):
        hub._check_files("org/name", ["/etc/passwd"], False, None)


def test_what_the_hub_has_is_not_downloaded_to_be_looked_for(
    tmp_path: Path, hf_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = datasets.load_dataset_builder(str(parquet(tmp_path / "name", train=table(3))))
    made.download_and_prepare()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: pytest.fail("it was opened"))
    line = "hf:org/name is not in the cache: it will be downloaded when it is trained on"
    assert main(["datasets", "check", "hf:org/name"]) == 1
    assert line in capsys.readouterr().out
    config = load_config(["data=hf:org/name"])
    found = _needs.data_there(config)[1]
    assert (found.state, found.text) == ("fail", line)
    monkeypatch.setattr(_needs, "_answers", lambda url: url == "http://127.0.0.1:9")
    found = _needs.data_there(config)[1]
    assert (found.state, found.text) == ("warn", line)
    source = HuggingFace(HuggingFace.Config())
    for argument in (str(tmp_path / "name"), "./name", "no/such/folder", None):
        assert source.missing(argument) == []
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hf_cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    place = hf_cache / "org___name" / "default" / "0.0.0" / "abc"
    place.parent.mkdir(parents=True)
    shutil.copytree(made.cache_dir, place)
    assert source.missing("org/name") == []
    assert source.missing("org/name#config=other") == [line]
    assert sum(map(sum, counts(load("org/name")))) == 12


def test_what_is_in_the_cache_is_looked_at_without_the_hub(
    tmp_path: Path, hf_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It might have another revision, which would be downloaded."""
    made = datasets.load_dataset_builder(str(parquet(tmp_path / "name", train=table(3))))
    made.download_and_prepare()
    place = hf_cache / "org___name" / "default" / "0.0.0" / "abc"
    place.parent.mkdir(parents=True)
    shutil.copytree(made.cache_dir, place)
    flags = (datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")
    with serving(monkeypatch) as site:
        for module, flag in flags:
            monkeypatch.setattr(module, flag, False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", site.url)
        template = f"{site.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        main(["datasets", "check", "hf:org/name"])
        assert "12" in capsys.readouterr().out
        assert _needs.data_there(load_config(["data=hf:org/name", "scenario.tasks=2"]))[1].state == "ok"
        assert not any(getattr(module, flag) for module, flag in flags)
        assert not site.asked
        load("org/name")  # as training does
        assert site.asked
