"""Write a model card, README.md in the form of Hugging Face's hub, from what the model's own folder says.

A number that nobody measured is "not measured", a licence that its source does not state is "not stated": nothing is
guessed. Names and licences come from strangers, so everything that Markdown or YAML would obey is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everclip._version import __version__
from everclip.data.scenario import seen
from everclip.errors import UserError
from everclip.export import Written
from everclip.export.shared import licences
from everclip.inference.learned import LIST, is_version
from everclip.inference.model import Deployed
from everclip.runs import card as cards
from everclip.runs.card import METHOD_FILE
from everclip.runs.schema import LEAST, MOST_CLASSES
from everclip.runs.schema import load as load_results
from everclip.runs.words import several
from everclip.system.kinds import COUNT, SHARE, listed, or_null, table, text
from everclip.system.reading import Unreadable, read_json
from everclip.system.text import printable

FILE = "README.md"
SHOWN = 1000
"""Largest number of classes in the table; a file beside it has all."""
UNKNOWN = "not measured"
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]()#!|<>~&$@:.^=+-])")
_SHARE = or_null(SHARE)
_ROW = table({"class": text, "n": COUNT}, {"before": _SHARE, "after": _SHARE})
_TEST = table(
    {"images": COUNT},
    dict.fromkeys(("accuracy", "old_before", "old_after", "new_after", "before", "after"), _SHARE)
    | {"per_class": listed(_ROW, MOST_CLASSES)},
)
_RECALLS = {
    "captions found by an image, recall@1": "image_to_text_recall_at_1",
    "images found by a caption, recall@1": "text_to_image_recall_at_1",
    "mean of both, each task searched alone, after the last task": "last",
    "forgetting of that mean, in percentage points": "forgetting",
}
"""Rows of a run on images with captions, and their keys in results.json."""
_LIBRARY = {"onnx": "onnx", "open-clip": "open_clip", "hf": "transformers"}
_USE = {
    "onnx": "`python example.py PICTURE...` needs numpy, Pillow and onnxruntime; `preprocess.json` says how a picture"
    " becomes the input, `labels.json` has the classes.",
    "open-clip": '`open_clip.create_model_from_pretrained("local-dir:FOLDER")`, or'
    " `everclip predict FOLDER PICTURE...`.",
    "captions": '`open_clip.create_model_from_pretrained("local-dir:FOLDER")`, or'
    " `everclip predict local-dir:FOLDER --classes FILE PICTURE...` for classes of your own.",
    "hf": "`python example.py PICTURE...` needs transformers, torch and Pillow; `classes.json` has the classes and"
    " their prompts, `class_embeddings.safetensors` their embeddings.",
}


def plain(value: object) -> str:
    """Return a stranger's text so that Markdown shows it as it is, on one line: no markup, no link, no table's border.

    A backslash before a sign takes its meaning away (https://spec.commonmark.org/0.31.2/#backslash-escapes).
    """
    return _PUNCTUATION.sub(r"\\\1", " ".join(printable(str(value)).split()))


def write(model: Deployed, form: str, folder: Path, written: Written) -> None:
    """Write the card of an export into its folder."""
    stated = licences.of(model)
    head = {
        "library_name": _LIBRARY[form],
        "pipeline_tag": "image-classification" if form == "onnx" else "zero-shot-image-classification",
        "license": licences.common(stated),
        "tags": ["everclip", "continual-learning", "clip"],
    }
    yaml = [f"{key}: {json.dumps(value)}" for key, value in head.items()]  # JSON is YAML
    measured = _measured(model)
    if model.plan is not None and model.plan.data.captioned:
        title, use = "A CLIP model that has learned images with captions", _USE["captions"]
        rows = [f"| {name} | {_percent(measured.get(key))} |" for name, key in _RECALLS.items()]
        found = ["## Retrieval", "", "| search | % |", "|---|---|", *rows, ""]
    else:
        title, use = f"A classifier of {several(len(model.names), 'class')}", _USE[form]
        found = ["## Accuracy", "", *_accuracy(measured, written.checked.get("int8")), ""]
        found += ["## Classes", "", *_classes(model.names, measured.get("per_class", ())), ""]
    parts = [
        ["---", *yaml, "---", "", f"# {title}", ""],
        [f"Exported by everclip {__version__} with `--format {form}`. {use}", ""],
        found,
        ["## Pictures", "", *_pictures(model, folder), ""],
        [
            "## Licences",
            "",
            "As their sources state them; the pictures that were learned may have others.",
            "",
        ],
        ["| part | licence |", "|---|---|"],
        [f"| {plain(part)} | {plain(licence or 'not stated')} |" for part, licence in stated],
    ]
    lines = [line for part in parts for line in part]
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _folder(model: Deployed) -> Path | None:
    """Return the folder that a model was opened from; None where it does not hold it any more, as after a rollback."""
    folder = Path(model.spec).expanduser()
    try:
        return folder if not model.identity or cards.identity(folder) == model.identity else None
    except UserError:  # it has gone
        return None


def _measured(model: Deployed) -> dict[str, Any]:
    """Return what the model's folder says of its accuracy; empty where that is nothing, or is of other classes."""
    folder = _folder(model)
    if folder is None or model.plan is None or len(model.labels) != len(seen(model.plan.tasks)):
        return {}
    try:
        if is_version(folder):
            verdict = read_json(folder / "verdict.json")
            test: Any = verdict.get("test") if isinstance(verdict, dict) else None
            return test if _TEST(test) else {}
        if (folder / "results.json").is_file():
            return load_results(folder / "results.json", LEAST)
    except Unreadable:
        pass  # a card is written all the same
    return {}


def _accuracy(found: Mapping[str, Any], int8: Mapping[str, Any] | None) -> list[str]:
    """Return rows of accuracies in %."""
    images = f" on {found['images']:,} held-out images" if "images" in found else ""
    if "last" in found:  # a run's results
        rows = [
            ("all classes, after the last task", _percent(found["last"])),
            ("mean over tasks of the accuracy on all classes so far", _percent(found.get("average"))),
            ("forgetting, in percentage points", _percent(found.get("forgetting"))),
        ]
    else:
        before, after = (found.get(f"old_{when}", found.get(when)) for when in ("before", "after"))
        lost = None if before is None or after is None else before - after
        rows = [
            (f"all classes{images}", _percent(found.get("accuracy", found.get("after")))),
            ("old classes before the last update", _percent(before)),
            ("old classes after it", _percent(after)),
            ("new classes after it", _percent(found.get("new_after"))),
            ("forgetting: points that the old classes lost", _percent(lost)),
        ]
    if int8 is not None:
        rows += [
            (f"model.int8.onnx on {int8['images']:,} images", _percent(int8["accuracy"])),
            ("model.onnx on the same images", _percent(int8["accuracy_fp32"])),
        ]
    return ["| accuracy | % |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.1f}"


def _classes(names: Sequence[str], tested: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the classes, with the accuracy before and after where that is known."""
    rows = {row["class"]: row for row in tested if "after" in row}
    lines = ["| class | images tested | before, % | after, % |", "|---|---|---|---|"]
    if not rows:
        lines = ["| class |", "|---|"]
    for name in names[:SHOWN]:
        cells = " 0 | | |" if rows else ""
        if row := rows.get(name):
            before, after = row.get("before"), row["after"]
            cells = f" {row['n']} | {'' if before is None else _percent(before)} | {_percent(after)} |"
        lines.append(f"| {plain(name)} |{cells}")
    more = len(names) - SHOWN
    return [*lines, *(["", f"and {more:,} more."] if more > 0 else [])]


def _pictures(model: Deployed, folder: Path) -> list[str]:
    """Say whether pictures are inside."""
    inside = (folder / "images.zip").is_file()
    words = ["Pictures are inside, in `images.zip`." if inside else "No picture is inside."]
    if (folder / METHOD_FILE).is_file():
        words.append(f"`{METHOD_FILE}` has what the method computed from pictures: sums, means or weights.")
    source = _folder(model)
    if source is not None and is_version(source):
        try:
            kept = len(read_json(source / LIST)["rows"])
            words.append(f"The version that this was exported from keeps {kept:,} of its pictures.")
        except (Unreadable, LookupError, TypeError):
            pass  # its reader says what is wrong with it
    return [" ".join(words)]
