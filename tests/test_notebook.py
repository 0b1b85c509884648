"""``everclip.train``: the same run, the same messages and the same state as the command line's."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import everclip
from everclip.cli.app import main
from everclip.errors import UserError
from everclip.runs.finished import Finished
from everclip.training import loop
from tests.running import TIMES

SMALL: dict[str, Any] = {"train": {"epochs": 1, "batch_size": 8}, "scenario.tasks": 3, "device": "cpu"}


@pytest.fixture
def settings(toy: str, photos: str) -> dict[str, Any]:
    return SMALL | {"data": photos, "model": toy, "memory": {"budget": 12}}


def test_it_trains_what_the_command_line_trains(
    tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (
        torch.get_rng_state(),
        signal.getsignal(signal.SIGTERM),
        list(logging.getLogger("everclip").handlers),
    )
    method = {"name": "gdro", "margin": 0.3}
    run = everclip.train(method=method, out=tmp_path / "a", progress=False, **settings)
    assert isinstance(run, Finished)
    assert run.path == tmp_path / "a"
    assert (run.config["method"], run.config["method.margin"]) == ("gdro", 0.3)
    assert (run.path / "report.html").is_file()
    assert torch.get_rng_state().equal(before[0])
    assert signal.getsignal(signal.SIGTERM) is before[1]
    assert logging.getLogger("everclip").handlers == before[2]
    assert capsys.readouterr().out == ""
    words = ["method=gdro", "method.margin=0.3", "train.epochs=1", "train.batch_size=8", "scenario.tasks=3"]
    words += ["device=cpu", f"data={settings['data']}", f"model={settings['model']}", "memory.budget=12"]
    assert main(["train", *words, f"out={tmp_path / 'b'}"]) == 0
    other = everclip.load_runs(tmp_path / "b")[0]
    assert {k: v for k, v in run.results.items() if k not in TIMES} == {
        key: other[key] for key in run.results if key not in TIMES
    }
    again = everclip.train(settings, method=method, out=str(tmp_path / "a"))
    assert again.results == run.results  # it is finished: nothing is trained
    (row,) = everclip.load_runs(run)
    assert row["path"] == str(run.path)
    assert len(repr(run)) < 300 + len(str(run.path))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configs of the runs that would have trained; each is stopped there."""
    found: list[Any] = []

    def stop(run: Any, *rest: object) -> None:
        found.append(run.config)
        raise UserError("enough")

    monkeypatch.setattr("everclip.notebook.train_run", stop)
    return found


def test_a_base_and_every_form_of_a_setting(
    tmp_path: Path, settings: dict[str, Any], seen: list[Any]
) -> None:
    (tmp_path / "my.toml").write_text('[method]\nname = "gcl"\n')
    for base in (tmp_path / "my.toml", str(tmp_path / "my.toml")):
        with pytest.raises(UserError, match="enough"):
            everclip.train(
                base,
                **settings
                | {
                    "tuned_on": None,
                    "scenario.order": ("b", 'a, "c"'),
                    "train.lr": "1e-4",
                    "seed": np.int64(3),
                    "center": True,
                },
                out=tmp_path / "x",
            )
    config = seen[-1]
    assert (config.seed, config.method.name, config.center, config.tuned_on) == (3, "gcl", True, None)
    assert (config.train.lr, list(config.scenario.order)) == (1e-4, ["b", 'a, "c"'])


def test_lists_may_hold_numbers_of_numpy_and_paths(
    tmp_path: Path, settings: dict[str, Any], seen: list[Any]
) -> None:
    tasks = [np.int64(1), *np.array([1, 1]), 1]
    for given in (tasks, np.array([1, 1, 1, 1]), tuple(tasks)):
        with pytest.raises(UserError, match="enough"):
            everclip.train(settings | {"scenario.tasks": given}, out=tmp_path / "x")
    assert [list(config.scenario.tasks) for config in seen] == [[1, 1, 1, 1]] * 3
    with pytest.raises(UserError, match="enough"):
        everclip.train(settings, scenario={"order": [Path("b"), np.str_("a")]}, out=tmp_path / "x")
    assert list(seen[-1].scenario.order) == ["b", "a"]


def test_settings_go_over_a_mapping_key_by_key(
    tmp_path: Path, settings: dict[str, Any], seen: list[Any]
) -> None:
    base = settings | {"method": {"name": "gdro", "margin": 0.7}, "memory.policy": "herding"}
    for method in ("gdro", "gcl"):
        with pytest.raises(UserError, match="enough"):
            everclip.train(base, train={"lr": 1e-4}, memory={"budget": 6}, method=method, out=tmp_path / "x")
    first, second = seen
    assert (first.train.lr, first.train.epochs, first.train.batch_size) == (1e-4, 1, 8)
    assert (first.memory.budget, first.memory.policy, first.method.options["margin"]) == (6, "herding", 0.7)
    assert second.method.options["margin"] == 0.3  # another method's, as over a file


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"memory": {"bugdet": 3}}, ["memory.bugdet=3"]),
        ({"method": "gdor"}, ["method=gdor"]),
        ({"method": {"name": "gdro", "margni": 1}}, ["method=gdro", "method.margni=1"]),
        ({"train.lr": -1.0}, ["train.lr=-1.0"]),
        ({"train": {"epochs": "many"}}, ["train.epochs=many"]),
        ({"train": 3}, ["train=3"]),
        ({"memory": {"budget": 3}, "memory.budget": 4}, ["memory.budget=3", "memory.budget=4"]),
        ({"data": "imagefolder:/nowhere"}, ["data=imagefolder:/nowhere"]),
        ({"out": ""}, ["out="]),
    ],
)
def test_mistakes_are_told_in_the_command_lines_words(
    tmp_path: Path,
    given: dict[str, Any],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        everclip.train(**given)
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err == f"error: {error.value}\n"


def test_settings_that_no_command_line_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a key"):
        everclip.train({"train lr": 1})
    for given, reason in (
        (
            {"seed": object()},
            r'"seed" cannot be written as text \(a object\): give a number, a text, a path or a',
        ),
        ({"scenario": {"order": ["a", {"b"}]}}, r'"scenario.order" cannot be written as text \(a set\)'),
        ({"scenario.tasks": [{(1, 2): 3}]}, r'"scenario.tasks" cannot be written as text \(keys must be str'),
    ):
        with pytest.raises(UserError, match=reason):
            everclip.train(given)
    with pytest.raises(UserError, match='"nothing" is not a shipped config'):
        everclip.train("nothing")


def test_an_interrupt_is_a_keyboard_interrupt_and_the_run_goes_on(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings | {"method": "gcl", "out": tmp_path / "x", "progress": False}
    real = loop.train
    with monkeypatch.context() as patch:
        patch.setattr("everclip.notebook.train_run", _interrupting(real))
        with pytest.raises(KeyboardInterrupt, match=r"everclip resume .* continues from its last checkpoint"):
            everclip.train(**given)
    assert not (tmp_path / "x" / "results.json").exists()
    run = everclip.train(**given)
    assert run.results["method"] == "gcl"


def _interrupting(real: Any) -> Any:
    def train(run: Any, progress: Any, stop: Any) -> Any:
        threading.Timer(0, os.kill, (os.getpid(), signal.SIGINT)).start()
        return real(run, progress, stop)

    return train


def test_code_that_a_file_names_needs_trust(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "mine.py").write_text("raise RuntimeError('it ran')\n")
    (tmp_path / "my.toml").write_text(f'[method]\nname = "{tmp_path / "mine.py"}"\n')
    with pytest.raises(UserError, match="asks to run the code"):
        everclip.train(tmp_path / "my.toml", **settings, out=tmp_path / "x")
    with pytest.raises(RuntimeError, match="it ran"):
        everclip.train(tmp_path / "my.toml", trust=tmp_path, **settings, out=tmp_path / "x")
    with pytest.raises(UserError, match="asks to run the code"):  # nothing of it stays
        everclip.train(tmp_path / "my.toml", **settings, out=tmp_path / "x")


@pytest.mark.slow
def test_the_examples_of_the_page_run(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas", reason='pandas is in the extra: pip install "everclip[pandas]"')
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    page = (Path(__file__).parents[1] / "docs" / "notebook.md").read_text(encoding="utf-8")
    real, told = everclip.train, Path(settings["data"].partition(":")[2])
    (tmp_path / "photos").symlink_to(told, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    small = {key: value for key, value in settings.items() if key not in ("data", "memory")}
    monkeypatch.setattr(everclip, "train", lambda **given: real(**small, **given), raising=False)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    for block in blocks:
        exec(block, names)
        pyplot.close("all")
    assert len(names["table"]) == 3
    assert names["confusion"].to_numpy().sum() == len(names["answers"]) // 3
