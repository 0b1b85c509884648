"""The reader of CIFAR's pickles: the same values as pickle's, and no call of anything that a file asks for."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everclip.data.formats.unpickle import unpickle
from everclip.errors import UserError
from tests.complaints import complaint
from tests.data.cifar import contents, python2_pickle

VALUES: dict[str, Any] = {
    "names": ["a", "ü", "x" * 300],
    "texts": [b"raw", b"x" * 300],
    "numbers": [0, 255, 256, 65536, -1, -(2**31), 2**40, 1.5],
    "constants": [None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}],
    "nested": {"a": {"b": [[1], [2]]}},
    "data": np.arange(24, dtype=np.uint8).reshape(2, 12),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype == np.uint8 and np.array_equal(one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_python_2s_pickles(name: str) -> None:
    values = contents()[name]
    content = python2_pickle(values)
    expected = pickle.loads(content, encoding="bytes")
    assert expected.keys() == values.keys(), "the fixture is a pickle"
    found = unpickle(content, name)
    assert [key.encode() for key in found] == list(expected)
    for key, value in expected.items():
        assert same(found[key.decode()], value)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_python_3s_pickles(protocol: int) -> None:
    found = unpickle(pickle.dumps(VALUES, protocol), "file")
    assert list(found) == list(VALUES)
    for key, value in VALUES.items():
        assert same(found[key], value), key


def test_fortrans_order() -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert same(unpickle(pickle.dumps({"data": array}, 2), "file")["data"], array)


class Evil:
    """Runs a command when it is unpickled by pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_is_called(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "made"
    content = pickle.dumps({"data": Evil(path)}, protocol)
    with pytest.raises(
        UserError, match=r"^file is not a file of CIFAR: it holds .*; get the original, and do not"
    ):
        unpickle(content, "file")
    assert not path.exists()
    pickle.loads(content)  # the same by pickle
    assert path.exists()


MKDIR = b"cos\nmkdir\n"
PUT = b"}U\x01a"
REFUSED: list[tuple[str, bytes, str]] = [
    ("a global", PUT + MKDIR + b"s.", "the name 'os.mkdir'"),
    ("a global of builtins", PUT + b"cbuiltins\neval\ns.", "the name 'builtins.eval'"),
    ("a part of a known name", PUT + b"cnumpy\nload\ns.", "the name 'numpy.load'"),
    ("a dotted name", PUT + b"cnumpy\nndarray.dump\ns.", "the name 'numpy.ndarray.dump'"),
    ("a name from the stack", PUT + b"\x8c\x02os\x8c\x05mkdir\x93s.", "the name 'os.mkdir'"),
    ("a name that is not text", PUT + b"))\x93s.", "a name that is not text"),
    ("INST", b"}U\x01a(U\x01xios\nmkdir\ns.", "the instruction INST"),
    ("OBJ", b"}U\x01a(cnumpy\nndarray\nos.", "the instruction OBJ"),
    ("NEWOBJ", b"}U\x01acnumpy\nndarray\n)\x81s.", "the instruction NEWOBJ"),
    ("EXT1", PUT + b"\x82\x01s.", "the instruction EXT1"),
    ("PERSID", PUT + b"Pabc\ns.", "the instruction PERSID"),
    ("a call of a text", PUT + b"U\x01b)Rs.", "a call of no known name"),
    ("a call of numpy.ndarray", PUT + b"cnumpy\nndarray\n)Rs.", "a call of numpy.ndarray"),
    ("a call without a tuple", PUT + b"cnumpy\ndtype\n]Rs.", "a call of no known name"),
    ("another type", PUT + b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87Rs.", "an array of other numbers than bytes"),
    ("another encoding", PUT + b"c_codecs\nencode\nX\x01\x00\x00\x00aU\x03hex\x86Rs.",
     "a text in another encoding than Latin-1"),
    ("a key that is not text", b"})K\x01s.", "a key that is not text"),
    ("a state of a list", PUT + b"]}bs.", "the state of an unknown object"),
    ("no dict", b"](K\x01K\x02e.", "no dict"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "what"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_refused(content: bytes, what: str) -> None:
    assert complaint(unpickle, content, "file") == (
        f"file is not a file of CIFAR: it holds {what}; get the original, and do not open this one with pickle"
    )


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros(3, dtype=np.int8), np.array([Evil(Path("x"))])])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(UserError, match="file is not a file of CIFAR"):
        unpickle(pickle.dumps({"data": array}, 2), "file")


DEEP = b"".join([b"}", b")", b"\x85" * 200_000, b"K\x01s."])


@pytest.mark.parametrize(
    "content",
    [b"", b".", b"no pickle at all", b"\x80\x02", b"\x80\x02}.x"[:3], b"}}.", b"}(U\x01au.",
     b"}U\x01aK\x01K\x02t.", b"}e.",
     b"}h\x05.", b"}T\xff\xff\xff\x7fabc", b"}\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", DEEP],
)  # fmt: skip
def test_what_is_damaged(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^file is (damaged, or )?not a file of CIFAR"):
        unpickle(content, "file")


def test_cut_anywhere_and_changed_anywhere() -> None:
    content = python2_pickle({b"data": np.zeros((2, 4), dtype=np.uint8), b"fine_labels": [1, 300, 70000]})
    for end in range(len(content)):
        with pytest.raises(UserError, match=r"^file is "):
            unpickle(content[:end], "file")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        changed = bytearray(content)
        for at in rng.integers(len(content), size=rng.integers(1, 4)):
            changed[at] = rng.integers(256)
        try:
            unpickle(bytes(changed), "file")
        except UserError:
            refused += 1
    assert 1000 < refused < 3000
