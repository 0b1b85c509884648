"""Read config values from their sources: TOML files with ``extends``, experiments, and key=value on the command line.

Everything here is plain dictionaries of the shape that ``everclip.config.Config`` validates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from everclip.config import experiments
from everclip.config.fields import kinds, unknown_key
from everclip.config.sections import Memory, Scenario
from everclip.errors import UserError, shown, suggest, why
from everclip.system import reading, trust
from everclip.system.reading import TooDeep, Unreadable

SHIPPED = Path(__file__).parents[1] / "configs"
MAX_DEPTH = 8

Layer = dict[str, Any]
Check = Callable[[Layer, str], object]
"""Validates one layer; the text says where it came from ("my.toml: " or nothing)."""

_EXAMPLES = {
    "method": "gdro",
    "out": "runs/mine",
    "fork": "runs/X@2",
    "image_size": "224",
    "templates": "imagenet",
    "classnames": "names.txt",
    "tuned_on": "none",
    "trackers": "tensorboard",
    "scenario.validation": "0.1",
    "train.weight_decay": "0.05",
}
"""Example values for keys whose default would be no help."""
_OPEN = {"method": 2, "tracker": 2, "scenario": 1, "memory": 1, "source": 1, "tuning": 1}
"""Sections with options of plug-ins, and how deep these may nest."""
_OVERRIDE = re.compile(r"[\w.\-]*=", re.ASCII)
_SHORT_FLOAT = re.compile(r"[+-]?(\.\d+|\d+\.)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def shipped() -> list[str]:
    """List the shipped configs, sorted: bases such as ``cifar100`` and experiments such as ``cifar100/gdro-m500``."""
    return sorted([*bases(), *experiments.known()])


def bases() -> list[str]:
    """List the shipped configs that are files, few enough for a message; experiments extend them."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml") if path != experiments.FILE)


def text(name: str) -> str:
    """Return the TOML text of a shipped config, with its header."""
    if name in experiments.known():
        return experiments.text(name)
    return (SHIPPED / f"{name}.toml").read_text(encoding="utf-8")


def near(name: str) -> str:
    """Suggest the shipped config that a misspelt name may have meant, as text to append to a message."""
    folder = name.partition("/")[0]
    return suggest(name, [other for other in shipped() if other.startswith(f"{folder}/")] or bases())


def is_override(token: str) -> bool:
    """Return whether a token reads KEY=VALUE, rather than a config's name or path."""
    return _OVERRIDE.match(token) is not None


def _path(name: str, folder: Path) -> Path:
    """Return the file that a name means: a path (relative to ``folder``) if it ends in .toml, else a base's."""
    if name.endswith(".toml"):
        return folder / name
    if name in bases():
        return SHIPPED / f"{name}.toml"
    if (folder / name / "config.toml").exists():
        raise UserError(f"{shown(name)} is a folder: use {name}/config.toml, or everclip resume {name}")
    raise UserError(f"{shown(name)} is not a shipped config, .toml file or KEY=VALUE{near(name)}")


def merge(lower: Layer, upper: Layer) -> Layer:
    """Merge ``upper`` over ``lower``, section by section.

    Options belong to their plug-in: another method drops the lower one's options, and so does another source,
    scenario, memory policy or way of tuning; another model drops the lower ``image_size``; ``train.epochs`` and
    ``train.steps`` replace each other, and so do ``memory.budget`` and ``memory.per_class``.
    """
    lower = dict(lower)
    if upper.get("model", lower.get("model")) != lower.get("model"):
        lower.pop("image_size", None)
    old, new = lower.get("method", {}), upper.get("method", {})
    other = new.get("name", old.get("name")) != old.get("name")
    if other:
        lower["method"] = {}
    for name, options in (("data", "source"), ("tune", "tuning")):
        if _named_in(upper, name, _named_in(lower, name)) != _named_in(lower, name):
            lower.pop(options, None)
    for name, section, key in (("scenario", Scenario, "kind"), ("memory", Memory, "policy")):
        below, above = lower.get(name), upper.get(name, {})
        if isinstance(below, dict) and isinstance(above, dict):
            now = below.get(key, section.model_fields[key].default)
            if above.get(key, now) != now or (other and now == "method"):
                lower[name] = {option: below[option] for option in below if option in section.model_fields}
    if "train" in upper:
        upper = upper | {"train": one_length(lower.pop("train", {}), upper["train"])}
    if isinstance(upper.get("memory"), dict):
        upper = upper | {"memory": _one_of("budget", "per_class", lower.pop("memory", {}), upper["memory"])}
    return _over(lower, upper)


def _named_in(layer: Layer, key: str, default: str | None = None) -> str | None:
    """Return the plug-in that a key names, without what follows its colon."""
    return str(layer[key]).partition(":")[0] if key in layer else default


def _over(lower: Layer, upper: Layer) -> Layer:
    result = lower | upper
    for name, value in upper.items():
        if isinstance(value, dict) and isinstance(lower.get(name), dict):
            result[name] = _over(lower[name], value)
    return result


def one_length(lower: Layer, upper: Layer) -> Layer:
    """Merge ``[train]`` of ``upper`` over ``lower``; of epochs and steps, the one given last counts."""
    return _one_of("epochs", "steps", lower, upper)


def _one_of(first: str, second: str, lower: Layer, upper: Layer) -> Layer:
    """Merge a section of ``upper`` over ``lower`` in which two keys replace each other."""
    lower = dict(lower)
    for name, other in ((first, second), (second, first)):
        if upper.get(name) not in (None, "none", "auto"):
            lower.pop(other, None)
    return lower | upper


def read_layers(name: str, folder: Path, check: Check, base: Layer, chain: tuple[Path, ...] = ()) -> Layer:
    """Read a config's values over those it extends, over ``base``.

    Args:
        name: of a shipped config, or the path of a .toml file relative to ``folder``.
        chain: the configs that extend it.

    Raises:
        UserError: there is none, the file cannot be read, is not a TOML, extends itself, or ``check`` refuses it.
    """
    found = experiments.known().get(name)
    if found is None:
        return _read_file(_path(name, folder), check, base, chain)
    chain = (*chain, SHIPPED / name)
    return merge(read_layers(found.base, folder, check, base, chain), found.tables())


def _read_file(path: Path, check: Check, base: Layer, chain: tuple[Path, ...]) -> Layer:
    """Read a TOML file's values over those it extends, over ``base``."""
    if len(chain) >= MAX_DEPTH:
        raise UserError(f"{_named(path)}: more than {MAX_DEPTH} configs extend one another: merge some")
    values = read_toml(path)
    own = reading.read_text(path.expanduser()).startswith(WRITTEN)
    if own and "defaults" not in values and "extends" not in values:
        values["defaults"] = 1
    real = path.resolve()
    if real in chain:
        raise UserError(f"{_named(path)}: extends itself through {_named(chain[-1])}: remove one extends")
    parent = values.pop("extends", None)
    if isinstance(values.get("method"), str):
        values["method"] = {"name": values["method"]}
    check(values, f"{_named(path)}: ")
    if parent is None:
        return merge(base, values)
    if not isinstance(parent, str):
        raise UserError(f"{_named(path)}: extends is {shown(parent)}: give one config's name or path")
    return merge(read_layers(parent, path.parent, check, base, (*chain, real)), values)


def read_toml(path: Path) -> Layer:
    """Read a TOML file of at most 1 MB as a dictionary. Raises UserError, one line, for anything else."""
    name = _named(path)
    try:
        path = path.expanduser()
        if path.is_dir():
            raise UserError(f"{name} is a folder: give a .toml file")
        if not path.exists():
            raise UserError(
                f"config {name} does not exist: give a .toml file, or one of {', '.join(bases())}"
            )
    except (OSError, RuntimeError) as error:  # a loop of links, or the home folder of an unknown user
        raise UserError(
            f"config {name} cannot be read ({why(error)}): check its path and permissions"
        ) from error
    try:
        values = reading.read_toml(path)
    except TooDeep as error:
        raise UserError(f"{name}: {error}: sections of a config do not nest") from error
    except Unreadable as error:
        raise UserError(f"{name}: {error}") from error
    trust.asked(values, path)
    return values


WRITTEN = "# everclip "
"""First line of a config that everclip wrote, with every value as of that version."""


def _named(path: Path) -> str:
    """Format a path for a one-line message."""
    return str(path) if str(path).isprintable() else shown(str(path), width=300)


def overrides(tokens: Sequence[str], known: Mapping[str, FieldInfo]) -> Layer:
    """Build the layer that KEY=VALUE tokens describe.

    Args:
        known: every dotted key and its field; options of plug-ins are known as well, such as ``method.OPTION``,
            ``method.OPTION.NAME`` and ``scenario.OPTION``.

    Raises:
        UserError: a token without "=" or value, an unknown key, or a key given twice.
    """
    layer: Layer = {}
    for token in tokens:
        key, equals, text = token.partition("=")
        if not equals or not is_override(token):
            hint = "; a config's name or file comes first, and only once" if token.endswith(".toml") else ""
            raise UserError(f"{shown(token)} is not KEY=VALUE: use for example train.lr=1e-4{hint}")
        if not key:
            raise UserError(f"{shown(token)} has no key: use for example train.lr=1e-4")
        if not text.strip():
            _place({}, key, "", known)  # says where there is no such key
            raise UserError(f"{shown(token)} has no value: use for example {key}={_example(key, known)}")
        _place(layer, key, read_value(key, text.strip(), known.get(key)), known)
    return layer


def _example(key: str, known: Mapping[str, FieldInfo]) -> str:
    """Return an example value for a key, as users write it."""
    if key in _EXAMPLES or key not in known:
        return _EXAMPLES.get(key, "VALUE")
    field = known[key]
    value = field.get_default()
    if value is None:
        return "5" if int in kinds(field.annotation) else "1e-4"
    return shown(value).strip('"')


def _place(layer: Layer, key: str, value: Any, known: Mapping[str, FieldInfo]) -> None:
    parts = ["method", "name"] if key == "method" else key.split(".")
    if key not in known and not (
        1 < len(parts) < _OPEN.get(parts[0], 0) + 2 and all(map(str.isidentifier, parts))
    ):
        if key in _OPEN:
            raise UserError(f"{shown(key)} is a section: use one of its keys, such as {key}.OPTION=VALUE")
        inside = [other for other in known if other.startswith(f"{key}.")]
        if inside:
            raise UserError(f"{shown(key)} is a section: use one of its keys, such as {inside[0]}=VALUE")
        raise UserError(unknown_key(key, [*known, "method"]))
    target: Any = layer
    for part in parts[:-1]:
        target = target.setdefault(part, {})
    if not isinstance(target, dict) or parts[-1] in target:
        raise UserError(f"{shown(key)} is given twice: give it once")
    target[parts[-1]] = value


def read_value(key: str, text: str, field: FieldInfo | None) -> Any:
    """Read the text as a TOML number, truth value, string or list if it is one, else return the text itself.

    Args:
        key: the key, for messages.
        field: the key's field, where known.

    Raises:
        UserError: a text that is not UTF-8, or nested too deeply.
    """
    if not text.isprintable() and any("\ud800" <= char <= "\udfff" for char in text):
        raise UserError(f"the value of {shown(key)} is not UTF-8: set the terminal to UTF-8")
    if _SHORT_FLOAT.fullmatch(text):
        value: Any = float(text)
    else:
        try:
            # Inside braces a comment swallows the closing one, so "a # b" is not a value and stays a plain text.
            parsed = reading.parse_toml(f"v = {{x = {text}}}")["v"]
            value = parsed["x"] if list(parsed) == ["x"] else text
        except TooDeep as error:
            raise UserError(f"the value of {shown(key)} is nested too deeply: use a plain list") from error
        except ValueError:
            value = text
    if not isinstance(value, bool | int | float | str | list):
        value = text
    allowed = kinds(field.annotation) if field is not None else set()
    return text if str in allowed and type(value) not in allowed else value
