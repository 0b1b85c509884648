"""Which source reads a plain path."""

from __future__ import annotations

from pathlib import Path

import pytest

from everclip import data
from everclip.data.paths import spec_of
from everclip.errors import UserError
from everclip.inference.assess import load_held_out
from everclip.inference.model import of_run
from everclip.runs.run import Run
from tests.learned import learned
from tests.pictures import domain_folder, image_folder
from tests.running import configured


@pytest.mark.parametrize("counts", [{"": 2}, {"train": 2}, {"train": 2, "test": 1}, {"train": 2, "val": 1}])
def test_a_folder_of_classes_is_an_imagefolder(tmp_path: Path, counts: dict[str, int]) -> None:
    root = image_folder(tmp_path / "photos", counts, 3)
    assert spec_of(str(root)) == f"imagefolder:{root}"
    found = data.load(str(root))
    assert (found.name, found.class_names) == (f"imagefolder:{root}", ("blue", "green", "red"))
    assert found.words().startswith(f"imagefolder:{root}: 3 classes, ")
    assert ("a fifth of each class" in found.words()) == (len(counts) == 1)


def test_a_folder_of_domains_that_share_their_classes_is_a_domainfolder(tmp_path: Path) -> None:
    root = domain_folder(tmp_path / "plain")
    assert spec_of(str(root)) == f"domainfolder:{root}"
    assert "3 classes in 3 domains" in data.load(str(root)).words()
    domain_folder(tmp_path / "parted" / "train")
    domain_folder(tmp_path / "parted" / "test")
    assert spec_of(str(tmp_path / "parted")) == f"domainfolder:{tmp_path / 'parted'}"


def test_classes_with_folders_of_their_own_are_classes(tmp_path: Path) -> None:
    image_folder(tmp_path / "cat", {"tabby": 1, "manx": 1}, 2)
    image_folder(tmp_path / "dog", {"pug": 1}, 2)
    assert spec_of(str(tmp_path)) == f"imagefolder:{tmp_path}"


def test_a_folder_with_a_loop_of_links(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"": 2}, 2)
    (root / "loop").symlink_to(root / "loop")
    assert data.load(str(root)).class_names == ("green", "red")


def test_what_is_no_plain_path_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    (tmp_path / "2024:best").mkdir()
    (tmp_path / "birds.NPZ").touch()
    (tmp_path / "list.csv").touch()
    assert spec_of("emoji") == "emoji"
    assert spec_of("./emoji") == "imagefolder:./emoji"
    assert spec_of("2024:best") == "imagefolder:2024:best"
    assert spec_of("birds.NPZ") == "features:birds.NPZ"
    assert spec_of("list.csv") == "csv:list.csv"
    for spec in ("imagefolder:emoji", "no.csv", "nowhere", "my_package.mine:emoji", "./mine.py:emoji"):
        assert spec_of(spec) == spec


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for spec in (f"{tmp_path}/no", "no.csv", "~/no-such-folder"):
        with pytest.raises(UserError, match="is not there: give a folder of CLASS folders"):
            data.load(spec)
    with pytest.raises(
        UserError, match='"imagefoldr" is neither a source nor a folder that exists; did you mean'
    ):
        data.load("imagefoldr")


def test_a_run_keeps_the_source_and_knows_its_data_by_either_name(
    toy: str, photos: str, tmp_path: Path
) -> None:
    folder = photos.removeprefix("imagefolder:")
    assert configured(f"data={folder}", f"model={toy}") == configured(f"data={photos}", f"model={toy}")
    run = learned(tmp_path / "run", toy, folder, "method=ncm")
    assert Run.read_config(run).data == photos
    model = of_run(run)
    assert model is not None
    for spec in (photos, folder, f"{folder}/test"):
        with pytest.raises(UserError, match="is the data of"):
            load_held_out(spec, model, "--calibrate")
