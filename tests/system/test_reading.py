"""Files of others: within bounds, or refused at once with a reason."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from everclip.data.formats.shards import read_shard
from everclip.data.prompts import read_lines
from everclip.errors import UserError
from everclip.system.reading import (
    DEPTH,
    JSON_BYTES,
    TOML_BYTES,
    TooDeep,
    Unreadable,
    parse_json,
    parse_toml,
    read_bytes,
    read_json,
    read_toml,
    strange,
)

DEEP = 20_000


def impostors(folder: Path) -> dict[str, Path]:
    """What may stand where a file should, by the words for it."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("/dev/zero")
    return {"a pipe": folder / "pipe", "a folder": folder / "folder", "a device": folder / "link"}


@pytest.mark.parametrize(
    "reader", [read_json, read_toml, lambda path: read_bytes(path, 10)], ids=["json", "toml", "bytes"]
)
def test_only_files_are_read(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    for words, path in impostors(tmp_path).items():
        with pytest.raises(Unreadable, match=f"^it is {words}$"):
            reader(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(Unreadable, match="it is a socket"):
            reader(tmp_path / "s")
    with pytest.raises(Unreadable, match="No such file"):
        reader(tmp_path / "no")


def test_lists_and_shards_are_files(tmp_path: Path) -> None:
    for words, path in impostors(tmp_path).items():
        with pytest.raises(UserError, match=f"classes file {path} cannot be read .it is {words}.: give a"):
            read_lines(path, "classes")
        with pytest.raises(UserError, match=f"shard {path} cannot be read .it is {words}."):
            read_shard(path)


def test_lines_are_those_of_an_editor(tmp_path: Path) -> None:
    """U+2028 and a form feed end lines for str.splitlines alone, and would move the numbers in messages."""
    (tmp_path / "list").write_bytes("a\u2028b\r\n\nc\x0cd\re\n".encode())
    assert read_lines(tmp_path / "list", "list", blank=True) == ["a\u2028b", "", "c\x0cd", "e"]
    assert read_lines(tmp_path / "list", "list") == ["a\u2028b", "c\x0cd", "e"]


def test_a_name_with_a_null_character(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="null"):
        read_bytes(tmp_path / "a\0b", 10)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(JSON_BYTES + 1)
    with pytest.raises(Unreadable, match="larger than 64 MiB"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(Unreadable, match="larger than 4 bytes"):
        read_bytes(tmp_path / "x", 4)
    with pytest.raises(Unreadable, match="larger than 10 bytes"):
        read_bytes(Path("/proc/self/status"), 10)  # a file whose size says 0


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * DEEP + "]" * DEEP,
        ".".join(["a"] * DEEP) + " = 1",
        "[" + ".".join(["a"] * DEEP) + "]",
        "x = {" + " . ".join(["'a'"] * DEEP) + " = 1}",
        "x = " + "{a = " * DEEP + "1" + "}" * DEEP,
    ],
    ids=["lists", "key", "table", "inline key", "tables"],
)
def test_toml_that_is_nested_too_deeply(text: str) -> None:
    start = time.process_time()
    with pytest.raises(TooDeep):
        parse_toml(text)
    assert time.process_time() - start < 1  # the parser alone takes minutes for a key of so many parts


@pytest.mark.parametrize(
    "text",
    ['a = "' + "b." * DEEP + '"', "a = '''\n" + "b.\n" * DEEP + "'''", "# " + "b." * DEEP, 'a = """."""'],
)
def test_dots_in_texts_and_comments_nest_nothing(text: str) -> None:
    assert parse_toml(text).keys() <= {"a"}


@pytest.mark.parametrize("end", ['"""z""""', "'''z''''", '"""z"""""', '"""\\""""""'])
def test_quotes_at_the_end_of_a_text_hide_no_key(end: str) -> None:
    with pytest.raises(TooDeep):  # where the key is taken for a text, the parser takes minutes
        parse_toml(f"x = {{a = {end}, " + ".".join(["b"] * 20 * DEEP) + f" = {end}}}")
    assert parse_toml(f"x = {end}\ny = {{z.z = {end}}}").keys() == {"x", "y"}


@pytest.mark.parametrize("text", ['\\"`', '\\"""\n', "'''\n\"\"\"\n", '"\\', "a'", '""" \\'])
@pytest.mark.parametrize("end", ["", "\\"])
def test_quotes_without_an_end_take_no_more_than_their_length(text: str, end: str) -> None:
    """Tried one by one, each to the end of the file, the quotes of the largest config took many minutes."""
    with pytest.raises(Unreadable, match="no valid TOML"):
        parse_toml(text * ((TOML_BYTES - 1) // len(text)) + end)


def test_json_that_is_nested_too_deeply() -> None:
    for text in ("[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP, "[" * (DEPTH + 2) + "]" * (DEPTH + 2)):
        with pytest.raises(TooDeep):
            parse_json(text)
    assert parse_json("[" * DEPTH + "]" * DEPTH)


@pytest.mark.parametrize("text", [b"\xff", "{", "nan", "1" * 5000, ""])
def test_what_is_no_json(text: str | bytes) -> None:
    with pytest.raises(Unreadable, match="no valid JSON"):
        parse_json(text)


def test_what_is_strange_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").symlink_to("nowhere")
    assert strange(tmp_path) == strange(tmp_path, deep=True) == ""
    os.mkfifo(tmp_path / "deep" / "er" / "pipe")
    assert strange(tmp_path) == ""
    assert strange(tmp_path, deep=True) == "deep/er/pipe is a pipe"
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert strange(tmp_path) == "zero is a device"
    assert "cannot be read" in strange(tmp_path / "nothing")
