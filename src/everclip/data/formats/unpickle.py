"""Read the pickles that CIFAR comes in, without pickle: nothing that a file says is ever called.

A pickle is a program for a stack machine. This machine knows the instructions that make numbers, texts, lists, dicts
and numpy arrays of bytes, and refuses all others; a pickle may mention only the names in ``_KNOWN``, which stand for
functions of ours. The instructions are read by the standard library's ``pickletools``.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from everclip.errors import UserError

_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"BININT", "BININT1", "BININT2", "INT", "LONG1", "BINFLOAT"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_OLD_TEXTS = {"BINSTRING", "SHORT_BINSTRING"}  # Python 2's texts, which are bytes
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_PUT, _GET = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}
_NOTHING = {"PROTO", "FRAME", "STOP"}


class _Refused(Exception):
    """A request of the pickle that is not granted."""


class _DType:
    """numpy.dtype("u1"), the one type there is."""


class _Array:
    """An array of bytes; its content comes later, with ``_build``."""

    value: NDArray[np.uint8]


def _array(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _ndarray:
        raise _Refused("an array of an unknown class")
    return _Array()


def _ndarray(*arguments: Any) -> object:
    raise _Refused("a call of numpy.ndarray")


def _dtype(name: Any, *flags: Any) -> _DType:
    if name not in ("u1", b"u1"):
        raise _Refused("an array of other numbers than bytes")
    return _DType()


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise _Refused("a text in another encoding than Latin-1")
    return text.encode("latin-1")


_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


def unpickle(content: bytes, where: str) -> dict[str, Any]:
    """Return the dict that a pickle holds. Its keys are texts; Python 2's texts inside it are bytes; arrays are uint8
    and cannot be written to. Raises UserError for anything else.

    Args:
        where: the file, for the message.
    """
    try:
        value = _run(content)
        if not isinstance(value, dict):
            raise _Refused("no dict")
        return {text(key): v.value if isinstance(v, _Array) else v for key, v in value.items()}
    except _Refused as error:
        raise UserError(
            f"{where} is not a file of CIFAR: it holds {error}; get the original, and do not open this one with pickle"
        ) from error
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise UserError(f"{where} is damaged, or not a file of CIFAR: get the original") from error


def text(value: object) -> str:
    """Return a value as text; texts that Python 2 wrote are bytes."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _run(content: bytes) -> object:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, given, _ in pickletools.genops(io.BytesIO(content)):
        name, argument = opcode.name, cast(Any, given)  # its type depends on the instruction
        if name in _PUT:
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GET:
            stack.append(memo[argument])
        elif name in _OLD_TEXTS:
            stack.append(argument.encode("latin-1"))
        elif name in _NUMBERS or name in _TEXTS or name in _BYTES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _STEPS:
            _STEPS[name](stack)
        elif name == "GLOBAL":
            stack.append(_known(*argument.split(" ", 1)))
        elif name not in _NOTHING:
            raise _Refused(f"the instruction {name}")
    (value,) = stack
    return value


def _known(module: Any, name: Any) -> Callable[..., object]:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Refused("a name that is not text")
    if (module, name) not in _KNOWN:
        raise _Refused(f"the name {f'{module}.{name}'[:80]!a}")
    return _KNOWN[module, name]


def _stack_global(stack: list[Any]) -> None:
    name, module = stack.pop(), stack.pop()
    stack.append(_known(module, name))


def _since_mark(stack: list[Any]) -> list[Any]:
    """Take what was put on the stack since the last mark."""
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
        if at < 0:
            raise IndexError("no mark")
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _tuple(count: int) -> Callable[[list[Any]], None]:
    def step(stack: list[Any]) -> None:
        items = tuple(stack[-count:])
        if len(items) < count:
            raise IndexError("a short stack")
        del stack[-count:]
        stack.append(items)

    return step


def _extend(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise _Refused("items of no list")
    stack[-1].extend(items)


def _update(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], dict):
        raise _Refused("entries of no dict")
    if not all(isinstance(key, (str, bytes)) for key in items[::2]):  # hashing deep tuples ends the process
        raise _Refused("a key that is not text")
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _setitem(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    _update(stack, [key, value])


def _reduce(stack: list[Any]) -> None:
    arguments, function = stack.pop(), stack.pop()
    if function not in _KNOWN.values() or not isinstance(arguments, tuple):
        raise _Refused("a call of no known name")
    stack.append(function(*arguments))


def _build(stack: list[Any]) -> None:
    """Give an array its state (version, shape, type, Fortran's order, bytes); a type's own is ignored."""
    state, made = stack.pop(), stack[-1]
    if isinstance(made, _DType):
        return
    if not isinstance(made, _Array):
        raise _Refused("the state of an unknown object")
    _, shape, dtype, fortran, content = state
    if not isinstance(dtype, _DType) or not isinstance(content, bytes):
        raise _Refused("an array of other numbers than bytes")
    made.value = np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


_STEPS: dict[str, Callable[[list[Any]], None]] = {
    "MARK": lambda stack: stack.append(_MARK),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda stack: _extend(stack, [stack.pop()]),
    "APPENDS": lambda stack: _extend(stack, _since_mark(stack)),
    "SETITEM": _setitem,
    "SETITEMS": lambda stack: _update(stack, _since_mark(stack)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}
