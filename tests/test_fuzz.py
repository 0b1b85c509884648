"""Whatever stands in a file that users write or that may be damaged: it is read, or refused in one line of our own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everclip import data
from everclip.cli.app import main
from everclip.cli.train import run_here
from everclip.config import load_config
from everclip.config.sources import is_override
from everclip.data.templates import suited
from everclip.errors import UserError
from everclip.models.catalogue import costs
from everclip.report.build import build
from everclip.runs.card import CALIBRATION_FILE, read_calibration
from everclip.runs.find import not_begun
from everclip.runs.read import read_run
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.runs.schema import SCHEMA
from everclip.runs.tables import load_runs
from everclip.system.checkpoint import MANIFEST, Damaged, _rendered, names
from tests.report.synthetic import write_run
from tests.running import configured

quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = st.sampled_from(
    ["data", "seed", "train.lr", "train", "method", "method.x", "memory.budget", "tune", "out", "extends"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def tried(read: Callable[[], object]) -> None:
    """Read something, or see it refused in one line."""
    try:
        read()
    except (UserError, Damaged) as error:
        refusal = str(error)
    else:
        return
    assert "\n" not in refusal


@quick
@given(
    content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
def test_config_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(content)
    tried(lambda: resolve(load_config([str(tmp_path / "my.toml")])))


@quick
@given(key=KEYS, value=st.text(max_size=40) | JSON.map(str))
def test_settings(key: str, value: str) -> None:
    token = f"{key}={value}"
    assert is_override(token)
    tried(lambda: resolve(load_config([token])))


@quick
@given(
    rows=st.lists(st.lists(st.text(max_size=12), max_size=4), max_size=5),
    raw=st.binary(max_size=120),
    which=st.booleans(),
)
def test_lists_of_images(rows: list[list[str]], raw: bytes, which: bool, tmp_path: Path) -> None:
    text = "\n".join(",".join(row) for row in rows).encode("utf-8", "replace")
    (tmp_path / "list.csv").write_bytes((b"image,label\n" if which else b"") + (text if rows else raw))
    tried(lambda: data.load(f"csv:{tmp_path / 'list.csv'}"))


@quick
@given(
    content=st.binary(max_size=120) | st.text(max_size=120).map(lambda text: text.encode("utf-8", "replace"))
)
@pytest.mark.parametrize("name", ["classnames", "templates"])
def test_names_and_templates(name: str, content: bytes, tmp_path: Path, photos: str) -> None:
    path = tmp_path / f"{name}.txt"
    path.write_bytes(content)
    given: dict[str, Any] = {name: str(path)}
    tried(lambda: suited(data.load(photos, **given), "lite"))


@quick
@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_manifests(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(Damaged):
        names(tmp_path)


@quick
@given(value=st.dictionaries(st.sampled_from(["format", "files", "on", "everclip"]), JSON) | JSON)
def test_manifests_that_are_whole(value: object, tmp_path: Path) -> None:
    """Of anything, with a right hash."""
    (tmp_path / MANIFEST).write_bytes(_rendered(value))
    tried(lambda: names(tmp_path))


@quick
@given(
    results=st.binary(max_size=100)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(["method", "tasks", "matrix", "last", "classes"]), JSON).map(
        lambda value: json.dumps(value).encode()
    ),
    lines=st.lists(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), max_size=4),
)
def test_results_and_logs(results: bytes, lines: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(results)
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "config.toml").write_text('data = "emoji"\n')
    for reader in (
        Run(tmp_path, configured("data=emoji")).results,
        lambda: read_run(tmp_path),
        lambda: load_runs(tmp_path),
    ):
        tried(reader)


@pytest.mark.slow
@settings(quick, max_examples=40)
@given(key=st.sampled_from(sorted(SCHEMA)), value=st.just(...) | JSON)
def test_results_of_which_one_key_is_another(key: str, value: object, tmp_path: Path) -> None:
    """The page and the table of a run: refused, or made."""
    folder = tmp_path / "run"
    results = write_run(folder, tasks=2, per_task=2, steps=2) | {key: value}
    if value is ...:
        del results[key]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "report.html").write_text("there")
    tried(lambda: build([folder], tmp_path / "page.html"))
    run = Run(folder, configured("data=emoji"))
    with redirect_stdout(io.StringIO()):
        tried(lambda: run_here(run, json=False))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": 1', "[]", '{"schema": 1, "method": "gdro", "last": 0.5}']
)
def test_results_that_no_command_can_use(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    write_run(folder, tasks=2, per_task=2, steps=2)
    (folder / "results.json").write_text(content)
    for words in (["resume", str(folder)], ["report", str(folder), "-o", str(tmp_path / "x.html")]):
        assert main(words) == 2, words
        stderr = capsys.readouterr().err
        assert "results.json" in stderr.splitlines()[-1]
        assert "Traceback" not in stderr


@pytest.mark.parametrize("content", [b"\xff", b"a = ", b"a = " + b"[" * 100_000])
def test_configs_of_runs_that_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tasks=2, per_task=2, steps=2)
    (tmp_path / "run" / "config.toml").write_bytes(content)
    for reader in (read_run, load_runs):
        with pytest.raises(UserError, match=r"config\.toml") as error:
            reader(tmp_path / "run")
        assert "\n" not in str(error.value)


def test_nesting_that_no_parser_follows(tmp_path: Path) -> None:
    """Where a file is only looked at, it says nothing; where it is asked for, it is refused."""
    for name in (CALIBRATION_FILE, "open_clip_config.json", "sweep.json"):
        (tmp_path / name).write_text("[" * 100_000)
    assert costs(f"local-dir:{tmp_path}") is None
    assert not_begun([tmp_path], []) == []
    with pytest.raises(UserError, match=rf"{CALIBRATION_FILE} is damaged"):
        read_calibration(tmp_path, {"stage": 0})
