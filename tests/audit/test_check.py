"""everclip data check: copies, near duplicates, suspect labels, broken and tiny pictures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everclip.audit import suspects, twins
from everclip.methods.shared.closed_form import best_lam
from tests.cli.conftest import Say, say
from tests.learned import coloured
from tests.pictures import COLOURS, image_folder, picture

__all__ = ["say"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six classes with eight training and two test pictures each; what the tests below name is planted."""
    root = image_folder(tmp_path / "photos", {"train": 8, "test": 2})
    shutil.copy(root / "train/red/0.png", root / "train/red/copy.png")
    shutil.copy(root / "train/red/1.png", root / "test/red/leak.png")
    shutil.copy(root / "train/blue/1.png", root / "train/green/two.png")
    (root / "train/black/7.png").write_bytes(b"<html>404</html>")
    picture(COLOURS["white"], 9999, side=20).save(root / "test/white/small.png")
    return root


def test_all_that_is_planted_is_found(folder: Path, toy: str, say: Say) -> None:
    code, out, _ = say("data", "check", folder, "--model", toy, "--json", "--near", "1")
    found = json.loads(out)
    assert code == 1
    assert (found["train"], found["test"], found["classes"]) == (50, 14, 6)
    exact = found["exact"]
    assert (exact["test_in_train"], exact["within_train"], exact["within_test"], exact["two_labels"]) == (
        1,
        2,
        0,
        1,
    )
    groups = [{one["image"] for one in group} for group in exact["groups"]]
    assert {"train/red/1.png", "test/red/leak.png"} in groups
    assert {"train/blue/1.png", "train/green/two.png"} in groups
    assert found["broken"]["first"] == [
        {"image": "train/black/7.png", "part": "train", "class": "black",
         "why": "no JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM"}
    ]  # fmt: skip
    assert [one["image"] for one in found["tiny"]["first"]] == ["test/white/small.png"]
    assert found["tiny"]["first"][0]["size"] == [20, 20]
    assert found["suspects"]["count"] == len(found["suspects"]["first"])
    doubt = [one["doubt"] for one in found["suspects"]["first"]]
    assert doubt == sorted(doubt, reverse=True)


def test_what_is_wrong_with_copies_is_said_first(tmp_path: Path, say: Say) -> None:
    """A picture that was copied many times: a test picture, or one of another class, among the copies is named."""
    root = image_folder(tmp_path / "photos", {"train": 6, "test": 1}, 2)
    for name in ("green/0", "green/1", "green/2", "green/3", "green/4"):
        shutil.copy(root / f"train/{name}.png", root / f"train/{name}-copy.png")
    for number in range(8):
        shutil.copy(root / "train/red/0.png", root / f"train/red/again{number}.png")
        shutil.copy(root / "train/red/1.png", root / f"train/green/other{number}.png")
    shutil.copy(root / "train/red/0.png", root / "test/red/leak.png")
    code, out, _ = say("data", "check", root, "--exact", "--most", "2", "-o", tmp_path / "page.html")
    copies = out.partition("copies:\n")[2].splitlines()
    assert code == 1
    assert copies[0] == "  train/red/0.png = test/red/leak.png = train/red/again0.png (10 in all)"
    assert copies[1] == "  train/green/other0.png = train/red/1.png = train/green/other1.png (9 in all)"
    assert copies[2] == "  train/green/0-copy.png = train/green/0.png"
    assert copies[5] == "  and 2 more: -o page.html shows and --json lists the first 2 (--most)"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<code>test/red/leak.png</code>" in page
    assert "<code>train/red/1.png</code>" in page
    found = json.loads(say("data", "check", root, "--exact", "--most", "2", "--json")[1])
    assert [[one["image"] for one in group] for group in found["exact"]["groups"]] == [
        ["train/red/0.png", "test/red/leak.png"],
        ["train/green/other0.png", "train/red/1.png"],
    ]


def test_a_clean_folder_exits_with_0_and_without_a_model(tmp_path: Path, say: Say) -> None:
    root = image_folder(tmp_path, {"train": 2, "test": 1}, 2)
    code, out, _ = say("data", "check", root, "--exact")
    assert code == 0
    assert "suspect" not in out
    assert re.search(r"test pictures that are training pictures too +0 ", out)
    assert json.loads(say("data", "check", root, "--exact", "--json")[1])["near"] is None


def test_one_class_without_a_test_part_is_all_training(tmp_path: Path, toy: str, say: Say) -> None:
    """Whichever picture is twice: none is taken for a test picture."""
    coloured(tmp_path / "new", {"red": (220, 40, 40)}, 10)
    for file in sorted((tmp_path / "new" / "red").iterdir()):
        shutil.copy(file, file.with_name(f"copy-{file.name}"))
    code, out, _ = say("data", "check", tmp_path / "new", "--model", toy, "--json")
    found = json.loads(out)
    assert (code, found["train"], found["test"], found["suspects"]["count"]) == (0, 20, 0, 0)
    assert (found["exact"]["test_in_train"], found["exact"]["within_train"]) == (0, 10)
    assert {one["part"] for group in found["exact"]["groups"] for one in group} == {"train"}


def test_the_page_has_pictures_and_escapes_names(tmp_path: Path, toy: str, say: Say) -> None:
    root = image_folder(tmp_path / "photos", {"train": 3, "test": 1}, 2)
    evil = root / "train" / "<script>alert(1)<"
    shutil.copytree(root / "train/red", evil)
    (tmp_path / "link.html").symlink_to("page.html")
    code, out, _ = say("data", "check", root, "--model", toy, "-o", tmp_path / "link.html", "--most", "2")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert code == 0
    assert f"page: {tmp_path / 'link.html'}" in out
    assert (tmp_path / "link.html").is_symlink()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert page.count('src="data:image/jpeg;base64,') >= 4
    assert "The first 2 of 3 are shown" in page
    assert "http-equiv" in page.split("<body>")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["look", "x"], 'everclip data does not take "look": use "everclip data check x"'),
        (["check", "nowhere"], 'data "nowhere" is neither a source nor a folder that exists'),
        (["check", "emoji", "--near", "2"], "--near is 2: use a number above 0, at most 1"),
        (["check", "emoji", "--most", "0"], "--most is 0: use a whole number from 1 to 1000"),
        (["check", "emoji", "-o", "/"], "/ cannot be written (it is a folder): give the name of a file"),
        (["check", "emoji", "--image-size", "3"], "--image-size is 3: use a whole number from 16 to 4096"),
    ],
)
def test_mistakes(words: list[str], message: str, say: Say) -> None:
    code, out, err = say("data", *words)
    assert (code, out) == (2, "")
    assert message in err


def test_features_have_no_pictures(tmp_path: Path, say: Say) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "f.npz", features=rng.normal(size=(8, 4)).astype("f4"), labels=np.arange(8) % 2)
    code, _, err = say("data", "check", f"features:{tmp_path / 'f.npz'}")
    assert code == 2
    assert "holds features alone" in err


def test_near_pairs_are_those_of_all_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(60, 5, generator=rng), dim=1)
    contents = np.arange(60)
    contents[7] = contents[3]
    rows[7] = rows[3]
    whole = rows @ rows.T
    wanted = {(i, j) for i in range(60) for j in range(i + 1, 60) if whole[i, j] >= 0.8} - {(3, 7)}
    monkeypatch.setattr(twins, "BLOCK", 16)
    pairs, count, leaked = twins.near(rows, contents, 0.8, 60)
    assert (count, leaked) == (len(wanted), 0)
    assert count > 20
    assert {pair[:2] for pair in pairs} == wanted
    assert [pair.cosine for pair in pairs] == sorted((pair.cosine for pair in pairs), reverse=True)
    monkeypatch.setattr(twins, "MOST_PAIRS", 5)
    fewer, *same = twins.near(rows, contents, 0.8, 60)
    assert (len(fewer), same) == (5, [count, 0])
    assert fewer == pairs[:5]


def test_equal_rows_are_near_whatever_their_product_is_rounded_to() -> None:
    rows = torch.nn.functional.normalize(
        torch.randn(400, 37, generator=torch.Generator().manual_seed(0)), dim=1
    )
    rows = torch.cat([rows, rows])
    assert (rows[:400] * rows[400:]).sum(1).min() < 1, "some products are below 1"
    assert twins.near(rows, np.arange(800), 1.0, 400)[1:] == (400, 400)


def test_near_pairs_between_the_parts_are_counted_and_kept_however_many_are_nearer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A series of training pictures, nearer to each other than the test pictures that belong to it."""
    rng = torch.Generator().manual_seed(0)
    series = torch.ones(30, 16) + 0.01 * torch.randn(30, 16, generator=rng)
    series[20:28] += 0.2 * torch.randn(8, 16, generator=rng)
    series[28:] *= -1
    rows = torch.nn.functional.normalize(series, dim=1)
    whole = rows[:20] @ rows[20:].T
    monkeypatch.setattr(twins, "BLOCK", 8)
    monkeypatch.setattr(twins, "MOST_PAIRS", 100)
    pairs, count, leaked = twins.near(rows, np.arange(30), 0.9, 20)
    assert count > 190 + 100
    assert leaked == int((whole.amax(0) >= 0.9).sum()) == 8
    nearest = whole[whole >= 0.9].sort(descending=True).values[:100]
    assert all(pair.first < 20 <= pair.second for pair in pairs)
    assert [pair.cosine for pair in pairs] == pytest.approx(nearest.tolist(), abs=1e-6)
    monkeypatch.setattr(twins, "MOST_PAIRS", 10_000)
    every = twins.near(rows, np.arange(30), 0.9, 20)[0]
    assert every[:100] == pairs
    assert [pair.first < 20 <= pair.second for pair in every] == sorted(
        [pair.first < 20 <= pair.second for pair in every], reverse=True
    )


def test_contents_that_are_not_known_are_no_group() -> None:
    assert twins.groups(np.array([5, -2, 7, 5, -2, 7, 1])) == [[0, 3], [2, 5]]


def test_scores_are_those_of_a_fit_without_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(40, 6, generator=rng), dim=1)
    labels = torch.arange(40) % 4
    monkeypatch.setattr(suspects, "CHUNK", 16)
    found = suspects.doubts(rows, labels, 4)
    centred = torch.nn.functional.normalize(rows.double() - rows.double().mean(0), dim=1)
    x = torch.cat([centred, torch.ones(40, 1, dtype=torch.float64)], 1)
    y = torch.nn.functional.one_hot(labels, 4).double()
    lam = best_lam(x.T @ x, x.T @ y, 40.0, 40)
    for left_out in (0, 17, 39):
        kept = torch.arange(40) != left_out
        weight = torch.linalg.solve(
            x[kept].T @ x[kept] + lam * torch.eye(7, dtype=torch.float64), x[kept].T @ y[kept]
        )
        scores = x[left_out] @ weight
        own = scores[labels[left_out]].item()
        scores[labels[left_out]] = -torch.inf
        assert found.doubt[left_out].item() == pytest.approx(scores.max().item() - own, rel=1e-9)
        assert found.other[left_out] == scores.argmax()


def test_the_only_picture_of_a_class_is_no_suspect(tmp_path: Path, toy: str, say: Say) -> None:
    """Left out, nothing else says what its class is."""
    root = image_folder(tmp_path / "photos", {"train": 6, "test": 2}, 3)
    for name, label in (("yellow", "alone"), ("red", "green")):
        (root / "train" / label).mkdir(exist_ok=True)
        picture(COLOURS[name], 99).save(root / "train" / label / "planted.png")
    found = json.loads(say("data", "check", root, "--model", toy, "--json")[1])
    assert [one["image"] for one in found["suspects"]["first"]] == ["train/green/planted.png"]


@pytest.mark.slow
def test_planted_copies_and_wrong_labels_in_photographs(data_root: Path, tmp_path: Path) -> None:
    """One seed of ``benchmarks.data_check``, at 96 px."""
    from benchmarks.data_check import found, plant

    from everclip.audit.check import Options, check
    from everclip.system.progress import Progress

    planted = plant(data_root / "caltech50", tmp_path / "photos", seed=3)
    findings = check(f"imagefolder:{tmp_path / 'photos'}", Options(image_size=96), Progress(quiet=True))
    hits = found(findings, planted)
    assert (hits.copies, hits.others) == (20, 0)
    assert hits.wrong >= 15


def test_a_picture_that_is_almost_the_same_is_near(tmp_path: Path, toy: str, say: Say) -> None:
    root = image_folder(tmp_path / "photos", {"train": 3, "test": 1}, 3)
    Image.open(root / "train/red/0.png").save(root / "test/red/again.webp", lossless=True)
    found = json.loads(say("data", "check", root, "--model", toy, "--json", "--near", "0.999999")[1])
    assert found["exact"]["test_in_train"] == 0
    assert found["near"]["test_in_train"] == 1
    assert found["near"]["pairs"][0]["first"] == "train/red/0.png"
    assert found["near"]["pairs"][0]["second"] == "test/red/again.webp"
