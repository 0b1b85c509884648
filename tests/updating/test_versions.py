"""A version is written whole, under a lock, or not at all; going back loses neither of the two."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from everclip.cli.app import main
from everclip.data.pixels import Pixels
from everclip.errors import UserError
from everclip.index import maps
from everclip.inference import learned
from everclip.inference.model import open_model
from everclip.methods.shared.layers import Layers
from everclip.models.depths import Depths
from everclip.runs.card import CALIBRATION_FILE
from everclip.system import checkpoint
from everclip.system.atomic import claimed
from everclip.system.checkpoint import BEFORE, EARLIER
from everclip.updating import kept
from everclip.updating.classifiers import features
from everclip.updating.state import FROZEN, TUNED, read
from everclip.updating.versions import UNDONE, rollback, write_next
from tests.learned import coloured
from tests.training.test_disk import files_up_to
from tests.versions import COLD, ENDS, WARM, begin, colours, first, updated, written


@pytest.fixture(scope="module")
def two(toy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two versions, ``v1`` and ``v2``."""
    root = tmp_path_factory.mktemp("two")
    state = written(first(toy, root), begin(toy), root / "v1")
    written(updated(state, colours(root / "cold", COLD)), state, root / "v2")
    return root


def test_what_could_not_be_read_again_is_not_written(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, base = first(toy, tmp_path), begin(toy)
    monkeypatch.setattr("everclip.system.reading.MOST_PARTS", 8)
    with pytest.raises(UserError, match=r"update\.json would be too large .*: keep fewer exemplars"):
        write_next(made, base, tmp_path / "v1")
    monkeypatch.undo()
    domains = tuple(map(str, range(100_001)))
    with pytest.raises(UserError, match=r"update\.json would have more than 100,000 names in a list"):
        write_next(replace(made, state=replace(made.state, domains=domains)), base, tmp_path / "v1")
    assert not (tmp_path / "v1").exists()


def test_a_long_history_drops_its_oldest_class_names(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    monkeypatch.setattr("everclip.updating.state.MOST_NAMES", 3)
    later = written(updated(state, colours(tmp_path / "cold", COLD)), state, tmp_path / "v2")
    assert [line["classes"] for line in later.record["history"]] == [[], [*COLD]]
    assert [line["version"] for line in later.record["history"]] == [1, 2]
    monkeypatch.setattr("everclip.updating.state.MOST_LINES", 1)
    assert [line["version"] for line in later.next_record("ridge", 0, [])["history"]] == [3]


@pytest.fixture
def versions(two: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for name in ("v1", "v2"):
        shutil.copytree(two / name, tmp_path / name)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """What a command that ends with ``code`` says on stderr, which has no traceback."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


def _files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def earlier(folder: Path) -> None:
    """Make a version one of an earlier release: the version before it lies beside its own files, as before-*."""
    inner, old = folder / BEFORE, folder.with_name("earlier")

    def put(where: Path) -> None:
        for name in checkpoint.names(folder):
            shutil.copyfile(folder / name, where / name)
        for file in inner.iterdir():
            shutil.copyfile(file, where / (EARLIER + file.name))

    checkpoint.commit(old, put)
    shutil.rmtree(folder)
    old.rename(folder)


def test_a_version_is_a_folder_with_the_one_before_in_it(
    versions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = versions / "v2" / BEFORE
    assert sorted(path.name for path in (versions / "v2").iterdir() if path.is_dir()) == [BEFORE]
    checkpoint.verify(inner)
    assert (read(inner).version, read(versions / "v2").version) == (1, 2)
    assert checkpoint.identity(inner) == checkpoint.identity(versions / "v1")
    own = checkpoint.names(versions / "v1")
    assert {path.name for path in inner.iterdir()} == own | {checkpoint.MANIFEST}
    coloured(versions / "some", WARM, 1)
    said(capsys, 0, "predict", inner, versions / "some")
    state = begin(str(versions / "v2"))
    third = written(updated(state, colours(versions / "ends", ENDS)), state, versions / "v3")
    assert third.version == 3
    assert read(versions / "v3" / BEFORE).version == 2
    assert not (versions / "v3" / BEFORE / BEFORE).exists()  # one version before, not all


def snapshot(folder: Path, cache: Path) -> Path:
    """The folder as a hub's cache has it: relative links to files that lie elsewhere."""
    (cache / "blobs").mkdir(parents=True)
    found = cache / "snapshots" / "main"
    found.mkdir(parents=True)
    for number, file in enumerate(file for file in folder.iterdir() if file.is_file()):
        shutil.copyfile(file, cache / "blobs" / str(number))
        (found / file.name).symlink_to(Path("../../blobs") / str(number))
    return found


def test_a_version_of_links_is_kept_as_files(versions: Path) -> None:
    state = begin(str(snapshot(versions / "v1", versions / "cache")))
    written(updated(state, colours(versions / "ends", ENDS)), state, versions / "v3")
    shutil.rmtree(versions / "cache")
    inner = versions / "v3" / BEFORE
    checkpoint.verify(inner)
    assert not [file for file in inner.iterdir() if file.is_symlink()]
    assert checkpoint.identity(inner) == checkpoint.identity(versions / "v1")
    rollback(versions / "v3")
    assert read(versions / "v3").version == 1


def test_links_of_a_model_folder_are_not_followed(versions: Path) -> None:
    """A stranger's folder may have one to anything."""
    assert main(["export", str(versions / "v1"), "-o", str(versions / "x")]) == 0
    (versions / "x" / checkpoint.MANIFEST).unlink()  # as an earlier release exported it
    folder = snapshot(versions / "x", versions / "cache")
    (versions / "secret").write_text("secret")
    (folder / "notes").symlink_to(versions / "secret")
    state = begin(str(folder))
    written(updated(state, colours(versions / "ends", ENDS)), state, versions / "v3")
    assert not (versions / "v3" / BEFORE / "notes").exists()
    rollback(versions / "v3")
    model = open_model(str(versions / "v3"))
    assert (model.names, model.method) == (state.known.names, open_model(str(versions / "x")).method)


def test_a_link_in_place_of_a_calibration_is_not_followed(versions: Path) -> None:
    (versions / "secret").write_text("secret")
    state = begin(str(versions / "v2"))
    (versions / "v2" / "calibration.json").symlink_to(versions / "secret")
    written(updated(state, colours(versions / "ends", ENDS)), state, versions / "v3")
    assert not (versions / "v3" / BEFORE / "calibration.json").exists()


def test_a_rollback_to_an_export_has_its_model_card(versions: Path) -> None:
    assert main(["export", str(versions / "v1"), "-o", str(versions / "x")]) == 0
    state = begin(str(versions / "x"))
    written(updated(state, colours(versions / "ends", ENDS)), state, versions / "v3")
    rollback(versions / "v3")
    assert (versions / "v3" / "README.md").read_bytes() == (versions / "x" / "README.md").read_bytes()


def test_a_version_of_an_earlier_release_is_read_updated_and_rolled_back(versions: Path) -> None:
    identity = checkpoint.identity(versions / "v2")
    earlier(versions / "v2")
    assert [path for path in (versions / "v2").iterdir() if path.is_dir()] == []
    assert checkpoint.identity(versions / "v2") == identity
    state = begin(str(versions / "v2"))
    assert state.version == 2
    written(updated(state, colours(versions / "ends", ENDS)), state, versions / "v3")
    assert not list((versions / "v3" / BEFORE).glob(f"{EARLIER}*"))
    assert rollback(versions / "v3")[0] == versions / "v3"
    assert checkpoint.identity(versions / "v3") == identity
    rollback(versions / "v2")
    assert read(versions / "v2").version == 1
    checkpoint.verify(versions / "v2")
    assert checkpoint.identity(versions / "v2") == checkpoint.identity(versions / "v1")
    with pytest.raises(UserError, match="keeps no previous version"):
        rollback(versions / "v2")


def test_versions_read_the_tower_as_the_first_one_did(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of the layers as everclip 0.1.0 read them get no others, though these are as wide."""
    with monkeypatch.context() as patch:
        patch.setattr("everclip.updating.start.NEWEST", 2)
        state = written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    state = begin(str(tmp_path / "v1"))
    new = colours(tmp_path / "cold", COLD)
    made = written(updated(state, new, method="layers"), state, tmp_path / "v2")
    older, newer = Depths(None), Depths("equal")
    assert (made.known.depths, begin(toy).known.depths) == (older, newer)
    images = new.train + new.test
    pixels = Pixels(images.store, made.frozen.eval_transform, made.frozen.image_size, 0)
    known = torch.from_numpy(images.labels == 0)
    label = made.known.names.index(new.class_names[0])
    total, other = (
        features(made.frozen, images, pixels, depths)[known].double().sum(0) for depths in (older, newer)
    )
    assert_close(made.sums.sums[label], total)
    assert (total - other).abs().max() > 0.1
    model = open_model(str(tmp_path / "v2"))
    assert model.plan is not None
    assert isinstance(model.plan.method, Layers)
    assert model.plan.method.depths == older


def test_a_damaged_version_before_is_not_put_in_place(versions: Path) -> None:
    inner = versions / "v2" / BEFORE
    content = (inner / "update.json").read_bytes()
    (inner / "update.json").unlink()  # not written into: it may be a link to another version's file
    (inner / "update.json").write_bytes(content + b" ")
    with pytest.raises(UserError, match=r"v2 is damaged \(update.json is not what was written\)"):
        rollback(versions / "v2")
    assert read(versions / "v2").version == 2
    shutil.rmtree(inner)
    inner.symlink_to(versions / "v1", target_is_directory=True)
    with pytest.raises(UserError, match="keeps no previous version"):
        rollback(versions / "v2")


def test_the_version_before_a_damaged_one_can_be_had(versions: Path) -> None:
    """That is when it is needed most."""
    with (versions / "v2" / "verdict.html").open("a") as page:
        page.write(" ")
    with pytest.raises(UserError, match="damaged"):
        read(versions / "v2")
    rollback(versions / "v2")
    assert read(versions / "v2").version == 1


def test_a_folder_of_any_name_is_opened_again(versions: Path) -> None:
    (versions / "v1").rename(versions / "v\u202e1")
    state = begin(str(versions / "v\u202e1"))
    again = written(updated(state, colours(versions / "ends", ENDS)), state, versions / "v3")
    assert again.version == 2


def test_a_version_that_chose_nothing_has_no_trained_weights(versions: Path) -> None:
    """The tower of an opened closed form is cut, and its weights are the same."""
    state = begin(str(versions / "v2"))
    assert state.model is not None
    assert not state.model.reads_text
    made = updated(state, colours(versions / "more", {"red": WARM["red"]}, 6, 3), method="nothing")
    again = written(made, state, versions / "v3")
    assert not (versions / "v3" / "frozen.safetensors").exists()
    assert again.tuned is None


def test_a_calibrated_version_stays_the_version_that_it_was(
    versions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = coloured(versions / "held", WARM | COLD, 8, 4)
    before = _files(versions / "v2")
    said(capsys, 0, "predict", versions / "v2", "--calibrate", held)
    after = _files(versions / "v2")
    assert {name for name in after if after[name] != before.get(name)} == {CALIBRATION_FILE}
    checkpoint.verify(versions / "v2")
    fitted = open_model(str(versions / "v2")).calibration
    assert fitted is not None
    assert fitted.data == held

    state = begin(str(versions / "v2"))
    assert state.model is not None
    assert state.model.calibration == fitted
    written(updated(state, colours(versions / "ends", ENDS)), state, versions / "v3")
    rollback(versions / "v3")
    assert open_model(str(versions / "v3")).calibration == fitted, (
        "the temperature goes back with its version"
    )
    checkpoint.verify(versions / "v3")
    (versions / "v1" / CALIBRATION_FILE).write_bytes((versions / "v2" / CALIBRATION_FILE).read_bytes())
    other = open_model(str(versions / "v1")).calibration
    assert other is None or other != fitted, "another model's temperature is not taken"
    content = (versions / "v2" / CALIBRATION_FILE).read_text()
    (versions / "v2" / CALIBRATION_FILE).write_text(content.replace('temperature": ', 'temperature": 1'))
    assert "calibration.json is damaged" in said(capsys, 2, "predict", versions / "v2", versions / "held")


def test_a_rollback_to_a_folder_without_a_manifest_has_its_temperature(
    versions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = versions / "x"
    assert main(["export", str(versions / "v2"), "-o", str(model)]) == 0
    (model / checkpoint.MANIFEST).unlink()  # as an earlier release exported it
    said(capsys, 0, "predict", model, "--calibrate", coloured(versions / "held", WARM | COLD, 8, 4))
    before, fitted = _files(model), open_model(str(model))
    assert fitted.calibration is not None
    state = begin(str(model))
    written(updated(state, colours(versions / "ends", ENDS)), state, versions / "v3")
    rollback(versions / "v3")
    found = open_model(str(versions / "v3"))
    assert (found.calibration, found.unknown) == (fitted.calibration, fitted.unknown)
    assert _files(model) == before


def test_an_undone_version_takes_no_name_of_the_users(
    versions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("v2.undone", "v2.restored", "v2.tmp"):
        (versions / name).mkdir()
        (versions / name / "mine").write_text(name)
    assert rollback(versions / "v2") == (versions / "v2", versions / "v2.undone-2")
    assert read(versions / "v2").version == 1
    assert read(versions / "v2.undone-2").version == 2
    for name in ("v2.undone", "v2.restored", "v2.tmp"):
        assert (versions / name / "mine").read_text() == name


def test_a_link_still_leads_to_what_it_led_to(
    versions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (versions / "now").symlink_to("v2")
    monkeypatch.chdir(versions / "v2")
    for name in (".", "..", "../v2"):
        assert "is or contains the current folder" in said(capsys, 2, "rollback", name)
    monkeypatch.chdir(versions)
    said(capsys, 0, "rollback", "now")
    assert (versions / "now").is_symlink()
    assert read(versions / "now").version == 1
    assert read(versions / "v2.undone").version == 2


def test_nobody_else_writes_what_is_being_written(
    versions: Path, toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = f"imagefolder:{versions / 'warm'}", versions / "v9"
    coloured(versions / "warm", WARM, 4)
    with claimed(versions / "v9"), claimed(versions / "v2"):
        for words in (
            ("update", toy, "--add", data, "--test", data, "-o", out),
            ("export", versions / "v1", "-o", out),
            ("merge", versions / "v1", "--with", toy, "--alpha", "0.5", "-o", out),
            ("forget", versions / "v1", "--class", "red", "-o", out),
            ("rollback", versions / "v2"),
        ):
            err = said(capsys, 2, *words)
            assert "is being written by another process" in err, words
    assert not out.exists()
    assert read(versions / "v2").version == 2


def test_a_version_that_changed_meanwhile_is_not_kept_as_the_one_before(versions: Path) -> None:
    state = begin(str(versions / "v2"))
    made = updated(state, colours(versions / "ends", ENDS))
    rollback(versions / "v2")
    with pytest.raises(UserError, match="v2 has changed since the update began"):
        write_next(made, state, versions / "v3")
    assert not (versions / "v3").exists()


def test_a_full_disk_leaves_nothing_behind(
    versions: Path, toy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*given: object) -> None:
        raise OSError(errno.EPERM, "no hard links on this disk")

    monkeypatch.setattr("os.link", unable)
    before = sorted(path.name for path in versions.iterdir())
    for words in (
        ("export", versions / "v2", "-o", versions / "out"),
        ("forget", versions / "v2", "--class", "red", "-o", versions / "out"),
        ("rollback", versions / "v2"),
    ):
        with files_up_to(3_000):
            err = said(capsys, 1, *words)
        assert err.count("\n") == 1
        assert "cannot be written (File too large): make room" in err
        assert sorted(path.name for path in versions.iterdir()) == before
    assert read(versions / "v2").version == 2


def test_a_rollback_needs_no_room(versions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files_up_to(3_000):
        said(capsys, 0, "rollback", versions / "v2")
    assert [read(versions / name).version for name in ("v2", f"v2{UNDONE}")] == [1, 2]


def test_files_that_the_manifest_does_not_name_do_not_count(versions: Path) -> None:
    folder = versions / "v2"
    known = read(folder)
    others = {key: value + 1 for key, value in load_file(folder / "open_clip_model.safetensors").items()}
    for name in {FROZEN, TUNED, maps.FILE} - checkpoint.names(folder):
        save_file(others, folder / name)
        found = read(folder)
        now, then = found.frozen.whole_state(), known.frozen.whole_state()
        assert all(torch.equal(now[key], value) for key, value in then.items())
        assert (found.tuned is None, found.map) == (known.tuned is None, None)


def test_a_model_folder_over_a_version_is_refused(versions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, 0, "export", versions / "v1", "-o", versions / "other")
    shutil.copytree(versions / "other", versions / "v2", dirs_exist_ok=True)
    words = ("--add", coloured(versions / "ends", ENDS, 6), "--dry-run")
    err = said(capsys, 2, "update", versions / "v2", *words)
    assert "v2 is damaged (images.json is not in its manifest.json)" in err


def test_a_previous_version_that_was_changed_is_not_vouched_for(versions: Path) -> None:
    state = begin(str(versions / "v2"))
    made = updated(state, colours(versions / "ends", ENDS))
    weights = versions / "v2" / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(UserError, match="v2 has changed since it was opened"):
        write_next(made, state, versions / "v3")
    assert not (versions / "v3").exists()


def test_a_version_that_is_replaced_while_it_is_opened_is_refused(
    versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = kept.read

    def replaced(*given: Any) -> Any:
        monkeypatch.undo()
        rollback(versions / "v2")
        return opened(*given)

    monkeypatch.setattr(kept, "read", replaced)
    with pytest.raises(UserError, match="v2 has changed while it was opened: repeat the command"):
        read(versions / "v2")


def test_a_rollback_follows_no_link_of_a_stranger(versions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (versions / "secret").write_text("secret")
    for name, to in (("README.md", versions / "secret"), ("calibration.json", "calibration.json")):
        (versions / "v2" / BEFORE / name).unlink(missing_ok=True)
        (versions / "v2" / BEFORE / name).symlink_to(to)
    said(capsys, 0, "rollback", versions / "v2")
    assert not (versions / "v2" / "README.md").exists()
    (versions / "loop").symlink_to("loop")
    assert "loop is not a version" in said(capsys, 2, "rollback", versions / "loop")


def test_a_number_too_large_in_a_list_of_images(versions: Path) -> None:
    folder = versions / "v2"
    content = (folder / "images.json").read_text()
    number = next(row[4] for row in json.loads(content)["rows"])
    changed = folder.with_name("changed")

    def put(where: Path) -> None:
        for name in checkpoint.names(folder):
            shutil.copyfile(folder / name, where / name)
        (where / "images.json").write_text(content.replace(str(number), f"{10**30}"))

    checkpoint.commit(changed, put)
    with pytest.raises(UserError, match=r"changed is damaged \(images.json"):
        learned.of(str(changed))
