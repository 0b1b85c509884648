"""data=features:FILE.npz: embeddings without images, from the file to runs, resumes, updates and refusals."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everclip import data
from everclip.cli.app import main
from everclip.data.formats import features as forms
from everclip.data.images import ImageSet
from everclip.data.pixels import Pixels
from everclip.errors import UserError
from everclip.models import zoo
from tests.complaints import complaint
from tests.running import configured, run, run_for, timeless

D, CLASSES = 8, 6


def arrays(each: int = 10, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Noisy rows around a mean a class, with whole numbers as labels."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(CLASSES), each)
    rows = means()[labels] + 0.5 * rng.normal(size=(len(labels), D))
    return {"features": rows.astype(np.float32), "labels": labels} | more


def means() -> np.ndarray:
    return np.random.default_rng(99).normal(size=(CLASSES, D))


def named(**more: Any) -> dict[str, Any]:
    """With both parts, names, texts and domains."""
    test = {f"test_{key}": value for key, value in arrays(4, 1).items()}
    names = {"classnames": np.array([f"bird {k}" for k in "fedcba"]), "text_features": means()}
    domains = {
        "domains": np.arange(10 * CLASSES) % 2,
        "test_domains": np.arange(4 * CLASSES) % 2,
    }
    return arrays() | test | names | domains | more


def spec(path: Path, found: dict[str, Any]) -> str:
    np.savez(path, **{key: value for key, value in found.items() if value is not None})
    return f"features:{path}"


def rows_of(images: ImageSet) -> np.ndarray:
    return Pixels(images.store, lambda image: image, 0).load(images.rows)[0].numpy()


def test_the_rows_labels_parts_and_domains_are_those_of_the_file(tmp_path: Path) -> None:
    given = named()
    found = data.load(spec(tmp_path / "f.npz", given))
    assert found.class_names == ("bird f", "bird e", "bird d", "bird c", "bird b", "bird a")
    assert found.domain_names == ("0", "1")
    assert found.templates == ("{}",)
    assert not found.held_out
    for part, prefix in ((found.train, ""), (found.test, "test_")):
        np.testing.assert_array_equal(rows_of(part), given[f"{prefix}features"])
        np.testing.assert_array_equal(part.labels, given[f"{prefix}labels"])
        np.testing.assert_array_equal(part.domains, given[f"{prefix}domains"])
    assert main(["datasets", "check", f"features:{tmp_path / 'f.npz'}"]) == 0


def test_without_a_test_part_a_fifth_is_held_out_and_the_same_each_time(tmp_path: Path) -> None:
    found = [data.load(spec(tmp_path / f"{n}.npz", arrays(30))) for n in "ab"]
    assert found[0].held_out
    assert found[0].templates == ()
    assert (found[0].test.counts(CLASSES) > 0).all()
    assert len(found[0].train) + len(found[0].test) == 30 * CLASSES
    assert found[0].test.ids.tolist() == found[1].test.ids.tolist()


@pytest.mark.parametrize("kind", [np.float16, np.float64, ">f4"])
@pytest.mark.parametrize("labels", ["iu", "U"])
def test_any_floats_and_texts_as_labels(tmp_path: Path, kind: Any, labels: str) -> None:
    given = arrays()
    given["features"] = np.asfortranarray(given["features"].astype(kind))
    given["labels"] = given["labels"].astype(np.uint8 if labels == "iu" else str)
    found = data.load(spec(tmp_path / "f.npz", given))
    assert found.class_names == tuple("012345")
    np.testing.assert_array_equal(
        rows_of(found.train + found.test),
        given["features"].astype(np.float32)[[*found.train.rows, *found.test.rows]],
    )


class Trap:
    """What a pickle would call."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("trapped"),)


def changed(**more: Any) -> Callable[[Path], str]:
    return lambda path: spec(path, named(**more))


def with_nan(name: str) -> Callable[[Path], str]:
    rows = named()[name].copy()
    rows[3, 1] = np.nan
    return changed(**{name: rows})


def content(path: Path, what: bytes) -> str:
    path.write_bytes(what)
    return f"features:{path}"


def packed(path: Path) -> str:
    """A small file that unpacks to 64 MiB of zeros."""
    np.savez_compressed(path, **arrays())
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += (
        str({"descr": "<f4", "fortran_order": False, "shape": (1 << 15, 512)}).ljust(117).encode() + b"\n"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            member.write(header)
            for _ in range(4):
                member.write(bytes(1 << 24))
        archive.writestr("labels.npy", b"")
    return f"features:{path}"


BAD: dict[str, tuple[Callable[[Path], str], str]] = {
    "objects": (
        changed(labels=np.array([Trap()] * 60, dtype=object)),
        "labels is of another kind: object (60,)",
    ),
    "object rows": (changed(features=np.array([Trap()] * 60, dtype=object)), "features is of another kind"),
    "no zip": (lambda path: content(path, b"\x93NUMPY"), "no .npz file"),
    "empty": (lambda path: content(path, b""), "no .npz file"),
    "a bomb": (packed, "features unpacks to 67,108,992 bytes, of a file of"),
    "no labels": (changed(labels=None), "'labels.npy'"),
    "one dimension": (changed(features=np.ones(60)), "features is of another kind: float64 (60,)"),
    "whole numbers": (
        changed(features=np.ones((60, D), dtype=int)),
        "features is of another kind: int64 (60, 8)",
    ),
    "NaN": (
        with_nan("features"),
        "row 3 of features is not finite in float32: leave it out",
    ),
    "NaN in the test part": (with_nan("test_features"), "row 3 of test_features is not finite"),
    "NaN in the text": (with_nan("text_features"), "row 3 of text_features is not finite"),
    "too large": (changed(features=np.full((60, D), 1e300)), "row 0 of features is not finite in float32"),
    "no rows": (changed(features=np.ones((0, D))), "features has the shape [0, 8]"),
    "short labels": (changed(labels=np.arange(59)), "labels has 59 entries for 60 rows of features"),
    "short test": (
        changed(test_labels=np.arange(3)),
        "test_labels has 3 entries for 24 rows of test_features",
    ),
    "no test labels": (changed(test_labels=None), "has no test_labels"),
    "no test rows": (changed(test_features=None), "has no test_features"),
    "no test domains": (changed(test_domains=None), "has no test_domains"),
    "no domains": (changed(domains=None), "has no domains"),
    "another width": (changed(test_features=np.ones((24, 5))), "test_features has 5 columns and features 8"),
    "text width": (changed(text_features=np.ones((6, 5))), "text_features has 5 columns and features 8"),
    "text rows": (changed(text_features=np.ones((5, D))), "5 rows of text_features for 6 classnames"),
    "text of nobody": (
        changed(classnames=None, labels=np.repeat(list("abcdef"), 10)),
        "6 rows of text_features for 0 classnames",
    ),
    "names that are alike": (
        changed(classnames=np.array(["bird_a", "bird a", *"cdef"])),
        'are both named "bird a": rename one',
    ),
    "a label beyond": (
        changed(labels=np.arange(60)),
        "labels has the label 6: use whole numbers from 0 to 5",
    ),
    "a label below": (
        changed(labels=np.arange(60) - 1, classnames=None, text_features=None),
        "labels has the label -1: use whole numbers from 0 on",
    ),
    "an unknown label": (
        changed(test_labels=np.array(["bird a"] * 23 + ["emu"])),
        'test_labels has "emu", which is none of classnames',
    ),
    "no character": (
        changed(classnames=np.frombuffer(b"\xff\xff\xff\x7f" * 6, "<U1")),
        "classnames holds what is not text",
    ),
    "one class": (
        changed(labels=np.zeros(60, dtype=int), test_labels=np.zeros(24, dtype=int)),
        "a classifier needs two: add another",
    ),
    "one name": (changed(classnames=np.array(["a", "a", "b", "c", "d", "e"])), 'both named "a"'),
    "nearly one name": (
        changed(classnames=np.array(["a_b", "b", "c", "d", "e", "a b"])),
        'both named "a b"',
    ),
    "an escape": (changed(classnames=np.array(["\x1b[2J", "a", "b", "c", "d", "e"])), "cannot be printed"),
    "missing": (lambda path: f"features:{path}", "cannot be read (No such file or directory)"),
    "a folder": (lambda path: path.mkdir() or f"features:{path}", "holds no features that can be read"),
    "nothing": (lambda path: "features", 'data "features" needs a file'),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_wrong_is_named_with_the_array_in_one_line(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = BAD[case]
    named_as = make(tmp_path / "f.npz")
    text = complaint(data.load, named_as)
    assert message in text
    assert "\n" not in text
    assert case == "nothing" or str(tmp_path / "f.npz") in text
    assert ": " in text.replace(str(tmp_path), "")
    assert not (tmp_path / "trapped").exists()


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    first = rows_of(data.load(spec(tmp_path / "f.npz", named())).train)
    again = rows_of(data.load(spec(tmp_path / "f.npz", named(features=2 * named()["features"]))).train)
    np.testing.assert_array_equal(again, 2 * first)


# Runs ---------------------------------------------------------------------------------------------------------------


def exported(folder: Path, toy: str, source: str) -> str:
    """The image features of a data set by a model, and its classes."""
    clip, found, columns = zoo.load(toy), data.load(source), dict[str, Any]()
    for images, prefix in ((found.train, ""), (found.test, "test_")):
        pixels = Pixels(images.store, clip.eval_transform, clip.image_size, 0)
        with torch.inference_mode():
            parts = [clip.encode_image(pixels.load(rows)[0]) for rows in np.array_split(images.rows, 8)]
        columns |= {f"{prefix}features": torch.cat(parts).numpy(), f"{prefix}labels": images.labels}
    with torch.inference_mode():
        text = clip.class_embeddings(found.class_names, ("a photo of a {}.",)).numpy()
    return spec(
        folder / "f.npz", columns | {"classnames": np.array(found.class_names), "text_features": text}
    )


@pytest.mark.parametrize(
    "method",
    [
        ("ridge",),
        ("ridge", "method.prior=text"),
        ("ncm",),
        ("slda",),
        ("ranpac",),
        ("zero_shot",),
        ("multilayer_lda", "method.stages=[]", "method.mirror=false"),
    ],
    ids=lambda method: "-".join(method),
)
def test_features_give_what_their_images_give(
    tmp_path: Path, toy: str, photos: str, method: tuple[str, ...]
) -> None:
    tokens = [f"method={method[0]}", *method[1:]]
    texts = 'templates=["a photo of a {}."]'
    images = run(tmp_path / "images", f"data={photos}", f"model={toy}", texts, *tokens)
    rows = run(tmp_path / "rows", f"data={exported(tmp_path, toy, photos)}", *tokens)
    for key in (
        "classes",
        "matrix",
        "accuracy_after_stage",
        "zero_shot_after_stage",
        "per_class",
        "test_counts",
    ):
        assert rows[key] == images[key], key
    for key in ("label", "top"):
        np.testing.assert_array_equal(
            *(np.load(tmp_path / n / "predictions.npz")[key] for n in ("images", "rows"))
        )
    confidence = [np.load(tmp_path / n / "predictions.npz")["margin"] for n in ("images", "rows")]
    np.testing.assert_allclose(*confidence, rtol=1e-3, atol=1e-4)


def test_ridge_on_emoji_is_ridge_on_their_features(tmp_path: Path, toy: str) -> None:
    images = run(tmp_path / "images", "data=emoji", f"model={toy}", "image_size=32", "method=ridge")
    rows = run(tmp_path / "rows", f"data={exported(tmp_path, toy, 'emoji')}", "method=ridge")
    assert rows["classes"] == images["classes"]
    assert rows["accuracy_after_stage"] == images["accuracy_after_stage"]
    np.testing.assert_array_equal(
        *(np.load(tmp_path / n / "predictions.npz")["top"] for n in ("images", "rows"))
    )


@pytest.mark.parametrize("method", ["ncm", "ridge", "ranpac", "slda", "multilayer_lda"])
def test_without_text_there_is_no_zero_shot(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = spec(tmp_path / "f.npz", arrays(30))
    small = ["method.width=64"] if method == "ranpac" else []
    tokens = [f"data={source}", f"method={method}", "scenario.tasks=3", f"out={tmp_path / 'run'}", *small]
    assert main(["train", *tokens]) == 0
    assert "zero-shot" not in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["last"] > 0.6
    keys = ("zero_shot", "zero_shot_after_stage", "zero_shot_per_task", "forward_transfer")
    assert [results[key] for key in keys] == [None] * 4
    assert results["model"] == source
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "no zero-shot accuracy" in page
    assert "end below zero-shot" not in page
    assert main(["train", *tokens, "--dry-run"]) == 0
    assert "no zero-shot, as there are no text features" in capsys.readouterr().out
    for command in (
        ["evaluate", str(tmp_path / "run")],
        ["evaluate", str(tmp_path / "run"), "--data", source],
    ):
        assert main(command) == 0


def test_runs_without_text_are_compared_and_reported_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = spec(tmp_path / "f.npz", arrays(30))
    for method in ("ncm", "ridge"):
        run(tmp_path / "runs" / method, f"data={source}", f"method={method}", "references=all")
    folders = [str(tmp_path / "runs" / method) for method in ("ncm", "ridge")]
    assert main(["compare", *folders]) == 0
    assert "ridge" in (out := capsys.readouterr().out)
    assert "zero_shot" not in out
    assert main(["report", *folders, "-o", str(tmp_path / "all.html")]) == 0
    results = json.loads((tmp_path / "runs" / "ncm" / "results.json").read_text())
    assert results["frozen_features"] > 0.6
    from everclip.plots import per_class

    legend = per_class(folders[0]).get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 2


def test_domains_are_tasks(tmp_path: Path) -> None:
    source = spec(tmp_path / "f.npz", named(domains=np.repeat([["ink", "oil"]], 30, 0).ravel(),
                                            test_domains=np.repeat([["ink", "oil"]], 12, 0).ravel()))  # fmt: skip
    results = run(
        tmp_path / "run", f"data={source}", "method=multilayer_lda", "scenario.kind=domain-incremental"
    )
    assert results["tasks"] == ["ink", "oil"]
    assert results["last"] > 0.6
    source = spec(tmp_path / "none.npz", arrays())
    with pytest.raises(
        UserError, match="has fewer than 2 domains: write the domain of each row into the array domains"
    ):
        run(tmp_path / "other", f"data={source}", "method=ncm", "scenario.kind=domain-incremental")


def test_a_run_goes_on_where_it_stopped_and_not_on_other_features(tmp_path: Path) -> None:
    source = spec(tmp_path / "f.npz", named())
    tokens = [f"data={source}", "method=ridge"]
    whole = run(tmp_path / "whole", *tokens)
    run(tmp_path / "again", *tokens)
    stages = sorted((tmp_path / "again" / "checkpoints").iterdir())
    assert len(stages) >= 2
    (tmp_path / "again" / "results.json").unlink()
    for part in stages[-1:]:
        for file in part.iterdir():
            file.write_bytes(b"")  # the newest is damaged, so the one before goes on
    found = run_for(tmp_path / "again", 99, *tokens)
    assert found is not None
    assert timeless(found) == timeless(whole)
    (tmp_path / "again" / "results.json").unlink()
    rows = named()["features"].copy()
    rows[0] += 1
    spec(tmp_path / "f.npz", named(features=rows))
    with pytest.raises(UserError, match="train/0"):
        run(tmp_path / "again", *tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            ["method=gcl"],
            "gcl needs images: {data} holds features alone; use ncm, ridge, ranpac, slda, fecam",
        ),
        (["method=layup"], "layup needs images: {data} holds features alone; use ncm"),
        (["method=joint"], "joint needs images: {data} holds features alone; use ncm"),
        (["method=ncm", "method.adapt=clip"], "ncm with method.adapt=clip needs images"),
        (["method=ncm", "model=ViT-B-32:openai"], "model=ViT-B-32:openai needs images: {data} holds"),
        (["method=ncm", "templates=simple"], "templates=simple is for a text tower"),
        (["method=ncm", "classnames=a.txt"], "classnames=a.txt is for a text tower"),
        (["method=ncm", "method.feature=pooled"], "has no pooled output before its projection"),
        (["method=ncm", "cache.trunk=on"], "features have no tower whose activations could be kept"),
        (
            ["method=multilayer_lda", "method.stages=[0.5]"],
            "features have no blocks: use method.stages=[]",
        ),
        (["method=multilayer_lda", "method.scales=[0.5]"], "use method.scales=[1.0]"),
        (
            ["method=zero_shot"],
            "method=zero_shot with these options reads class embeddings: add text_features to",
        ),
        (["method=ridge", "method.prior=text"], "method=ridge with these options reads class embeddings"),
    ],
)
def test_what_needs_images_or_text_is_refused(tmp_path: Path, tokens: list[str], message: str) -> None:
    source = spec(tmp_path / "f.npz", arrays())
    assert message.format(data=source) in complaint(run, tmp_path / "run", f"data={source}", *tokens)


def test_images_and_models_of_features_do_not_go_together(
    tmp_path: Path, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = spec(tmp_path / "f.npz", named())
    run(tmp_path / "run", f"data={source}", "method=ncm")
    picture = next(Path(photos.partition(":")[2]).rglob("*.png"))
    wrong = {
        ("evaluate", toy, "--data", source): "the model takes images and the data are features",
        (
            "evaluate",
            str(tmp_path / "run"),
            "--data",
            photos,
        ): "the model takes features and the data are images",
        ("predict", str(tmp_path / "run"), str(picture)): "the model takes features and the data are images",
        (
            "export",
            str(tmp_path / "run"),
            "-o",
            str(tmp_path / "out"),
        ): "takes features, which no format has",
        ("evaluate", "features:5", "--data", source): "features:5 has no class embeddings",
        ("evaluate", source, "--data", source, "--image-size", "64"): "image_size=64",
        (
            "train",
            f"data={photos}",
            f"model={source}",
            "method=ncm",
            "scenario.tasks=2",
            f"out={tmp_path / 'x'}",
        ): "takes features",
    }
    for command, message in wrong.items():
        assert main([*command]) == 2, command
        assert message in capsys.readouterr().err
    assert main(["evaluate", source, "--data", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.6


def test_a_saved_model_is_checked(tmp_path: Path) -> None:
    clip = zoo.load(spec(tmp_path / "f.npz", named()))
    clip.center_images(torch.zeros(D) + 0.1)
    clip.save(tmp_path / "saved")
    again = zoo.load(f"local-dir:{tmp_path / 'saved'}")
    rows = torch.randn(3, D)
    assert torch.equal(again.encode_image(rows), clip.encode_image(rows))
    assert torch.equal(again.encode_text(["bird a"]), clip.encode_text(["bird a"]))
    with pytest.raises(UserError, match="features have 5 numbers, not 8"):
        again.encode_image(torch.randn(3, 5))
    with pytest.raises(UserError, match='has no text feature of "emu"'):
        again.encode_text(["emu"])
    file = tmp_path / "saved" / "open_clip_config.json"
    config = json.loads(file.read_text())
    for key, value in (("features", 1 << 40), ("features", "8"), ("classes", ["a"]), ("classes", 7)):
        file.write_text(json.dumps(config | {"model_cfg": config["model_cfg"] | {key: value}}))
        with pytest.raises(UserError, match="do not go together"):
            zoo.load(f"local-dir:{tmp_path / 'saved'}")


def test_a_config_that_is_resolved_stays_as_it_is(tmp_path: Path) -> None:
    from everclip.runs.resolve import resolve

    config = configured(f"data={spec(tmp_path / 'f.npz', named())}", "method=ridge")
    assert (config.model, config.image_size) == (config.data, None)
    assert resolve(config) == config


def test_the_limits_are_above_what_people_have() -> None:
    """ImageNet by the widest tower of the catalogue."""
    assert forms.MOST_WIDTH >= 4096
    assert forms.MOST_FILE >= 1_331_167 * 4096 * 8


def test_a_home_is_found_for_the_data_and_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "f.npz", features=np.eye(4, dtype=np.float32), labels=np.arange(4))
    assert forms.read(Path("~/f.npz")).store.width == 4
