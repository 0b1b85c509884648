"""Downloads from servers that break off, know no ranges or send something else."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from everclip.data.formats import download
from everclip.data.formats.download import Remote, check_room, commit, fetch, home, locked
from everclip.errors import UserError
from tests.complaints import complaint
from tests.data.web import Site, serving

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serving(monkeypatch) as running:
        running.files["/set.zip"] = CONTENT
        yield running


def remote(site: Site) -> Remote:
    return Remote(f"{site.url}/set.zip", len(CONTENT), f"sha256:{DIGEST}")


def refused(site: Site, path: Path) -> str:
    """The line that a download ends with; nothing is left in place."""
    said = complaint(fetch, remote(site), path)
    assert not path.exists()
    assert said.isprintable()
    return said


def test_a_file_is_downloaded_once(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "set.zip"
    fetch(remote(site), path)
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["set.zip"]
    fetch(remote(site), path)
    assert site.asked == [""]
    captured = capsys.readouterr()
    assert captured.err == f"downloading {site.url}/set.zip to {path} (3 MB)\n"
    assert not captured.out
    assert remote(site).name == "set.zip"


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_both_kinds_of_digest(site: Site, tmp_path: Path, algorithm: str) -> None:
    digest = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    fetch(Remote(f"{site.url}/set.zip", len(CONTENT), digest), tmp_path / "set.zip")
    assert download.matches(tmp_path / "set.zip", digest)
    assert not download.matches(tmp_path / "set.zip", f"{algorithm}:00")


def test_a_broken_connection_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    site.breaks = [1_000_000, 1_200_000]
    fetch(remote(site), tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert site.asked == ["", "bytes=1000000-", "bytes=2200000-"]
    assert site.sent == len(CONTENT), "nothing came twice"


def test_without_ranges_it_starts_again(site: Site, tmp_path: Path) -> None:
    site.ranges, site.breaks = False, [2_000_000, 1_000_000]
    fetch(remote(site), tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert site.asked == ["", "bytes=2000000-", "bytes=1000000-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_the_next_run_goes_on(
    site: Site, tmp_path: Path, ranges: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "set.zip"
    site.ranges, site.breaks = ranges, [1_500_000, *[0] * download.TRIES]
    if not ranges:  # which sends the first bytes again each time
        site.breaks = [1_500_000] * (download.TRIES + 1)
    assert refused(site, path) == (
        f"{site.url}/set.zip cannot be downloaded (the connection was closed): try again to go on, or put the"
        f" file in {path}"
    )
    assert os.listdir(tmp_path) == [".set.zip.everclip-part"]
    site.breaks, site.asked = [], []
    fetch(remote(site), path)
    assert path.read_bytes() == CONTENT
    assert site.asked == ["bytes=1500000-"]
    assert "(3 MB, of which 2 are there)" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["set.zip"]


def test_a_server_that_never_gets_further_is_given_up(site: Site, tmp_path: Path) -> None:
    site.ranges, site.breaks = False, [2_000_000, *[1_000_000, 1_500_000] * 20]
    assert "cannot be downloaded" in refused(site, tmp_path / "set.zip")
    assert len(site.asked) == download.TRIES + 1


def test_a_killed_process_leaves_nothing_in_place(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    site.stall_after = 2_000_000
    code = (
        "import sys; from pathlib import Path; from everclip.data.formats.download import Remote, fetch;"
        "fetch(Remote(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]))"
    )
    wanted = remote(site)
    arguments = [wanted.url, str(wanted.size), wanted.digest, str(path)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
    part = tmp_path / ".set.zip.everclip-part"
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= 1_000_000):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    have = part.stat().st_size
    assert 1_000_000 <= have <= 2_000_000
    site.stall_after = None
    fetch(wanted, path)
    assert path.read_bytes() == CONTENT
    assert site.asked == ["", f"bytes={have}-"]


def test_another_content_is_thrown_away(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    site.files["/set.zip"] = bytes(len(CONTENT))
    assert refused(site, path) == (
        f"{site.url}/set.zip has another checksum than the original: try again, or put the original in {path}"
    )
    assert os.listdir(tmp_path) == []
    site.files["/set.zip"] = CONTENT
    fetch(remote(site), path)
    assert path.read_bytes() == CONTENT


def test_a_damaged_part_is_thrown_away(site: Site, tmp_path: Path) -> None:
    path, part = tmp_path / "set.zip", tmp_path / ".set.zip.everclip-part"
    part.write_bytes(bytes(1_000_000))  # as after a power failure
    assert "has another checksum" in refused(site, path)
    assert not part.exists()
    part.write_bytes(bytes(len(CONTENT) + 1))
    fetch(remote(site), path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["link", "lost link", "hard link", "pipe"])
def test_a_part_that_links_elsewhere_is_replaced(site: Site, tmp_path: Path, kind: str) -> None:
    """Whoever made the folder may have put a link there: what it leads to is left as it is."""
    mine, part = tmp_path / "mine", tmp_path / ".set.zip.everclip-part"
    mine.write_bytes(b"precious")
    if kind == "pipe":
        os.mkfifo(part)
    elif kind == "hard link":
        part.hardlink_to(mine)
    else:
        part.symlink_to(mine if kind == "link" else tmp_path / "new")
    fetch(remote(site), tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert mine.read_bytes() == b"precious"
    assert not (tmp_path / "set.zip").is_symlink()
    assert not (tmp_path / "new").exists()


def test_a_link_that_appears_meanwhile_is_not_followed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plant(*_: object) -> None:
        (tmp_path / ".set.zip.everclip-part").symlink_to(tmp_path / "mine")

    monkeypatch.setattr(download, "check_room", plant)
    assert "part cannot be written" in refused(site, tmp_path / "set.zip")
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1, 20])
@pytest.mark.parametrize("have", [0, 10])
def test_another_length_is_refused_at_once(site: Site, tmp_path: Path, size: int, have: int) -> None:
    site.files["/set.zip"] = (CONTENT + b"x")[:size]
    (tmp_path / ".set.zip.everclip-part").write_bytes(CONTENT[:have])
    assert refused(site, tmp_path / "set.zip") == (
        f"{site.url}/set.zip has {size} bytes, not {len(CONTENT)}: put the original in {tmp_path / 'set.zip'}"
    )
    assert (tmp_path / ".set.zip.everclip-part").read_bytes() == CONTENT[:have]


def test_more_than_the_original(site: Site, tmp_path: Path) -> None:
    site.files["/set.zip"], site.claimed = CONTENT + b"x", -1
    assert refused(site, tmp_path / "set.zip").startswith(
        f"{site.url}/set.zip sends more than {len(CONTENT)} bytes: put the original in"
    )
    assert os.listdir(tmp_path) == []


def test_a_file_that_became_shorter(site: Site, tmp_path: Path) -> None:
    site.files["/set.zip"] = CONTENT[:10]
    (tmp_path / ".set.zip.everclip-part").write_bytes(CONTENT[:1000])
    assert "cannot be downloaded (it is shorter than the original)" in refused(site, tmp_path / "set.zip")


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 3), (503, 3)])
def test_refusals_of_the_server(site: Site, tmp_path: Path, status: int, tries: int) -> None:
    site.status = status
    assert f"{site.url}/set.zip cannot be downloaded (HTTP {status} " in refused(site, tmp_path / "set.zip")
    assert len(site.asked) == tries


def test_nobody_answers(site: Site, tmp_path: Path) -> None:
    nowhere = Remote("http://127.0.0.1:9/set.zip", 10, f"sha256:{DIGEST}")
    with pytest.raises(
        UserError, match=r"set\.zip cannot be downloaded \(\[Errno \d+\] Connection refused\)"
    ):
        fetch(nowhere, tmp_path / "set.zip")


def test_no_room(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RESERVE", 1 << 60)
    assert refused(site, tmp_path / "set.zip") == (
        f"{tmp_path} has 0.0 GB of 0.0 GB needed: make room on its disk"
    )
    assert not site.asked
    monkeypatch.setattr(download, "RESERVE", 0)
    check_room(tmp_path, 1)


def test_folders_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / ".set.zip.everclip-part").mkdir()
    advice = "make room or use another folder"
    message = f"{tmp_path}/.set.zip.everclip-part cannot be written (Is a directory): {advice}"
    assert refused(site, tmp_path / "set.zip") == message
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/sub cannot be written \(Not a directory\)"),
        locked(tmp_path / "file" / "sub"),
    ):
        pass
    with pytest.raises(UserError, match=r"there cannot be written \(No such file or directory\)"):
        commit(tmp_path / "no", tmp_path / "there")


def test_one_process_prepares_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, order = tmp_path / "new" / "set", []

    def second() -> None:
        with locked(folder):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(folder):
        thread.start()
        until = time.monotonic() + 30
        err = ""
        while "waiting" not in err and time.monotonic() < until:
            time.sleep(0.02)
            err += capsys.readouterr().err
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert err == f"waiting for another process that prepares {folder}\n"


def test_where_a_data_set_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVERCLIP_DATA", raising=False)
    assert home("cifar100", None) == tmp_path / "cache" / "data" / "cifar100"
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path / "sets"))
    assert home("cifar100", None) == tmp_path / "sets" / "cifar100"
    assert home("cifar100", str(tmp_path)) == tmp_path
    (tmp_path / "file").write_text("")
    for name, what in (("no", "does not exist"), ("file", "is a file")):
        assert complaint(home, "cifar100", str(tmp_path / name)) == (
            f"data folder {tmp_path / name} {what}: give that of cifar100, or use data=cifar100"
        )
