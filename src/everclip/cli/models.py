"""everclip models: what can be written after model=."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from typing import Any

from everclip.cli._output import print_columns, print_json
from everclip.config.fields import shown
from everclip.errors import UserError
from everclip.models.catalogue import ModelInfo, catalogue, recommended

_MORE = (
    "Any other open_clip model works too: model=NAME:TAG, hf-hub:ORG/REPO, local-dir:/path, or the folder"
    " of an earlier run."
)


def models(name: str | None = None, /, *, json: bool = False) -> None:
    """List models to start from, or explain one.

    Parameters
    ----------
    name
        A model's name and tag.
    json
        Print JSON.
    """
    found = {info.name: info for info in catalogue()}
    if name is None:
        if json:
            print_json([asdict(info) for info in found.values()])
            return
        rows = [
            (info.name, f"{info.parameters:.1f}", str(info.image_size), _accuracy(info), info.note)
            for info in found.values()
        ]
        print_columns(rows, ("model", "M params", "pixels", "ImageNet", "note"))
        print(f"\n{_MORE}")
        return
    if name not in found:
        near = difflib.get_close_matches(name, found, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise UserError(f"model {shown(name)} is not listed{hint} {_MORE}")
    _explain(found[name], json)


def _explain(info: ModelInfo, json: bool) -> None:
    values: dict[str, Any] = recommended(info.name)
    if json:
        print_json(asdict(info) | {"recommended": values})
        return
    print(f"{info.name}{': ' if info.note else ''}{info.note}")
    print(
        f"{info.parameters:.1f} million parameters, {info.image_size} pixels,"
        f" zero-shot ImageNet accuracy {_accuracy(info)}"
    )
    settings = " ".join(f"train.{name}={value}" for name, value in values.items())
    print(f"Unless you say otherwise it trains with {settings}.")
    print(f"everclip train model={info.name}")


def _accuracy(info: ModelInfo) -> str:
    return "unknown" if info.imagenet is None else f"{info.imagenet:.1f} %"
