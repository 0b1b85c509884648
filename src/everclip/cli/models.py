"""everclip models: list what can be written after model=."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from typing import Any

from everclip.cli._options import Json
from everclip.cli._output import print_columns, print_json
from everclip.errors import UserError, shown
from everclip.models.catalogue import ModelInfo, catalogue, costs, recommended

_MORE = (
    "Any other open_clip model works too: model=NAME:TAG, hf-hub:ORG/REPO, local-dir:/path, or the folder"
    " of an earlier run."
)
_HEAD = ("model", "M params", "GFLOP image", "text", "pixels", "ImageNet", "CIFAR-100", "note")
_LEGEND = (
    "GFLOP: billions of operations of a forward pass of one image, of one prompt; training takes three times as many."
    " ImageNet, CIFAR-100: zero-shot top-1 accuracy as open_clip publishes it."
)
_QUICK = "QuickGELU"


def models(name: str | None = None, /, *, json: Json = False) -> None:
    """List models to start from, or explain one.

    Args:
        name: A model's name and tag.
    """
    found = {info.name: info for info in catalogue()}
    if name is None:
        if json:
            print_json([_values(info) for info in found.values()])
            return
        print_columns([_row(info) for info in found.values()], _HEAD)
        print(f"\n{_LEGEND}\n{_MORE}")
        return
    if name not in found:
        near = difflib.get_close_matches(name, found, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise UserError(f"model {shown(name)} is not listed{hint} {_MORE}")
    _explain(found[name], json)


def _values(info: ModelInfo) -> dict[str, Any]:
    """Return what is known of a model, for programs."""
    found = costs(info.name)
    values = asdict(info)
    return values | (
        {} if found is None else {"image_flops": found.image_flops, "text_flops": found.text_flops}
    )


def _row(info: ModelInfo) -> tuple[str, ...]:
    found = costs(info.name)
    image, text = ("?", "?") if found is None else (_billions(found.image_flops), _billions(found.text_flops))
    note = ", ".join(part for part in (info.note, _QUICK if info.quick_gelu else "") if part)
    numbers = (f"{info.parameters:.1f}", image, text, str(info.image_size))
    return (info.name, *numbers, _accuracy(info.imagenet), _accuracy(info.cifar100), note)


def _explain(info: ModelInfo, json: bool) -> None:
    values: dict[str, Any] = recommended(info.name)
    if json:
        print_json(_values(info) | {"recommended": values})
        return
    print(f"{info.name}{': ' if info.note else ''}{info.note}")
    found = costs(info.name)
    print(
        f"{info.parameters:.1f} million parameters, {info.image_size} pixels,"
        f" zero-shot accuracy {_accuracy(info.imagenet)} on ImageNet, {_accuracy(info.cifar100)} on CIFAR-100"
    )
    if found is not None:
        print(
            f"{_billions(found.image_flops)} GFLOP an image and {_billions(found.text_flops)} a prompt, forward;"
            " training takes three times as many"
        )
    if info.quick_gelu:
        name = info.name.partition(":")[0]
        print(
            f"Trained with {_QUICK}, which everclip uses for these weights; open_clip calls that {name}-quickgelu."
        )
    settings = " ".join(f"train.{name}={value}" for name, value in values.items())
    print(f"Unless you say otherwise it trains with {settings}.")
    print(f"everclip train model={info.name}")


def _billions(operations: float) -> str:
    return f"{operations / 1e9:.1f}"


def _accuracy(percent: float | None) -> str:
    return "unknown" if percent is None else f"{percent:.2f} %"
