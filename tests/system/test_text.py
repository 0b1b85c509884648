"""Texts of strangers: none reaches a terminal or a log with what these obey, nor a spreadsheet with a formula."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import re
import shutil
from pathlib import Path

import pytest
import tomli_w

import everclip
from everclip.cli._output import print_columns, print_table
from everclip.cli.app import main
from everclip.data.images import Dataset
from everclip.errors import UserError
from everclip.sweep.session import Session
from everclip.sweep.view import View
from everclip.system import checkpoint
from everclip.system import text as texts
from everclip.system.progress import Progress
from everclip.updating.start import begin
from tests.compare.folders import run_folder
from tests.learned import coloured
from tests.pictures import image_folder, picture
from tests.running import run
from tests.versions import first, written

CLEAR = "\x1b[2J\x1b]0;owned\x07"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
ODD = [CLEAR, "a\x9b2Jb", "a\rb", "a\u202eb", "a\u2028b", "a\x7fb"]
FINE = ["sports car", "Straße", "می‌خواهم", "👩‍🚒", "新しい", "a\u00a0b", "\U0001f3f4\U000e0067\U000e007f"]


@pytest.mark.parametrize("text", ODD)
def test_what_a_terminal_obeys_is_escaped(text: str) -> None:
    shown = texts.printable(text)
    assert shown.isprintable()
    assert eval(f'"{shown}"') == text
    assert texts.cleaned({"k": [text, 1, None]}) == {"k": [shown, 1, None]}
    as_json = texts.json_text([text])
    assert not OBEYED.search(as_json)
    assert json.loads(as_json) == [text]


@pytest.mark.parametrize("text", FINE)
def test_what_a_terminal_shows_stays(text: str) -> None:
    assert texts.printable(text) == text
    assert json.loads(texts.json_text(text)) == text


def test_cells_are_no_formulas_and_numbers_stay() -> None:
    cells = ["=1+1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1", "-", "plain", "a=b", CLEAR]
    numbers = [-0.5, 1e-7, -3, None, math.inf, "-0.25", "+1e-3", "-.5"]
    rows = list(csv.reader(io.StringIO(texts.csv_text(cells, [numbers]))))
    assert rows[0][:8] == ["'=1+1", "'+1+1", "'-2+3", "'@SUM(A1)", r"'\t=1", r"'\r=1", "'＝1", "'-"]
    assert rows[0][8:] == ["plain", "a=b", texts.printable(CLEAR)]
    assert rows[1] == ["-0.5", "1e-07", "-3", "", "inf", "-0.25", "+1e-3", "-.5"]


@pytest.mark.parametrize("name", ODD[:2])
def test_names_in_data_are_refused(name: str, tmp_path: Path, photos: str) -> None:
    image_folder(tmp_path / "folders", {"train": 2, "test": 1}, 2)
    (tmp_path / "folders" / "train" / "red").rename(tmp_path / "folders" / "train" / f"re{name}d")
    (tmp_path / "folders" / "test" / "red").rename(tmp_path / "folders" / "test" / f"re{name}d")
    picture((1, 2, 3), 0).save(tmp_path / "0.png")
    picture((1, 2, 3), 1).save(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text(f"path,label\n0.png,re{name}d\n1.png,blue\n", encoding="utf-8")
    (tmp_path / "templates.txt").write_text(f"a{name}{{}}\n", encoding="utf-8")
    given = [
        (f"imagefolder:{tmp_path / 'folders'}", None),
        (f"csv:{tmp_path / 'list.csv'}", None),
        (photos, str(tmp_path / "templates.txt")),
        (photos, [f"a{name}{{}}"]),
    ]
    for spec, templates in given:
        with pytest.raises(UserError, match="cannot be printed") as refused:
            everclip.data.load(spec, templates=templates)
        assert str(refused.value).isprintable()


def test_names_given_in_python_are_refused(toy: str) -> None:
    learner = everclip.Learner(toy, progress=False)
    images = [picture((200, 0, 0), seed) for seed in range(4)]
    with pytest.raises(UserError, match=r'class 2 of the images is named "\\x1b\[0m"'):
        learner.learn(images, ["red", "red", "\x1b[0m", "\x1b[0m"])


def test_names_in_a_version_are_refused(toy: str, tmp_path: Path) -> None:
    written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    record = json.loads((tmp_path / "v1" / "update.json").read_text())
    record["domains"] = [CLEAR]
    files = {file.name: file.read_bytes() for file in (tmp_path / "v1").iterdir()} | {
        "update.json": json.dumps(record).encode()
    }

    def write(folder: Path) -> None:
        for name, content in files.items():
            if name != checkpoint.MANIFEST:
                (folder / name).write_bytes(content)

    checkpoint.commit(tmp_path / "v2", write)
    with pytest.raises(UserError, match=r'v2/update\.json has the text "\\x1b\[2J') as refused:
        begin(str(tmp_path / "v2"))
    assert str(refused.value).isprintable()


def test_results_of_strangers_are_shown_printable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = {"method.note": f"\\input {CLEAR}", "memory.policy": f"@{CLEAR}"}
    run_folder(tmp_path / "runs" / "a", 0.5, method=f"=gcl{CLEAR}", config=stranger)
    run_folder(tmp_path / "runs" / "b", 0.6, method="gdro", config={"method.note": "x\u009b2J"})
    run_folder(tmp_path / "runs" / "c", 0.6, method="gdro")
    run_folder(tmp_path / "other", 0.6, method="gdro", classes=[CLEAR])
    for words, code in (
        ([], 0),
        (["--json"], 0),
        (["--csv"], 0),
        (["--latex"], 0),
        (["--by", CLEAR], 2),
        (["--fail-if", f"gdro<{CLEAR}"], 2),
    ):
        assert main(["compare", str(tmp_path / "runs"), *words]) == code
        told = capsys.readouterr()
        assert not OBEYED.search(told.out + told.err), words
    assert main(["compare", str(tmp_path / "runs"), str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.isascii()
    assert main(["compare", str(tmp_path / "runs"), "--csv"]) == 0
    labels = [row["label"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert any(label.startswith("'=gcl") for label in labels)
    assert main(["compare", str(tmp_path / "runs"), "--latex"]) == 0
    assert "textbackslash{}x1b" in capsys.readouterr().out


def test_files_of_a_run_open_in_a_spreadsheet(toy: str, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for seed, name in enumerate(["=1+1", "@SUM", "red"]):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(2):
                image = picture((80 * seed, 0, 0), 10 * seed + number + len(part))
                image.save(tmp_path / "data" / part / name / f"{number}.png")
    data = f"data=imagefolder:{tmp_path / 'data'}"
    results = run(tmp_path / "run", data, f"model={toy}", "method=ncm", "scenario.tasks=1")
    assert {row["class"] for row in results["per_class"]} == {"=1+1", "@SUM", "red"}
    with (tmp_path / "run" / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"'=1+1", "'@SUM", "red"}
    assert {row["last"] for row in rows} == {str(row["last"]) for row in results["per_class"]}


def test_files_with_odd_names_are_told_printable(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coloured(tmp_path / "data", {"red": (220, 40, 40), "blue": (40, 60, 220)}, 5)
    (tmp_path / "data" / "red" / f"{CLEAR[:4]}.png").write_bytes(b"no picture")
    run(tmp_path / "run", f"data={data}", f"model={toy}", "method=ncm", "scenario.tasks=1")
    assert r"skipped red/\x1b[2J.png" in (tmp_path / "run" / "run.log").read_text()
    for words in ([], ["--json"]):
        assert main(["predict", str(tmp_path / "run"), str(tmp_path / "data"), *words]) == 0
        told = capsys.readouterr()
        assert not OBEYED.search(told.out + told.err)
    assert main(["evaluate", str(tmp_path / "run"), "--data", data]) == 0
    told = capsys.readouterr()
    assert not OBEYED.search(told.out + told.err)
    Progress().say(CLEAR)
    logging.getLogger("everclip").warning("%s", CLEAR)
    assert not OBEYED.search(capsys.readouterr().err)


def test_a_strangers_config_is_shown_printable(
    toy: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TOML may hold the controls of C1, and changes of direction."""
    odd, config = "\u009b2J\u202e", tmp_path / "odd.toml"
    data = tmp_path / f"photos{odd}"
    shutil.copytree(photos.removeprefix("imagefolder:"), data)
    written = {"data": f"imagefolder:{data}", "model": toy, "scenario": {"tasks": 2}, "tuned_on": odd}
    config.write_text(tomli_w.dumps(written | {"method": {"name": "ncm"}}))
    sweep = ["sweep", str(config), "seed=0,1", f"out={tmp_path / 's'}"]
    for words in (
        ["train", str(config), f"out={tmp_path / 'x'}", "--dry-run"],
        ["doctor", "--config", str(config)],
        *([*sweep, more] for more in ("--dry-run", "--print")),
    ):
        assert main(words) == 0, words
        told = capsys.readouterr()
        assert not OBEYED.search(told.out + told.err), words
        assert r"\x9b2J\u202e" in told.out or words[0] == "sweep"
    keys = [job.key for job in Session.of(sweep[1:]).jobs]
    found = {"schema": 1, "failed": dict.fromkeys(keys, CLEAR)}
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(found))
    assert main(sweep) == 1
    told = capsys.readouterr()
    assert r"failed: ncm_s0: \x1b[2J" in told.err
    assert not OBEYED.search(told.out + told.err)


def test_errors_of_a_sweeps_runs_are_told_printable(capsys: pytest.CaptureFixture[str]) -> None:
    View(lambda: 1, 0, {}, lambda work: "", lambda work, error: (True, "")).say(CLEAR)
    print_table(CLEAR, ["a"], [[CLEAR]])
    print_columns([[CLEAR, CLEAR]], [CLEAR, CLEAR])
    told = capsys.readouterr()
    assert not OBEYED.search(told.out + told.err)
    assert (told.out + told.err).count(r"\x1b[2J") == 7


def test_a_data_set_made_in_python_is_checked(toy: str, photos: str) -> None:
    found: Dataset = everclip.data.load(photos)
    vars(found)["templates"] = ("no place for a name",)
    with pytest.raises(UserError, match="template 1 of"):
        everclip.Learner(toy, progress=False).learn(found)
