"""Decide whose code runs: modules that the user names, and those that a file names if ``--trust FOLDER`` allows it.

A plug-in may be a module such as ``my_package.my_method`` or a file such as ``./my_method.py``. One that the user
wrote, on the command line or in Python, is imported. One that a file asks for (the config.toml of a run, a .toml and
those that it extends, the everclip.json of a model folder) is imported only where the file is in a trusted folder, or
where the user wrote the same name. Runs that are only compared or reported have nothing imported for their sake.

This module imports neither torch nor what a name stands for. Its state is that of the session that the thread has
opened, in any other thread that of the newest session, and where there is none that of the process.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from threading import get_ident
from typing import Any

from everclip.errors import UserError
from everclip.system.text import printable

OPTION = "--trust"
HELP = (
    "Every command takes --trust FOLDER (repeatable): modules that files in FOLDER name, such as a method"
    " of your own in a run's config.toml, may then be imported."
)

_CODE = ("data", "method", "trackers", "tune")
"""Keys of a config whose values may name code, as may a method's options."""
_INNER = (("scenario", "kind"), ("memory", "policy"), ("source", "of"))
"""Keys within sections whose values may name code."""
_JOINED = "joined"
"""The data source whose argument is specs of others, with + between them."""
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_FILE = ".py"


class Refused(UserError):
    """Code that a file asks for and nobody allowed."""


@dataclass
class _State:
    """The record of names of modules.

    Args:
        strict: whether a name that nobody is known to have written is refused.
        reading: how many blocks want code only to compare or to report.
        folders: the trusted ones, resolved.
        allowed: names that the user wrote, or that a trusted file asked for.
        asked: for each name the files that ask for it.
    """

    strict: bool = False
    reading: int = 0
    folders: tuple[Path, ...] = ()
    allowed: set[str] = field(default_factory=set)
    asked: dict[str, list[Path]] = field(default_factory=dict)


_process = _State()
_sessions: dict[int, _State] = {}
"""By thread, in the order opened."""


def _state() -> _State:
    opened = list(_sessions.values())
    return _sessions.get(get_ident()) or (opened[-1] if opened else _process)


def is_file(name: str) -> bool:
    """Return whether a name is that of a Python file: it ends in .py."""
    return name.endswith(_FILE)


def is_code(name: str) -> bool:
    """Return whether a name is that of code outside the package: a Python file, or a module, which has a dot."""
    return is_file(name) or _MODULE.fullmatch(name) is not None


def names(value: Any) -> Iterator[str]:
    """Yield the code that a value may name: a text, or its part before the first colon; the same for each data set of
    joined:A+B, and for each value of a list or a table."""
    if isinstance(value, str):
        source, _, argument = value.partition(":")
        parts = argument.split("+") if source == _JOINED else []
        for text in (value, *map(str.strip, parts)):
            # the whole text too: where a key takes only a name, the name of a file may have a colon
            yield from filter(is_code, dict.fromkeys((text, text.partition(":")[0])))
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from names(inner)


def folder(path: str | Path) -> None:
    """Trust the files in a folder from now on, in this process. Raises UserError where there is no such folder."""
    where = Path(path).expanduser()
    if not where.is_dir():
        raise UserError(f'{OPTION} "{path}" is not a folder: give the one whose files may name code')
    state = _state()
    state.folders = (*state.folders, where.resolve())


def in_config(values: Mapping[str, Any]) -> set[str]:
    """Return the code that a config's tables name."""
    tables = [(values.get(section), key) for section, key in _INNER]
    inner = [table.get(key) for table, key in tables if isinstance(table, Mapping)]
    return {*names([*(values.get(key) for key in _CODE), *inner])}


def typed(value: Any) -> None:
    """Note what the user wrote, such as a spec of data: its modules may be imported."""
    _state().allowed.update(names(value))


def asked(values: Mapping[str, Any], file: Path) -> None:
    """Note a config that was read from a file: its modules are imported only if ``check`` lets them."""
    for name in in_config(values):
        files = _state().asked.setdefault(name, [])
        if file not in files:
            files.append(file)


def check(name: str) -> None:
    """Allow a module to be imported, or raise; say on stderr what a trusted file has imported.

    Raises:
        Refused: only files outside of trusted folders ask for it, or the runs that do are only compared.
    """
    state = _state()
    if name in state.allowed:
        return
    files = state.asked.get(name, [])
    if not files and not state.strict:
        return
    if printable(name) != name:
        raise Refused(
            f'{_of(files)} asks to run the code "{name}", which cannot be printed: name it otherwise'
        )
    places = [(file, file.expanduser().resolve()) for file in files]
    file = next((file for file, place in places if any(map(place.is_relative_to, state.folders))), None)
    if state.reading:
        raise Refused(f'{_of(files)} asks for the code "{name}", which is not run to compare runs')
    if file is None:
        remedy = f"{OPTION} {files[0].parent}" if files else f"{OPTION} FOLDER"
        raise Refused(
            f'{_of(files)} asks to run the code "{name}", which may do anything: look at it, then add'
            f" {remedy} if you trust it"
        )
    said = printable(f"{OPTION}: {file} has {name} imported, from {place(name)}")
    print(said, file=sys.stderr, flush=True)
    state.allowed.add(name)


def _of(files: Sequence[Path]) -> str:
    return str(files[0]) if files else "a file"


def place(name: str) -> str:
    """Return the file that code would be imported from, in words; neither it nor a package around it is imported."""
    if is_file(name):
        return str(Path(name).expanduser().resolve())
    path: list[str] = [*sys.path, os.getcwd()]
    origin: str | None = None
    for part in name.split("."):
        # by its last part alone: a finder takes no more of it, and would look up the package otherwise
        spec = PathFinder.find_spec(part, path)
        if spec is None:
            return "a file that PYTHONPATH does not show"
        origin, inside = spec.origin, spec.submodule_search_locations
        path = [] if inside is None else [*inside]
    return origin or ", ".join(path or ())


@contextmanager
def reading() -> Iterator[None]:
    """Import no code in this block that the user has not asked for elsewhere: runs are only compared."""
    state = _state()
    state.reading += 1
    try:
        yield
    finally:
        state.reading -= 1


@contextmanager
def session(folders: Iterable[str | Path] = (), strict: bool = True) -> Iterator[None]:
    """Run one command line in the block: only its words count as written by the user; the end forgets what was noted.

    Raises:
        UserError: one of ``folders`` is not a folder.
    """
    thread = get_ident()
    before = _sessions.pop(thread, None)
    _sessions[thread] = _State(strict=strict)
    try:
        for path in folders:
            folder(path)
        yield
    finally:
        del _sessions[thread]
        if before is not None:
            _sessions[thread] = before


def taken(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line without its ``--trust FOLDER`` and ``--trust=FOLDER``, and these folders.

    Raises:
        UserError: a folder is missing.
    """
    rest: list[str] = []
    folders: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word == "--":
            return [*rest, word, *waiting], folders
        option, equals, value = word.partition("=")
        if option != OPTION:
            rest.append(word)
            continue
        if os.path.lexists(word):  # a pattern such as * turns a stranger's file names into words
            raise UserError(
                f'a file here is called "{word}": give files as ./*, or use {OPTION} from another folder'
            )
        value = value if equals else next(waiting, "")
        if not value or (not equals and value.startswith("--")):
            raise UserError(f"{OPTION} needs a folder: use {OPTION} FOLDER")
        folders.append(value)
    return rest, folders


def passed_on(run: Path | None = None, values: Mapping[str, Any] | None = None) -> list[str]:
    """Return the words ``--trust FOLDER`` for a command that this one starts.

    Args:
        run: a run directory whose config.toml has ``values``; it is trusted, too, if all code that these name is
            allowed.
    """
    state, found = _state(), in_config(values or {})
    folders = dict.fromkeys(map(str, state.folders))
    if run is not None and found and found <= state.allowed:
        folders[str(run.resolve())] = None
    return [word for path in folders for word in (OPTION, path)]
