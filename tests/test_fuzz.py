"""Whatever stands in a file that users write or that may be damaged: it is read, or refused in one line of our own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everclip import data
from everclip.checkpoint import MANIFEST, Damaged, _rendered, names
from everclip.config import load_config, resolve
from everclip.config.sources import is_override
from everclip.data.templates import suited
from everclip.errors import UserError
from everclip.report.read import read_run
from everclip.run import Run
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
    tried(lambda: suited(data.load(photos, **{name: str(path)}), "lite"))


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
    for reader in (Run(tmp_path, configured("data=emoji")).results, lambda: read_run(tmp_path)):
        tried(reader)
