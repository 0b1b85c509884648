"""Compose the paper's experiments by name: base, method and budget make ``cifar100/gdro-m500``.

``configs/experiments.toml`` lists them. Each gives the values that a config file of its name would have.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from everclip.system import reading

FILE = Path(__file__).parents[1] / "configs" / "experiments.toml"
PAPER = "Memory-Efficient Continual Learning with CLIP Models, https://arxiv.org/abs/2605.03866"
SIZED = "-mM"
"""The ending of a line in the file that stands for one experiment per budget M."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment as ``experiments.toml`` describes it.

    Args:
        base: the shipped config that it extends.
        data, section: the data set in words, and the paper's section.
        title, note, expected: of the header.
        method: name and options of the method.
        budget: of the memory; ``least`` the smallest at which the method has a defined form.
        train: what differs in ``[train]``.
    """

    base: str
    data: str
    section: str
    title: str
    method: dict[str, Any]
    budget: int = 0
    least: int = 0
    train: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    expected: str = "not published as a number; the paper shows a curve in Figure 1"

    def tables(self) -> dict[str, Any]:
        """Return the sections to merge over the base's; copies, since experiments are read once."""
        values = {"method": {**self.method}, "memory": {"budget": self.budget}}
        return values | ({"train": {**self.train}} if self.train else {})


@cache
def known() -> dict[str, Experiment]:
    """Read every experiment, by name."""
    tables = reading.read_toml(FILE)
    shared = tables.pop("shared")
    found = {}
    for base, table in tables.items():
        for line, own in table["experiments"].items():
            entry = {"base": base, "data": table["title"], "section": table["section"]}
            entry |= shared.get(line, {}) | own
            stem = line.removesuffix(SIZED)
            entry["method"] = {"name": stem} | entry.get("method", {})
            if stem == line:
                found[f"{base}/{line}"] = Experiment(**entry)
                continue
            for budget in table["budgets"]:
                title = f"{entry['title']}, a memory of {budget:,} images"
                one = Experiment(**entry | {"title": title, "budget": budget})
                if budget >= one.least:
                    found[f"{base}/{stem}-m{budget}"] = one
    return found


def text(name: str) -> str:
    """Render an experiment as TOML with a header in words; saved to a file it loads to the same config."""
    one = known()[name]
    lines = [f"# {one.title}: {one.data}.", "#"]
    lines += _wrapped("Paper", f"{one.section} and Figure 1 of {PAPER}")
    lines += _wrapped("Command", f"everclip train {name}")
    here = f"everclip doctor --config {name} estimates it for this machine"
    lines += _wrapped("Time", f"{here}; for GDRO on other GPUs see {one.base}.toml")
    lines += _wrapped("Expected", one.expected)
    for note in filter(None, (one.note, f"for what the paper leaves open see {one.base}.toml")):
        lines += _wrapped("Note", note)
    return "\n".join(lines) + "\n\n" + tomli_w.dumps({"extends": one.base} | one.tables())


def _wrapped(word: str, said: str) -> list[str]:
    """Wrap a paragraph of the header: its keyword, then lines of at most 116 characters."""
    wrapper = textwrap.TextWrapper(116, break_long_words=False, break_on_hyphens=False)
    wrapper.initial_indent, wrapper.subsequent_indent = f"# {word}:".ljust(12), "#".ljust(12)
    return wrapper.wrap(said)
