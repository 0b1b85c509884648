"""Memory policies of one's own, outside the package: used through the commands, and refused where a name is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from everclip.cli.app import main
from everclip.config import load_config
from everclip.data.memory import Memory
from everclip.data.policies import build
from everclip.errors import UserError
from everclip.runs.resolve import resolve
from everclip.seeding import hash64
from everclip.sweep import grid
from everclip.system import trust
from tests.data.test_memory import EMPTY, images
from tests.printed import printed

CENTRAL = '''
"""The images whose features are nearest to the mean of their task's."""

import numpy as np

from everclip.data.policies import Policy, per_class


class Central(Policy):
    features = True

    def ranks(self, new, features):
        return np.argsort(np.argsort(-features @ features.mean(0)))

    def choose(self, pool):
        return per_class(pool, pool.priority)
'''
METHOD = """
from everclip.methods import Capabilities
from everclip.methods.gcl import Gcl


class Mine(Gcl):
    capabilities = Capabilities(memory_policy="{package}.newest")
"""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What a test types is forgotten after it."""
    with trust.session(strict=False):
        yield


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package in the working folder with two policies, one of them that of CONTRIBUTING.md, and a method."""
    name = f"mine_{hash64('policies', str(tmp_path)):x}"  # modules of other tests stay imported
    (tmp_path / name).mkdir()
    (tmp_path / name / "newest.py").write_text(printed("Newest"))
    (tmp_path / name / "central.py").write_text(CENTRAL)
    (tmp_path / name / "method.py").write_text(METHOD.format(package=name))
    monkeypatch.chdir(tmp_path)
    return name


def train(*words: str) -> int:
    small = ["scenario.tasks=3", "train.steps=1", "train.batch_size=8", "method=gcl", "device=cpu"]
    given = {word.partition("=")[0] for word in words}
    return main(["train", *(word for word in small if word.partition("=")[0] not in given), *words])


def counts(run: str) -> list[int]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [line["memory"]["count"] for line in lines if line["event"] == "stage"]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert train(*words, "--dry-run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_two_policies_outside_the_package_train(
    package: str, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [f"data={photos}", f"model={toy}", "memory.budget=12"]
    assert train(*base, f"memory.policy={package}.newest", "memory.tasks=1", "out=one") == 0
    assert train(*base, f"memory.policy={package}.newest", "memory.tasks=2", "out=two") == 0
    assert train(*base, f"memory.policy=./{package}/central.py", "out=central") == 0
    assert (counts("one"), counts("two"), counts("central")) == ([8, 8, 8], [8, 12, 12], [8, 12, 12])
    assert 'policy = "' in (written := Path("two", "config.toml").read_text())
    assert "tasks = 2" in written.partition("[memory]")[2]
    capsys.readouterr()
    assert main(["resume", "two"]) == 2
    assert f'asks to run the code "{package}.newest"' in capsys.readouterr().err
    assert main(["resume", "two", "--trust", "two"]) == 0


def test_the_newest_by_hand(package: str) -> None:
    memory = Memory(6, 0, EMPTY, build(f"{package}.newest", {"tasks": 2}))
    for number in range(3):
        memory.update(images([number] * 4, start=100 * number), number + 1)
    assert sorted(memory.images().labels.tolist()) == [1, 1, 2, 2, 2, 2]
    memory = Memory(6, 0, EMPTY, build(f"{package}.central", {}))
    features = np.array([[0.6, 0.8], [1, 0], [0, 1], [-1, 0]])
    memory.update(images([0] * 4), 2, features)
    assert memory.images().rows.tolist() == [0, 1, 2]


def test_a_wrong_name_or_option_is_refused_in_one_line(
    package: str, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [f"data={photos}", f"model={toy}"]
    newest = [*base, f"memory.policy={package}.newest"]
    assert refused(capsys, *base, "memory.policy=herdng") == (
        'unknown policy "herdng"; did you mean "herding"?'
    )
    assert refused(capsys, *base, "memory.policy=methd") == 'unknown policy "methd"; did you mean "method"?'
    assert refused(capsys, *newest, "memory.task=2").startswith(
        'unknown key "memory.task"; did you mean "memory.tasks"'
    )
    assert refused(capsys, *newest, "memory.tasks=0") == "memory.tasks is 0: use a whole number from 1"
    assert (
        refused(capsys, *base, "memory.bugdet=3")
        == 'unknown key "memory.bugdet"; did you mean "memory.budget"?'
    )
    assert refused(capsys, *base, f"memory.policy={package}.oldest").startswith(
        f'policy "{package}.oldest" cannot be imported: No module named'
    )
    Path(package, "empty.py").write_text(
        "from everclip.data.policies import Policy\nclass Empty(Policy):\n    pass\n"
    )
    assert refused(capsys, *base, f"memory.policy={package}.empty") == (
        f"policy {package}.empty has no choose: write what it keeps as def choose(self, pool)"
    )


def test_options_are_filled_in_and_go_with_their_policy(package: str) -> None:
    config = resolve(load_config([f"memory.policy={package}.newest"]))
    assert config.memory.options == {"tasks": 1}
    assert resolve(config) == config
    Path("my.toml").write_text(
        f'method = "gcl"\n[memory]\npolicy = "{package}.newest"\ntasks = 3\nbudget = 9\n'
    )
    trust.folder(".")
    assert resolve(load_config(["my.toml"])).memory.options == {"tasks": 3}
    other = resolve(load_config(["my.toml", "memory.policy=random"]))
    assert (other.memory.options, other.memory.budget) == ({}, 9)


def test_a_method_may_name_a_policy_of_its_own(package: str) -> None:
    words = [f"method={package}.method", "memory.tasks=2"]
    with trust.session():
        config = resolve(load_config(words))
    assert (config.memory.policy, config.memory.options) == ("method", {"tasks": 2})
    Path("my.toml").write_text(f'method = "{package}.method"\n[memory]\ntasks = 2\n')
    assert resolve(load_config(["my.toml", "method=gcl"])).memory.options == {}
    with pytest.raises(UserError, match=r'^unknown key "memory\.tasks"; did you mean'):
        resolve(load_config(["method=gcl", "memory.tasks=2"]))


def test_options_are_values_of_a_sweep(package: str) -> None:
    words = ["method=gcl,ncm", f"memory.policy={package}.newest", "memory.tasks=1,2", "memory.budget=12"]
    found = grid.read(words).jobs()
    assert [job.name for job in found] == ["gcl_tasks1", "gcl_tasks2", "ncm_tasks1"]
    for job in found:
        again = resolve(load_config(job.words))
        assert grid.content_key(again) == job.key
    assert found[2].config.memory.options == {}


def test_the_command_explains_policies(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies"]) == 0
    assert re.search(r"^herding +Equally many images per class", capsys.readouterr().out, re.MULTILINE)
    assert main(["policies", "--json"]) == 0
    names = [policy["name"] for policy in json.loads(capsys.readouterr().out)]
    assert set(names) >= {"all", "equal_task", "exp", "herding", "none", "random", "score"}
    assert main(["policies", f"{package}.newest"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("The images of the newest tasks.")
    assert re.search(
        r"^memory\.tasks +1 +number of newest tasks to keep images of \(a whole number from 1\)", said, re.M
    )
    assert main(["policies", f"./{package}/newest.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"][0]["default"] == 1
    assert main(["policies", "herdng"]) == 2
    assert 'unknown policy "herdng"; did you mean "herding"?' in capsys.readouterr().err
