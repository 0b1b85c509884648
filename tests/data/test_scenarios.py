"""Scenarios of one's own: files in a package outside everclip, or anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everclip.cli.app import main
from everclip.data import scenarios
from everclip.errors import UserError
from everclip.seeding import hash64
from tests import mixed
from tests.printed import printed

ONE = '''"""Everything in one task."""

from everclip.data.scenario import Task, class_order
from everclip.data.scenarios import Scenario


class One(Scenario):
    def cut(self, data, seed):
        return [Task(0, "all", tuple(class_order(data.class_names, "given")), data.train, data.test)]
'''
SHOTS = printed("Shots")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package in the working folder with the two scenarios; modules of other tests stay imported."""
    name = f"cuts_{hash64('scenarios', str(tmp_path)):x}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "one.py").write_text(ONE)
    (tmp_path / name / "shots.py").write_text(SHOTS)
    monkeypatch.chdir(tmp_path)
    return name


def words(toy: str, photos: str, *more: str) -> list[str]:
    return ["train", f"data={photos}", f"model={toy}", "device=cpu", "method=ncm", "out=run", *more]


def test_a_scenario_is_one_file(
    package: str, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(toy, photos, f"scenario.kind={package}.one")) == 0
    assert json.loads(Path("run/results.json").read_text())["tasks"] == ["all"]
    assert main(["scenarios", f"{package}.one"]) == 0
    assert capsys.readouterr().out.endswith("Everything in one task.\n\nIt has no options.\n")


def test_its_options_stand_in_the_section_and_are_kept(
    package: str, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = f"scenario.kind=./{package}/shots.py"
    assert main(words(toy, photos, kind, "scenario.shots=3")) == 0
    start = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert [task["train"] for task in start["tasks"]] == [3] * 6
    assert "shots = 3" in Path("run/config.toml").read_text()
    assert main(["scenarios", f"./{package}/shots.py"]) == 0
    assert "scenario.shots  2        training images per class" in capsys.readouterr().out
    # whoever is given the model needs no code of the scenario
    assert main(["export", "run", "-o", "model", "--trust", "run"]) == 0
    assert json.loads(Path("model/everclip.json").read_text())["settings"]["scenario"] == {
        "kind": "class-incremental"
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["scenario.shot=3"], 'unknown key "scenario.shot"; did you mean "scenario.shots"'),
        (["scenario.shots=0"], "scenario.shots is 0: use a whole number from 1"),
        (["scenario.shots.few=1"], 'unknown key "scenario.shots.few"'),
        (["scenario.kind=few-shots"], 'unknown scenario "few-shots"; did you mean "few-shot"'),
        (
            ["scenario.kind=one/two.py"],
            'scenario "one/two.py" does not exist: give the path of a Python file',
        ),
    ],
)
def test_a_mistake_is_one_line(
    more: list[str], message: str, package: str, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = [] if more[0].startswith("scenario.kind") else [f"scenario.kind={package}.shots"]
    assert main(words(toy, photos, *kind, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not Path("run").exists()


def test_another_scenario_drops_the_options_of_the_first(package: str, toy: str, photos: str) -> None:
    Path("few.toml").write_text(f'[scenario]\nkind = "{package}.shots"\nshots = 1\ntasks = 3\n')
    train = words(toy, photos)
    assert main([train[0], "few.toml", *train[1:], "scenario.kind=class-incremental"]) == 0
    start = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert len(start["tasks"]) == 3


def test_a_stream_that_shares_classes_has_a_page_and_a_row_in_compare(
    toy: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task without test images leaves its column empty, on the terminal, the page and in the table."""
    monkeypatch.chdir(tmp_path)
    assert main(words(toy, photos, f"scenario.kind={mixed.KIND}", "scenario.late=1")) == 0
    assert "internal" not in capsys.readouterr().err
    assert "<svg" in Path("run/report.html").read_text()
    assert Path("run/matrix.csv").read_text().splitlines()[3].split(",")[2] == ""
    assert main(["compare", "run", "--json"]) == 0
    assert '"last"' in capsys.readouterr().out
    assert main(["report", "run"]) == 0


def test_a_source_gives_the_images_of_domains_where_tasks_are_domains() -> None:
    from everclip.config.sections import Scenario

    assert scenarios.lists(Scenario(kind=mixed.KIND)) == "class-incremental"
    assert scenarios.lists(Scenario(kind="domain-incremental")) == "domain-incremental"
    # images to learn need times, and images that a learned model is tested on do not
    assert scenarios.build(Scenario(kind="time")).asks == "time"
    assert scenarios.lists(Scenario(kind="time")) == "class-incremental"
    with pytest.raises(UserError, match=r'^unknown scenario "class_incremental"; did you mean "class-inc'):
        scenarios.scenario_class("class_incremental")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[]", "return a list of tasks"),
        ("None", "return a list of tasks"),
        ("['a']", "return Task objects"),
        ("[Task(5, 'a', every, data.train, data.test)]", "give index 0"),
        ("[Task(0, None, every, data.train, data.test)]", "give index 0, a text"),
        ("[Task(0, 'a', every[1:], data.train, data.test)]", "name them in Task.classes"),
        ("[Task(i, 'a', every, data.train, data.test) for i in (0, 1)]", "give each to one task"),
        ("[Task(0, 'a', every, data.train, data.train)]", "to learn in a and as a test image: use it once"),
    ],
)
def test_tasks_that_are_none_are_the_scenarios_fault(
    returned: str, message: str, tmp_path: Path, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.py"
    begin = 'return [Task(0, "all", tuple(class_order(data.class_names, "given")), data.train, data.test)]'
    file.write_text(
        ONE.replace(begin, f"every = tuple(range(len(data.class_names)))\n        return {returned}")
    )
    assert main(words(toy, photos, f"scenario.kind={file}")) == 2
    said = capsys.readouterr().err
    assert f"One.cut ({file})" in said
    assert message in said
