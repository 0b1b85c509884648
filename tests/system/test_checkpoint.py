"""Checkpoints on disk: committed as a whole, verified byte for byte; the older one where the newest is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from everclip.cli.app import main
from everclip.cli.evaluate import measure
from everclip.errors import RunError, UserError
from everclip.models import zoo
from everclip.runs.run import Run
from everclip.system import checkpoint
from everclip.system.checkpoint import DAMAGED, MANIFEST, Damaged, Place, Store, commit, verify
from everclip.training.restore import read
from tests.complaints import complaint
from tests.running import configured, run, timeless


def fill(*names: str, content: bytes = b"twelve bytes") -> checkpoint.Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in names or ("state.pt",):
            (folder / name).write_bytes(content)

    return write


PLACES = [
    Place(0),
    Place(0, 0, 5),
    Place(0, 1),
    Place(0, 1, 40),
    Place(1),
    Place(2),
    Place(10),
    Place(11, 2, 1_000_000),
]
NAMES = [
    *(
        "begin",
        "task-000-phase-0-step-000005",
        "task-000-phase-1-step-000000",
        "task-000-phase-1-step-000040",
    ),
    *("stage-000", "stage-001", "stage-009", "task-011-phase-2-step-1000000"),
]


def test_names_are_places_and_in_the_order_of_the_run() -> None:
    assert [place.name for place in PLACES] == NAMES
    assert [Place.of(name) for name in NAMES] == PLACES
    assert sorted(PLACES) == PLACES
    for other in (
        "stage-1",
        "stage-001.tmp",
        "stage-001.damaged",
        "task-1-phase-0-step-0",
        "logs",
        "stage-00a",
        "stage-0001",
        "task-0001-phase-2-step-1000000",
    ):
        assert Place.of(other) is None


def test_a_commit_is_there_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "stage-000"
    commit(folder, fill("model", "state.pt"))
    verify(folder)
    assert checkpoint.names(folder) == {"model", "state.pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["stage-000"], "no temporary folder is left"
    checkpoint.amend(folder, {"record.json": b"{}"})
    verify(folder)
    assert checkpoint.names(folder) == {"model", "state.pt", "record.json"}
    with pytest.raises(UserError, match="has appeared in the meantime and is left alone"):
        commit(folder, fill("model", content=b"another"))
    verify(folder)
    assert checkpoint.names(folder) == {"model", "state.pt", "record.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["stage-000"]
    (folder / ".DS_Store").write_bytes(b"not ours")
    verify(folder)


def test_a_commit_that_fails_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    folder = tmp_path / "stage-000"
    commit(folder, fill())

    def fails(place: Path) -> None:
        (place / "state.pt").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        commit(folder, fails)
    verify(folder)
    assert (folder / "state.pt").read_bytes() == b"twelve bytes"
    assert [path.name for path in tmp_path.iterdir()] == ["stage-000"]


def test_every_byte_of_a_checkpoint_counts(tmp_path: Path) -> None:
    folder = tmp_path / "stage-000"
    commit(folder, fill("model", "state.pt"), ["begin"])
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for place in range(len(good)):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
            with pytest.raises(Damaged):
                verify(folder)
            path.write_bytes(good[:place])
            with pytest.raises(Damaged):
                verify(folder)
        path.unlink()
        with pytest.raises(Damaged, match=r"is missing|has no manifest.json"):
            verify(folder)
        path.write_bytes(good)
    verify(folder)


def test_what_the_disk_has_lost_is_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path, 2)
    for place in (Place(1), Place(2)):
        store.commit(place, fill("state.pt", content=b""))
    newest = store.folder(Place(2)) / "state.pt"
    newest.unlink()
    newest.symlink_to("/proc/self/mem")  # a file whose first byte gives an input/output error
    assert store.newest_task() == Place(1)
    assert store.newest() == [Place(1)]
    assert "checkpoint stage-001 cannot be used (state.pt cannot be read from the disk)" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "null", '{"checkpoint": 3}', "\udcff", "[" * 5000, "1" * 5000),
        '{"checkpoint": {"format": 1, "files": [], "on": []}}',
        '{"checkpoint": {"files": {"a": 1}, "format": 1, "on": []}}',
    ],
)
def test_a_manifest_of_anything(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Damaged, match=r"manifest.json is not what was written"):
        verify(tmp_path)


def test_a_manifest_points_to_nothing_outside_and_to_its_own_version(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    entry = {"bytes": 0, "sha256": checkpoint.hashlib.sha256(b"").hexdigest()}
    inside = tmp_path / "stage-000"
    inside.mkdir()
    (inside / MANIFEST).write_bytes(checkpoint._manifest({"../secret": entry}, []))
    with pytest.raises(Damaged):
        verify(inside)
    (inside / MANIFEST).write_bytes(
        checkpoint._rendered({"everclip": "9.0", "files": {}, "format": 2, "on": []})
    )
    with pytest.raises(UserError, match=r"has format 2, not 1: continue it with everclip 9\.0"):
        verify(inside)


def test_what_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, 2)

    def saved(*places: Place) -> list[str]:
        for place in places:
            on = [
                Place(place.task),
                *(Place(place.task, phase) for phase in range(1, place.phase + bool(place.step))),
            ]
            store.commit(place, fill(), [] if place.whole else [base for base in on if base < place])
        return [place.name for place in store.places()]

    assert saved(Place(0)) == ["begin"]
    within = [Place(0, 0, step) for step in (1, 2, 3)]
    assert saved(*within) == ["begin", "task-000-phase-0-step-000002", "task-000-phase-0-step-000003"]
    assert saved(Place(0, 1), Place(0, 1, 1), Place(0, 1, 2)) == [
        *(
            "begin",
            "task-000-phase-1-step-000000",
            "task-000-phase-1-step-000001",
            "task-000-phase-1-step-000002",
        )
    ]
    assert store.newest() == [Place(0), Place(0, 1), Place(0, 1, 2)]
    assert saved(Place(1)) == ["begin", "stage-000"]
    assert saved(Place(2), Place(3)) == ["stage-001", "stage-002"]
    assert store.newest_task() == Place(3)


def test_what_a_killed_commit_would_have_deleted_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path, 2)
    for task in range(3):
        store.commit(Place(task), fill())
    (tmp_path / "begin").mkdir()  # half of it is still there
    (tmp_path / ".stage-002.everclip-12345678").mkdir()
    assert store.newest() == [Place(2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage-000", "stage-001"]


def test_the_older_one_is_taken_and_the_damaged_one_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path, 2)
    assert store.newest() == []
    store.commit(Place(1), fill())
    store.commit(Place(1, 0, 3), fill(), [Place(1)])
    store.commit(Place(1, 0, 6), fill(), [Place(1)])
    (store.folder(Place(1, 0, 6)) / "state.pt").write_bytes(b"twelve bytez")
    assert store.newest() == [Place(1), Place(1, 0, 3)]
    assert caplog.messages == [
        "checkpoint task-001-phase-0-step-000006 cannot be used (state.pt is not what was written): using"
        " the previous one"
    ]
    assert store.places() == [Place(1), Place(1, 0, 3)]
    assert [*tmp_path.glob("*" + DAMAGED)]
    store.commit(Place(2), fill())
    assert not [*tmp_path.glob("*" + DAMAGED)], "it goes with the next checkpoint"
    (store.folder(Place(1)) / "state.pt").unlink()
    store.commit(Place(2, 0, 1), fill(), [Place(2)])
    (store.folder(Place(2)) / "state.pt").unlink()
    for _ in range(2):  # asked again it does not begin anew behind the user's back
        with pytest.raises(
            RunError, match=r"no checkpoint in .* can be used: remove that folder to start again"
        ):
            store.newest()
    assert "(stage-001: state.pt is missing)" in caplog.text, "what it stands on is damaged"


def test_a_run_goes_on_from_the_older_one(
    tmp_path: Path, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = [f"data={photos}", f"model={toy}", "device=cpu"]
    whole = run(tmp_path / "run", *tokens)
    newest = tmp_path / "run" / "checkpoints" / "stage-002"
    weights = newest / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 4
    weights.write_bytes(content)
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    stdout, stderr = capsys.readouterr()
    assert json.loads(stdout)["images"] == 8, "those of the two tasks before"
    assert (
        "checkpoint stage-002 cannot be used (open_clip_model.safetensors is not what was written)" in stderr
    )
    with pytest.raises(
        UserError, match=r"stage-002 is damaged \(open_clip_model.safetensors is not what was written\)"
    ):
        zoo.load(f"local-dir:{newest}")
    (tmp_path / "run" / "results.json").unlink()
    assert timeless(run(tmp_path / "run", *tokens)) == timeless(whole)
    assert not list((tmp_path / "run" / "checkpoints").glob("*" + DAMAGED))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "stage-001")
    (newest / MANIFEST).unlink()
    with pytest.raises(UserError, match="has finished no task yet"):
        measure(str(tmp_path / "run"), None)


def test_a_model_folder_without_a_manifest_is_read(tmp_path: Path, toy: str) -> None:
    clip = zoo.load(toy)
    clip.save(tmp_path / "mine")
    assert not (tmp_path / "mine" / MANIFEST).exists()
    again = zoo.load(str(tmp_path / "mine"))
    assert all(torch.equal(one, two) for one, two in zip(clip.parameters(), again.parameters(), strict=True))


def test_a_state_that_would_run_code_is_not_read(tmp_path: Path, toy: str, photos: str) -> None:
    tokens = [f"data={photos}", f"model={toy}", "scenario.tasks=2"]
    run(tmp_path / "run", *tokens)
    (tmp_path / "run" / "results.json").unlink()
    folder = tmp_path / "run" / "checkpoints" / "stage-001"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # pyright: ignore[reportReturnType]

    held = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}

    def write(place: Path) -> None:
        for name, content in held.items():
            (place / name).write_bytes(content)
        torch.save({"method": Evil()}, place / "state.pt")

    shutil.rmtree(folder)
    commit(folder, write)
    with pytest.raises(
        UserError, match=r"is intact but cannot be read with these package versions \(UnpicklingError"
    ):
        run(tmp_path / "run", *tokens)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("state", [{}, {"method": {}, "log_bytes": 0}, 3, [1]])
def test_a_state_of_something_else(tmp_path: Path, state: object) -> None:
    opened = Run(tmp_path, configured("data=emoji"))
    opened.store.commit(Place(1), lambda folder: torch.save(state, folder / "state.pt"))
    with pytest.raises(
        UserError, match=r"stage-000 (is not a run's checkpoint|is intact but cannot be read)"
    ):
        read(opened)


@pytest.mark.parametrize(
    "change", [{"method": {}}, {"method": 3}, {"memory": {"ids": 1}}, {"record": {}}, {"tasks": 5}]
)
def test_a_state_that_does_not_fit(tmp_path: Path, toy: str, photos: str, change: dict[str, object]) -> None:
    tokens = [f"data={photos}", f"model={toy}", "scenario.tasks=2", "method=icarl"]
    run(tmp_path / "run", *tokens)
    (tmp_path / "run" / "results.json").unlink()
    folder = tmp_path / "run" / "checkpoints" / "stage-001"
    held = {name: (folder / name).read_bytes() for name in checkpoint.names(folder) - {"record.json"}}
    state = torch.load(folder / "state.pt", weights_only=True)

    def write(place: Path) -> None:
        for name, content in held.items():
            (place / name).write_bytes(content)
        torch.save(state | change, place / "state.pt")

    shutil.rmtree(folder)
    commit(folder, write)
    said = complaint(run, tmp_path / "run", *tokens)
    assert "stage-001 does not fit" in said or "other classes than when" in said


def test_the_log_is_cut_back_to_whole_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = Run(tmp_path, configured("data=emoji"))
    opened.log("one", value=1)
    size = opened.log_bytes()
    opened.log("two", value=np.pi)
    opened.cut_log(size)
    log = tmp_path / "metrics.jsonl"
    assert log.read_text() == '{"event": "one", "value": 1}\n'
    log.write_text('{"event": "one", "value": 1}\n{"eve')
    opened.cut_log(1000)
    assert log.read_text() == '{"event": "one", "value": 1}\n'
    assert "metrics.jsonl is shorter than at the last checkpoint: some lines are lost" in caplog.text
    opened.cut_log(0)
    assert not log.exists()
    log.mkdir()
    for size in (0, 10):
        with pytest.raises(UserError, match=r"metrics\.jsonl is not a file"):
            opened.cut_log(size)
