"""Describe options that several commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Json = Annotated[bool, Parameter(help="Print JSON.")]
Out = Annotated[str, Parameter(name=["--out", "-o"], help="The model folder to write, new or empty.")]
Model = Annotated[str, Parameter(help="A run directory, a model folder, or any model with --classes.")]
Classes = Annotated[str | None, Parameter(help="A file with the classes to choose from, one per line.")]
ImageSize = Annotated[
    int | None,
    Parameter(help="Image side in pixels, for a model that has learned nothing (default: the model's own)."),
]
Repeated = Annotated[list[str] | None, Parameter(consume_multiple=False)]
"""Texts, each after the option's name."""
