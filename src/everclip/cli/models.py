"""everclip models: list the models that model= takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from everclip.cli._options import Json
from everclip.cli._output import print_columns, print_json
from everclip.errors import UserError
from everclip.models.catalogue import ModelInfo, catalogue, costs, recommended

_MORE = (
    "Any other open_clip model works too: model=NAME:TAG, hf-hub:ORG/REPO, local-dir:/path, or the"
    " folder of an earlier run. everclip models ViT-B lists all with ViT-B in their names, everclip models"
    " --here those whose weights are on this machine."
)
_HEAD = ("model", "M params", "GFLOP image", "text", "pixels", "ImageNet", "CIFAR-100", "note")
_LEGEND = (
    "GFLOP: billions of operations in a forward pass, per image and per prompt; training takes three times"
    " as many. ImageNet, CIFAR-100: zero-shot top-1 accuracy as open_clip publishes it."
)
_QUICK = "QuickGELU"


def models(name: str | None = None, /, *, here: bool = False, json: Json = False) -> None:
    """List models to start from, explain one, or find models by part of a name.

    Args:
        name: A model's name and tag; or a part of one, such as ViT-B.
        here: List only models whose weights are on this machine, ready for offline use.
    """
    found = {info.name: info for info in catalogue()}
    if name in found and not here:
        _explain(found[name], json)
    elif name is None and not here:
        if json:
            print_json([_values(info) for info in found.values()])
            return
        print_columns([_row(info) for info in found.values()], _HEAD)
        print(f"\n{_LEGEND}\n{_MORE}")
    else:
        _search(name or "", here, found, json)


def _search(text: str, here: bool, listed: Mapping[str, ModelInfo], json: bool) -> None:
    """List all models whose names hold a text, in any case, and where their weights are. Raises UserError for none."""
    from everclip.models import names, weights  # imports torch

    matching = [spec for spec in names.every() if text.casefold() in spec.casefold()]
    if not matching:
        raise UserError(names.unknown(text))
    states = {spec: weights.are_here(spec) for spec in matching}
    rows = [(spec, there, listed[spec].note if spec in listed else "") for spec, there in states.items()]
    rows = [row for row in rows if row[1] or not here]
    if json:
        print_json([{"name": spec, "here": there, "note": note} for spec, there, note in rows])
        return
    if not rows:
        print("none; everclip models lists those that can be downloaded")
        return
    places = [(spec, "here" if there else "to download", note) for spec, there, note in rows]
    print_columns(places, ("model", "weights", "note"))


def _values(info: ModelInfo) -> dict[str, Any]:
    """Return what is known about a model, for programs."""
    found = costs(info.name)
    more = {} if found is None else {"image_flops": found.image_flops, "text_flops": found.text_flops}
    return asdict(info) | more


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
    known = f"{_accuracy(info.imagenet)} on ImageNet, {_accuracy(info.cifar100)} on CIFAR-100"
    print(f"{info.parameters:.1f} million parameters, {info.image_size} pixels, zero-shot accuracy {known}")
    if found is not None:
        image, text = _billions(found.image_flops), _billions(found.text_flops)
        print(f"{image} GFLOP per image and {text} per prompt, forward; training takes three times as many")
    if info.quick_gelu:
        name = info.name.partition(":")[0]
        print(f"Trained with {_QUICK}, which everclip uses for them; open_clip calls that {name}-quickgelu.")
    settings = " ".join(f"train.{name}={value}" for name, value in values.items())
    print(f"Its defaults in [train]: {settings}.")
    print(f"everclip train model={info.name}")


def _billions(operations: float) -> str:
    return f"{operations / 1e9:.1f}"


def _accuracy(percent: float | None) -> str:
    return "unknown" if percent is None else f"{percent:.2f} %"
