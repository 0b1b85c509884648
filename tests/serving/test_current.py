"""The version in use follows the folder: to the next one, back after a rollback, and to nothing that is broken."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

import everclip
from everclip.cli.app import main
from everclip.errors import UserError
from everclip.runs.card import identity
from everclip.serving import current as module
from everclip.serving.answering import Answering, Ask
from everclip.serving.current import Current, Source
from everclip.serving.limits import Limits, Refused
from everclip.updating.versions import rollback
from tests.learned import learned
from tests.serving.client import Client
from tests.serving.conftest import Serving
from tests.toy import toy_clip


def link(to: str, name: Path) -> None:
    """Have a link lead elsewhere, in one step."""
    new = name.with_name("new")
    new.symlink_to(to)
    new.replace(name)


@pytest.fixture
def lines() -> list[str]:
    return []


def test_a_link_is_followed_forwards_and_back(here: Path, lines: list[str]) -> None:
    link("v1", here / "current")
    current = Current(Source(str(here / "current")), lines.append)
    first = current.now
    assert (first.name, first.version, first.model.names) == ("v1", 1, ("red", "yellow"))
    current.look()
    assert current.now is first
    link("v2", here / "current")
    current.look()
    assert (current.now.name, current.now.version, len(current.now.model.names)) == ("v2", 2, 4)
    link("v1", here / "current")
    current.look()
    assert current.now.label == first.label
    assert current.switches == 2
    assert [line.split(",")[0] for line in lines] == ["serving v2 (version 2", "serving v1 (version 1"]


def test_the_folder_of_the_shell_has_a_name(toy: str, photos: str, tmp_path: Path, lines: list[str]) -> None:
    with chdir(learned(tmp_path / "run", toy, photos, "method=ncm")):
        assert Current(Source("."), lines.append).now.name == "run"


def test_a_rollback_is_followed(here: Path, lines: list[str]) -> None:
    current = Current(Source(str(here / "v2")), lines.append)
    rollback(here / "v2")
    current.look()
    assert (current.now.version, current.now.model.names) == (1, ("red", "yellow"))
    assert current.now.identity == identity(here / "v2")


def test_a_broken_version_changes_nothing_until_it_is_mended(
    here: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    link("v1", here / "current")
    current = Current(Source(str(here / "current")), lines.append)
    first = current.now
    good = (here / "v2" / "method.pt").read_bytes()
    (here / "v2" / "method.pt").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    link("v2", here / "current")
    current.look()
    current.look()
    assert current.now is first
    assert current.error == "v2 is damaged (method.pt is not what was written): use another copy"
    assert len(lines) == 1
    assert lines[0].startswith("v1 (version 1, 2 classes, ")
    assert str(here) in lines[0]
    link("v1", here / "current")
    current.look()
    assert current.error == ""
    link("v2", here / "current")
    current.look()
    assert current.error, "it is not the one in use, whenever that was said before"
    (here / "v2" / "method.pt").write_bytes(good)
    current.look()
    assert current.now is first, "it is tried again after a while"
    monkeypatch.setattr(module.time, "monotonic", lambda: time.perf_counter() + 1e9)
    current.look()
    assert (current.now.name, current.error) == ("v2", "")
    shutil.rmtree(here / "v2")
    current.look()
    assert current.now.name == "v2"
    assert current.error
    link("v1", here / "current")
    current.look()
    assert (current.now.name, current.error) == ("v1", "")


def test_a_folder_that_changes_while_it_is_opened_is_opened_again(
    here: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link moves on right before the model is read: what is taken into use is the later version, whole."""
    link("v1", here / "current")
    moved = []

    def open_model(*arguments: object) -> object:
        if not moved:
            link("v2", here / "current")
        moved.append(arguments)
        return opening(*arguments)  # pyright: ignore[reportArgumentType]

    opening = module.open_model
    monkeypatch.setattr(module, "open_model", open_model)
    current = Current(Source(str(here / "current")), lines.append)
    assert (current.now.name, current.now.version) == ("v2", 2)
    assert len(moved) == 2


def test_a_version_has_its_own_number(here: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is rolled back right after its model was read."""

    def late(place: Path) -> int | None:
        monkeypatch.undo()
        rollback(here / "v2")
        return number(place)

    number = module._number
    monkeypatch.setattr(module, "_number", late)
    current = Current(Source(str(here / "v2")), lines.append)
    assert (current.now.version, current.now.model.names) == (1, ("red", "yellow"))
    assert current.now.identity == identity(here / "v2")


def test_a_model_without_a_folder_stays(toy: str, made: Path, lines: list[str]) -> None:
    current = Current(Source(toy, ("cat", "dog")), lines.append)
    first = current.now
    assert (first.label, first.model.names) == ({"version": None, "identity": ""}, ("cat", "dog"))
    current.look()
    assert current.now is first
    current.ask()
    current.look()
    assert current.now is not first
    assert current.switches == 1


def test_what_was_asked_for_is_tried_until_it_succeeds(
    toy: str, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without an identity would be opened at no other time."""
    model = Path(shutil.copytree(toy.removeprefix("local-dir:"), tmp_path / "model"))
    current = Current(Source(f"local-dir:{model}", ("cat", "dog")), lines.append)
    first = current.now
    model.rename(tmp_path / "away")
    current.ask()
    for _ in range(3):
        current.look()
        assert current.now is first
        assert "model" in current.error
    assert len(lines) == 1
    (tmp_path / "away").rename(model)
    current.look()
    assert current.now is first, "it is tried again after a while"
    monkeypatch.setattr(module.time, "monotonic", lambda: time.perf_counter() + 1e9)
    current.look()
    assert current.now is not first
    assert (current.error, current.switches) == ("", 1)
    current.look()
    assert current.switches == 1


def test_what_is_asked_for_meanwhile_is_done_at_the_next_look(
    toy: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal may come while the folder is opened, and between reading the mark and clearing it."""

    class Late(Current):
        @property
        def _asked(self) -> bool:
            found = vars(self)["asked"]
            if late:
                late.pop()
                self.ask()
            return found

        @_asked.setter
        def _asked(self, value: bool) -> None:
            vars(self)["asked"] = value

    late = []
    current = Late(Source(toy, ("cat", "dog")), lines.append)
    late.append("between")
    current.look()
    current.look()
    assert current.switches == 1
    opening = module.open_model

    def open_model(*arguments: object) -> object:
        monkeypatch.undo()
        current.ask()
        return opening(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(module, "open_model", open_model)
    current.ask()
    current.look()
    current.look()
    current.look()
    assert current.switches == 3


@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_whatever_opening_raises_the_version_in_use_stays(
    here: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    current = Current(Source(str(here / "v1")), lines.append)

    def leave(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "open_model", leave)
    current.ask()
    current.look()
    assert (current.switches, current.error) == (0, f"{error.__name__}:")


def test_a_log_that_cannot_be_written_ends_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.05)
    link("v1", here / "current")
    with open("/dev/full", "wb", buffering=0) as full:

        def say(line: str) -> None:
            full.write(line.encode())

        current = Current(Source(str(here / "current"), None, str(here / "vectors")), say)
        (here / "vectors" / "000000.json").unlink()
        asks = [Ask("search", "red"), Ask("embed", "red")]
        failed, answered = Answering(current, Limits().pixels, say)(asks)
        assert isinstance(failed, Refused)
        assert failed.status == 500
        assert not isinstance(answered, Refused)
        current.start()
        try:
            for to, served in (("v2", "v2"), ("nowhere", "v2"), ("v1", "v1")):
                link(to, here / "current")
                limit = time.monotonic() + 30
                while (current.now.name, bool(current.error)) != (served, to != served):
                    assert time.monotonic() < limit
                    time.sleep(0.02)
        finally:
            current.stop()


def test_embeddings_of_another_encoder(here: Path, lines: list[str], tmp_path: Path) -> None:
    """They are an error at first; later only /search is off, as the model matters more."""
    other = f"local-dir:{toy_clip(tmp_path, seed=5)}"
    with pytest.raises(UserError, match="is not the encoder of"):
        Current(Source(other, ("cat",), str(here / "vectors")), lines.append)
    current = Current(Source(str(here / "v1"), None, str(here / "vectors")), lines.append)
    assert current.now.asking is not None
    shutil.rmtree(here / "vectors")
    current.ask()
    current.look()
    assert current.now.asking is None
    assert "vectors does not exist" in current.now.unfit
    assert lines[1].startswith("/search is off: ")


def test_embeddings_of_pictures_of_another_size(
    toy: str, made: Path, tmp_path: Path, lines: list[str]
) -> None:
    """``/search`` prepares queries as the embedded pictures were, whatever size the model classifies."""
    assert main(["embed", toy, str(made / "warm"), "-o", str(tmp_path / "v"), "--image-size", "64"]) == 0
    now = Current(Source(toy, ("cat", "dog"), str(tmp_path / "v")), lines.append).now
    assert now.asking is not None
    assert (now.model.clip.image_size, now.own.clip.image_size, now.asking.clip.image_size) == (32, 32, 64)


def test_embeddings_keep_their_own_ids(here: Path, made: Path, serving: Serving) -> None:
    """Where the link leads elsewhere, or the folder is replaced: until the server is told to look again."""
    with chdir(made):
        assert main(["embed", "v1", "cold", "-o", str(here / "others")]) == 0
    link("vectors", here / "linked")
    query = (here / "red.png").read_bytes()

    def replaced() -> None:
        shutil.rmtree(here / "vectors")
        shutil.copytree(here / "others", here / "vectors")

    with serving(here / "v1", here / "linked") as client:
        link("others", here / "linked")
        before = client.ask("/search?k=3", query)
        assert (before[0], {one["id"].split("/")[0] for one in before[1]["found"]}) == (200, {"warm"})
        replaced()
        assert client.ask("/search?k=3", query) == before, "ids are read once"
    shutil.rmtree(here / "vectors")
    shutil.copytree(made / "vectors", here / "vectors")
    with serving(here / "v1", here / "vectors") as client:
        replaced()
        assert client.ask("/search?k=3", query)[0] == 500
        assert "000000.json is not what was written, or was replaced since: open" in client.lines[-1]
        assert client.current is not None
        client.current.ask()
        client.current.look()
        status, found = client.ask("/search?k=3", query)
        assert (status, {one["id"].split("/")[0] for one in found["found"]}) == (200, {"cold"})


def test_features_are_no_pictures(tmp_path: Path, lines: list[str]) -> None:
    learner = everclip.Learner("features:8", progress=False)
    rows = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    learner.learn(features=rows, labels=["a", "b"] * 6)
    learner.save(tmp_path / "rows")
    with pytest.raises(UserError, match="rows takes features: serve a model that takes pictures"):
        Current(Source(str(tmp_path / "rows")), lines.append)


def test_no_request_is_lost_while_versions_change(
    here: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight clients ask; the link moves on, the version is rolled back, and all answers are of one version or another.

    benchmarks/serving.py does it with 32 clients and ``lite``.
    """
    monkeypatch.setattr(module, "EVERY", 0.05)
    link("v1", here / "current")
    body = (here / "red.png").read_bytes()
    known = {identity(here / name): classes for name, classes in (("v1", 2), ("v2", 4))}
    seen: Counter[int] = Counter()
    stop = threading.Event()

    def ask(client: Client) -> int:
        count = 0
        while not stop.is_set():
            status, answer = client.ask("/predict?top=9", body)
            assert status == 200
            assert len(answer["top"]) == known.get(answer["identity"], 2)
            seen[answer["version"]] += 1
            count += 1
        return count

    with serving(here / "current", follow=True) as client, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, client) for _ in range(8)]
        try:
            for change, version in (
                (lambda: link("v2", here / "current"), 2),
                (lambda: rollback(here / "current"), 1),
            ):
                change()
                before, limit = seen[version], time.monotonic() + 30
                while seen[version] < before + 20 and time.monotonic() < limit:
                    time.sleep(0.02)
        finally:
            stop.set()
        assert min(one.result() for one in asking) > 0
        assert client.ask("/health")[1]["switches"] == 2
    assert min(seen[1], seen[2]) >= 20
