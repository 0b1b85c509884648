"""data=hf:NAME where it is damaged or cannot be told: one line that says where, and what to write instead."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from everclip.errors import UserError
from tests.complaints import complaint
from tests.data.hf_sets import NAMES, cast, datasets, load, parquet, saved, table
from tests.tars import encoded

pytestmark = pytest.mark.usefixtures("hf_cache")


AGAIN = "check folder or name, network and #config=NAME"


def cut(pattern: str, length: int) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        path = next(root.rglob(pattern))
        path.write_bytes(path.read_bytes()[:length])

    return spoil


def gone(pattern: str) -> Callable[[Path], object]:
    return lambda root: next(root.rglob(pattern)).unlink()


@pytest.mark.parametrize(
    ("write", "spoil", "reason"),
    [
        (saved, cut("train/*.arrow", 3000), "Expected to be able to read .+"),
        (saved, cut("train/*.arrow", 0), ".+"),
        (saved, gone("test/*.arrow"), ".*No such file.*{0}/test/data-00000-of-00001.arrow.*"),
        (saved, gone("test/state.json"), ".*{0}/test.*state.json.*"),
        (saved, cut("train/state.json", 9), ".+"),
        (saved, cut("dataset_dict.json", 9), ".+"),
        (parquet, cut("train*.parquet", 3000), ".+"),
        (parquet, cut("train*.parquet", 0), ".+"),
    ],
)  # fmt: skip
def test_damaged_folders(
    tmp_path: Path,
    write: Callable[..., Path],
    spoil: Callable[[Path], object],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = write(tmp_path / "set", train=table(3), test=table(2))
    spoil(root)
    capsys.readouterr()
    said = complaint(load, root)
    words = rf'data "hf:{{0}}" cannot be loaded \({reason}\): {AGAIN}'.format(re.escape(str(root)))
    assert re.fullmatch(words, said), said
    assert capsys.readouterr().err == ""


def test_a_missing_parquet_file(tmp_path: Path) -> None:
    root = parquet(tmp_path / "set", 3, train=table(3))
    (root / "data" / "train-00001-of-00003.parquet").unlink()
    assert complaint(load, root) == (f"{root}/data/train-00001-of-00003.parquet is missing: copy it there")


def test_a_split_without_rows(tmp_path: Path) -> None:
    root = parquet(tmp_path / "set", train=table(0))
    with pytest.raises(UserError, match=rf"hf:.* cannot be loaded \(.+\): {AGAIN}"):
        load(root)


def test_a_file_outside_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(encoded("red", 0, "png"))
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "out.png")}], "label": ["red"]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(UserError, match=r'row 0 of the split "train" of .* lies outside of the data set'):
        load(tmp_path / "set")


def labels(values: list[int | None]) -> Callable[[], dict[str, Any]]:
    """Three images, one of each label."""

    def splits() -> dict[str, Any]:
        split = table(1, NAMES[:3])
        kind = split.features["label"]
        return {"train": split.remove_columns("label").add_column("label", values, feature=kind)}

    return splits


def plain(**columns: list[object]) -> Callable[[], dict[str, Any]]:
    return lambda: {"train": datasets.Dataset.from_dict(columns)}


def both(**other: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"train": table(2, **other), "test": table(1)}


# fmt: off
BAD: list[tuple[str, Callable[[], Mapping[str, Any]], str, str]] = [
    ("no image column", plain(text=["a"], label=["b"]), "",
     'hf:{0} has no image column but "text, label": use hf:{0}#image=COLUMN'),
    ("no label column", lambda: {"train": table(2).rename_column("label", "what").cast_column(
        "what", datasets.Value("int64"))}, "",
     'hf:{0} has no label column but "image, what": use hf:{0}#label=COLUMN'),
    ("several image columns", lambda: {"train": table(1).add_column(
        "mask", [{"bytes": encoded("red", 0), "path": None}] * 4, feature=datasets.Image())}, "",
     'hf:{0} has several image columns, "image, mask": use hf:{0}#image=COLUMN'),
    ("a column that is not there", both(), "#label=labl",
     'hf:{0} has no column "labl"; did you mean "label"?'),
    ("labels that are not whole numbers", lambda: {"train": cast(table(2), "label", "float32", len)}, "#label=label",
     'the column "label" of hf:{0} holds no names or whole numbers: choose another label'),
    ("images that are numbers", both(), "#image=label",
     'the column "label" of hf:{0} holds no encoded images or paths: choose another image'),
    ("a row without a label", labels([0, None, 2]), "",
     'row 1 of the split "train" of hf:{0} has no label: drop it, or use #test=SPLIT'),
    ("a test set without labels", lambda: {"train": table(2), "test": labels([-1, -1, -1])()["train"]}, "",
     'row 0 of the split "test" of hf:{0} has no label: drop it, or use #test=SPLIT'),
    ("no train", lambda: {"a": table(1), "b": table(1)}, "",
     'hf:{0} has no split "train" but "a, b": use #train=SPLIT'),
    ("a split that is not there", both(), "#test=tset", 'hf:{0} has no split "tset"; did you mean "test"?'),
    ("one split twice", both(), "#train=test,test=test",
     'hf:{0}: the split "test" cannot be train and test: choose two'),
    ("an unknown option", both(), "#lable=x", 'data "hf" has no option "lable"; did you mean "label"?'),
    ("an option twice", both(), "#label=a,label=b",
     'data "hf": use label=NAME once after "#", not "label=a,label=b"'),
    ("domains of one split", both(domain=["ink", "oil"]), "",
     'only the split "train" of hf:{0} has a column "domain": add or rename it'),
    ("one class", lambda: {"train": table(2, ["red"])}, "",
     'hf:{0} has one class, "red": a classifier needs two: add another'),
    ("a class that is only tested", lambda: {"train": table(2, NAMES[:2]), "test": table(1, NAMES[:3])}, "",
     'class "green" of hf:{0} has no training images: add some, or leave it out'),
]
# fmt: on


@pytest.mark.parametrize(
    ("splits", "options", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_sets(
    tmp_path: Path, splits: Callable[[], Mapping[str, Any]], options: str, message: str
) -> None:
    root = saved(tmp_path / "set", **splits())
    assert complaint(load, f"{root}{options}") == message.format(root)


HINT = "give a folder that save_to_disk wrote, or one of .parquet files"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", 'data "hf" needs a data set: use data=hf:FOLDER, or data=hf:ORG/NAME on the hub'),
        ("{0}/none", f"data folder {{0}}/none does not exist: {HINT}"),
        ("{0}/a.csv", f"data folder {{0}}/a.csv is a file: {HINT}"),
        ("{0}/empty", f'data "hf:{{0}}/empty" cannot be loaded (The directory at {{0}}/empty doesn\'t contain any data'
                      f" files): {AGAIN}"),
        ("{0}", "hf:{0} has no .parquet, .arrow or image folders: convert it, or use data=webdataset: or csv:"),
    ],
)  # fmt: skip
def test_no_set(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("path,label\n")
    assert complaint(load, spec.format(tmp_path)) == message.format(tmp_path)


def test_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # else it tries for half a minute
    said = complaint(load, "org/none")
    assert re.fullmatch(
        rf'data "hf:org/none" cannot be loaded \(.*Hub.*\): {AGAIN}',
        said,
    )


def test_shards_of_samples_are_left_to_the_other_source(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(UserError, match=r"hf:.* (has no|cannot be loaded)"):
        load(tmp_path)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert complaint(load, tmp_path) == 'data "hf" needs the package datasets: pip install "everclip[hf]"'


def test_several_configurations(tmp_path: Path) -> None:
    for name in ("small", "large"):
        parquet(tmp_path / name, train=table(2 if name == "small" else 3))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/data/*\n" for name in ("small", "large"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert len(load(f"{tmp_path}#config=large").whole()) == 12
    words = complaint(load, tmp_path)
    assert re.search(r"\(Config name is missing.*\['(large', 'small|small', 'large)'\]", words), words
    assert words.endswith(AGAIN)
    assert "\n" not in words
