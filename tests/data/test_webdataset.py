"""data=webdataset:SHARDS: folders and names of tar files, counted, split, trained on, and refused."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from everclip import data
from everclip.cli import app
from everclip.data.sources.webdataset import BENCHMARK_TEMPLATES
from everclip.errors import UserError
from tests.complaints import complaint
from tests.pictures import COLOURS, picture
from tests.running import run
from tests.tars import encoded, samples, shard


def shards(root: Path, train: int = 2, test: int = 1, kind: str = "cls", suffix: str = "jpg") -> Path:
    """Shards of twelve training and eight test images of four classes each, and the names of the classes."""
    for number in range(train):
        shard(root / f"train-{number:04d}.tar", samples(3, start=12 * number, kind=kind, suffix=suffix))
    for number in range(test):
        shard(root / f"test-{number:04d}.tar", samples(2, start=100 + 8 * number, kind=kind, suffix=suffix))
    (root / "classnames.txt").write_text("red\ngreen\nblue\nyellow\n")
    return root


def sized(root: Path) -> Path:
    """``sizes.json`` beside the shards of a folder."""
    sizes = {}
    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as tar:
            sizes[path.name] = len({name.partition(".")[0] for name in tar.getnames()})
    (root / "sizes.json").write_text(json.dumps(sizes))
    return root


def load(spec: object) -> data.Dataset:
    return data.load(f"webdataset:{spec}")


def counts(found: data.Dataset) -> tuple[list[int], list[int]]:
    classes = len(found.class_names)
    return found.train.counts(classes).tolist(), found.test.counts(classes).tolist()


@pytest.mark.parametrize(("kind", "suffix"), [("cls", "jpg"), ("json", "png"), ("txt", "webp")])
def test_shards_are_trained_on(tmp_path: Path, toy: str, kind: str, suffix: str) -> None:
    root = shards(tmp_path / "shards", kind=kind, suffix=suffix)
    if kind != "cls":  # names stand in the shards
        (root / "classnames.txt").unlink()
    spec = f"webdataset:{root}?train=24,test=8"
    found = data.load(spec)
    assert set(found.class_names) == {"red", "green", "blue", "yellow"}
    assert counts(found) == ([6] * 4, [2] * 4)
    assert not found.held_out
    results = run(tmp_path / "run", f"data={spec}", f"model={toy}", "scenario.tasks=2")
    assert len(results["accuracy_after_stage"]) == 2
    assert set(results["classes"]) == set(found.class_names)
    assert results["skipped_images"] == []


def test_shards_without_a_test_part_are_split(tmp_path: Path, toy: str) -> None:
    root = sized(shards(tmp_path / "shards", test=0))
    found = load(root)
    assert found.held_out
    assert len(found.whole()) == 24
    assert (found.test.counts(4) > 0).all()
    results = run(tmp_path / "run", f"data=webdataset:{root}", f"model={toy}", "scenario.tasks=2")
    assert len(results["accuracy_after_stage"]) == 2


def test_one_part_alone_is_used_as_it_is(tmp_path: Path) -> None:
    root = shards(tmp_path)
    found = load(f"{root}/test-0000.tar?test=8")
    assert (found.held_out, len(found.whole())) == (True, 8)


def test_numbers_name_lines_of_classnames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = sized(shards(tmp_path))
    assert load(root).class_names == ("red", "green", "blue", "yellow")
    (root / "classnames.txt").unlink()
    assert load(root).class_names == ("0", "1", "2", "3")
    assert "are numbers, so that prompts read" in caplog.messages[0]


def nested(root: Path) -> None:
    """The layout of CLIP_benchmark's exports."""
    for part in ("train", "test"):
        (root / part).mkdir()
        for path in sorted(root.glob(f"{part}-*.tar")):
            path.rename(root / part / path.name.removeprefix(f"{part}-"))
    (root / "train" / "nshards.txt").write_text("2\n")
    (root / "zeroshot_classification_templates.txt").write_text("a toy {c}\nan art of {c}.\n")


def test_the_layout_of_clip_benchmark(tmp_path: Path) -> None:
    nested(shards(tmp_path))
    found = load(f"{tmp_path}?train=24,test=8")
    assert found.templates == ("a toy {}", "an art of {}.")
    assert found.class_names == ("red", "green", "blue", "yellow")
    assert {found.test.store.keys[int(row)].split("/")[0] for row in found.test.rows} == {"test"}


def test_tests_in_a_folder_beside_the_training_shards(tmp_path: Path) -> None:
    root = shards(tmp_path)
    (root / "test").mkdir()
    (root / "test-0000.tar").rename(root / "test" / "0000.tar")
    found = load(f"{root}?train=24,test=8")
    assert (counts(found), found.held_out) == (([6] * 4, [2] * 4), False)


@pytest.mark.parametrize("name", ["classnames.txt", "templates.txt", BENCHMARK_TEMPLATES])
def test_names_and_templates_that_link_out_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root, secret = shards(tmp_path / "shards"), tmp_path / "blobs" / "secret"
    secret.parent.mkdir()
    secret.write_text("private {c}\n" if name == BENCHMARK_TEMPLATES else "private {}\n" * 4)
    if name == "classnames.txt":
        secret.write_text("private 0\nprivate 1\nprivate 2\nprivate 3\n")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(secret)
    spec = f"{root}?train=24,test=8"
    with pytest.raises(UserError, match=rf"{name} links out of .*shards: copy the file there"):
        load(spec)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(secret.parent))
    found = load(spec)
    assert "private" in str((found.class_names, found.templates)), (
        "the hub's client keeps links into its cache"
    )


@pytest.mark.parametrize(
    "spec",
    [
        "{0}",
        "{0}/train-{{0000..0001}}.tar",
        "{0}/train-*.tar",
        "{0}/train-000?.tar",
        "{0}/train-0000.tar::{0}/train-0001.tar::{0}/train-0001.tar",
        "{0}/{{train-{{0000,0001}},test-0000}}.tar",
        "{0}/{{train,test}}-*.tar",
    ],
)
def test_specs_that_name_the_same_shards(tmp_path: Path, spec: str) -> None:
    root = shards(tmp_path / "a")
    assert counts(load(spec.format(root) + "?train=24,test=8")) == ([6] * 4, [2] * 4)


def test_names_relative_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shards(tmp_path / "a")
    monkeypatch.chdir(root)
    found = load(f"train-0000.tar::{root}/train-0001.tar?train=24&test=8")
    assert counts(found) == ([6] * 4, [2] * 4)
    assert found.train.store.keys[0] == "train-0000.tar/000000"


def test_val_stands_for_test_and_is_left_out_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shards(tmp_path)
    shard(root / "validation.tar", samples(1, start=500))
    found = load(f"{root}?train=24,test=8")
    assert len(found.test) == 8
    assert f"{root} has test shards: its 1 val shards are left out" in caplog.messages
    (root / "test-0000.tar").unlink()
    assert len(load(f"{root}?train=24,val=4").test) == 4


def test_a_broken_image_is_skipped(tmp_path: Path, toy: str) -> None:
    root = shards(tmp_path / "shards", train=1)
    shard(root / "train-0001.tar", [("bad", {"jpg": b"no picture", "cls": b"1"}), *samples(3, start=50)])
    spec = f"data=webdataset:{root}?train=25,test=8"
    results = run(tmp_path / "run", spec, f"model={toy}", "scenario.tasks=2")
    assert results["skipped_images"] == ["train-0001.tar/bad"]


def test_datasets_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = sized(shards(tmp_path))
    assert app.main(["datasets", "check", f"webdataset:{root}"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"all\s+24\s+8\n32 of a sample of 32 images can be decoded", said)
    shard(root / "test-0000.tar", samples(1, start=100))
    assert app.main(["datasets", "check", f"webdataset:{root}"]) == 1
    said = capsys.readouterr().out
    assert f'{root}/sizes.json does not say "test-0000.tar": 4: copy the shard again' in said


def truncated(root: Path) -> None:
    path = root / "train-0001.tar"
    path.write_bytes(path.read_bytes()[:5000])


def twice(root: Path) -> None:
    (root / "train-0002.tar").write_bytes((root / "train-0000.tar").read_bytes())


def sizes(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "sizes.json").write_text(text)


def nothing(root: Path) -> None:
    pass


COUNT = "?train=24,test=8"
WRITE = "give a folder of shards, or use 'data=webdataset:train-{{0000..0003}}.tar?train=4000,test=1000'"

# fmt: off
BAD: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("no count", nothing, "{0}",
     "{0} needs the number of samples: use '{0}?train=24,test=8' if these are all, or"
     " sizes.json"),
    ("no count of one part", nothing, "{0}?train=24",
     "{0} needs the number of samples: use '{0}?train=24,test=8' if these are all, or"
     " sizes.json"),
    ("another count", nothing, "{0}?train=25,test=8",
     "{0} has 24 train samples, not 25: copy all, or give that number"),
    ("a count of no shards", lambda root: (root / "test-0000.tar").unlink(), "{0}" + COUNT,
     "{0} names no test shards for test=8: name them, or leave it out"),
    ("a count that is none", nothing, "{0}?train=many",
     'data "webdataset": "train=many" is not a number of samples: use train=1000'),
    ("a count twice", nothing, "{0}?train=1,train=1",
     'data "webdataset": "train=1" is not a number of samples: use train=1000'),
    ("an option that is none", nothing, "{0}?trian=24",
     'data "webdataset" has no option "trian"; did you mean "train"?'),
    ("sizes that differ", sizes('{"train-0000.tar": 13, "train-0001.tar": 12, "test-0000.tar": 8}'), "{0}",
     '{0}/sizes.json does not say "train-0000.tar": 12: copy the shard again, or write that'),
    ("sizes that lack one", sizes('{"train-0000.tar": 12}'), "{0}",
     '{0}/sizes.json does not say "train-0001.tar": 12: copy the shard again, or write that'),
    ("sizes that are not JSON", sizes("{"), "{0}",
     "{0}/sizes.json cannot be read (no valid JSON: Expecting property name enclosed in double quotes: line 1 column 2"
     ' (char 1)): use {{"train-0000.tar": 12, ...}}'),
    ("a missing shard", nothing, "{0}/train-{{0000..0002}}.tar" + COUNT,
     "shard {0}/train-0002.tar is missing, or is not a file: copy it there"),
    ("a folder as shard", lambda root: (root / "train-0002.tar").mkdir(), "{0}/train-*.tar" + COUNT,
     "shard {0}/train-0002.tar is missing, or is not a file: copy it there"),
    ("fewer than there were", lambda root: (nested(root), (root / "train/0001.tar").unlink()), "{0}" + COUNT,
     "{0}/train has 1 shards, and nshards.txt says 2: copy all"),
    ("a truncated shard", truncated, "{0}" + COUNT,
     "shard {0}/train-0001.tar is truncated or damaged: copy it again"),
    ("a shard twice", twice, "{0}" + COUNT,
     "shards {0}/train-0000.tar and {0}/train-0002.tar hold the same samples: leave one out"),
    ("an empty shard", lambda root: shard(root / "train-0002.tar", []), "{0}" + COUNT,
     "shard {0}/train-0002.tar holds no samples: copy it again, or leave it out"),
    ("a compressed shard", lambda root: (root / "a.tar.gz").write_bytes(b""), "{0}/a.tar.gz?train=1",
     "shard {0}/a.tar.gz is not a plain tar file (empty file): unpack or copy it again"),
    ("no shards", lambda root: (root / "sub").mkdir(), "{0}/sub?train=1",
     f"{{0}}/sub holds no .tar files: {WRITE}"),
    ("no match", nothing, "{0}/x-*.tar?train=1",
     f'no file matches "{{0}}/x-*.tar": {WRITE}'),
    ("braces that are not a range", nothing, "a-{{0}}.tar?train=1",
     'the braces of "a-{{0}}.tar" are not a range: use {{0000..0003}} or {{train,test}}'),
    ("braces without end", nothing, "a-{{0..1.tar?train=1",
     'the braces of "a-{{0..1.tar" are not a range: use {{0000..0003}} or {{train,test}}'),
    ("too many", nothing, "a-{{0..999}}-{{0..999}}.tar?train=1",
     '"a-{{0..999}}-{{0..999}}.tar" names more than 100,000 shards: use a smaller range'),
    ("the web", nothing, "https://a.b/x.tar?train=1",
     'data "webdataset" reads local files, not "https://a.b/x.tar?train=1": download them first'),
    ("a command", nothing, "pipe:cat x.tar",
     'data "webdataset" reads local files, not "pipe:cat x.tar": download them first'),
    ("a number beyond the names", lambda root: (root / "classnames.txt").write_text("a\nb\nc\n"), "{0}" + COUNT,
     "{0} has class 3, and {0}/classnames.txt 3 lines: name all from 0"),
    ("a class that is only tested", lambda root: shard(root / "test-0000.tar", samples(1, 5)), "{0}?train=24,test=5",
     'class "4" of {0} has no training images: add some, or leave it out'),
    ("one class", lambda root: shard(root / "b" / "a.tar", samples(3, 1)), "{0}/b/a.tar?train=3",
     '{0}/b/a.tar has one class, "0": a classifier needs two: add another'),
    ("a name among numbers", lambda root: shard(
        root / "train-0001.tar", [("x", {"jpg": encoded("red", 1), "cls": b"red"})]), "{0}" + COUNT,
     'sample "x" of shard {0}/train-0001.tar has the label "red" in .cls:'
     " use a number from 0, or a name in .txt or .json"),
]
# fmt: on


@pytest.mark.parametrize(
    ("spoil", "spec", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_shards(tmp_path: Path, spoil: Callable[[Path], object], spec: str, message: str) -> None:
    root = shards(tmp_path / "s")
    spoil(root)
    said = complaint(load, spec.format(root))
    assert said == message.format(root)
    assert said.isprintable()


def test_other_images_of_the_same_keys_and_sizes_are_no_copy(tmp_path: Path) -> None:
    """As shards of uncompressed pictures are, whose samples are numbered from 0 in each."""
    root = shards(tmp_path / "s", train=0)
    for number in range(2):
        found = samples(3, suffix="png")
        for row, (_, members) in enumerate(found):
            file = io.BytesIO()
            picture(COLOURS["red"], 10 * number + row).save(file, "png", compress_level=0)
            members["png"] = file.getvalue()
        shard(root / f"train-{number:04d}.tar", found)
    assert counts(load(f"{root}{COUNT}"))[0] == [6] * 4
    (root / "train-0001.tar").write_bytes((root / "train-0000.tar").read_bytes())
    assert "hold the same samples" in complaint(load, f"{root}{COUNT}")


def test_nothing_named() -> None:
    with pytest.raises(UserError, match='data "webdataset" needs tar files: use'):
        load("")


def test_domains_are_refused(tmp_path: Path) -> None:
    root = sized(shards(tmp_path))
    with pytest.raises(
        UserError, match="has fewer than 2 domains: shards have none; use csv, hf or domainfolder, or use"
    ):
        data.load(f"webdataset:{root}", "domain-incremental")
