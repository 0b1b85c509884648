"""Generations of defaults: what an earlier version wrote means what it meant then.

``kept/METHOD.toml`` are configs of run directories as everclip 0.1.0 wrote them, before there were others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everclip import config as configs
from everclip.config import load_config
from everclip.config.fields import before
from everclip.config.sources import read_toml
from everclip.config.values import dotted, dump, written
from everclip.errors import UserError
from everclip.methods.base.registry import method_class, method_config
from everclip.runs import card
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.training.loop import train
from tests.running import run, run_for, timeless

KEPT = sorted((Path(__file__).parents[1] / "kept").glob("*.toml"))
SMALL = (
    "scenario.tasks=3",
    "train.epochs=1",
    "train.batch_size=8",
    "memory.budget=12",
    "device=cpu",
    "out=kept",
)
MINE = """
from typing import Any, ClassVar
from pydantic import Field
from everclip.methods import Method, MethodConfig

class Changed(Method):
    class Config(MethodConfig):
        recommends: ClassVar[dict[str, Any]] = {"epochs": 7}
        recommended_before: ClassVar[dict[str, Any] | None] = {"epochs": 3}
        rate: float = Field(default=0.5, description="", json_schema_extra={"before": 0.1})
        most: int | None = Field(default=4, description="", json_schema_extra={"before": None})
        least: int | None = Field(default=None, description="", json_schema_extra={"before": 2})
        late: str = Field(default="c", description="", json_schema_extra={"before": "b", "until": 2})
    def encode(self, clip, batch, phase):
        return {}
    def loss(self, features, batch, phase):
        return {}
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of a user's own that has changed its defaults."""
    (tmp_path / "everclip_changed").mkdir()
    (tmp_path / "everclip_changed" / "__init__.py").write_text("")
    (tmp_path / "everclip_changed" / "changed.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)


def values(config: configs.Config) -> dict[str, Any]:
    return method_config(config).model_dump() | {"epochs": config.train.epochs}


NEW = {"rate": 0.5, "most": 4, "least": None, "late": "c", "epochs": 7}
OLD = {"rate": 0.1, "most": None, "least": 2, "late": "b", "epochs": 3}
NAMED = "method=everclip_changed.changed"


def test_what_is_typed_gets_the_newest_or_those_it_asks_for() -> None:
    assert values(resolve(load_config([NAMED]))) == NEW
    assert values(resolve(load_config([NAMED, "defaults=1"]))) == OLD
    assert values(resolve(load_config([NAMED, "defaults=2"]))) == {**NEW, "late": "b"}
    some = ["method.rate=0.2", "method.least=none", "method.most=auto", "train.epochs=5"]
    config = resolve(load_config([NAMED, "defaults=1", *some]))
    assert values(config) == {"rate": 0.2, "most": None, "least": None, "late": "b", "epochs": 5}
    assert values(resolve(load_config([NAMED, *some]))) == {
        "rate": 0.2,
        "most": 4,
        "least": None,
        "late": "c",
        "epochs": 5,
    }


@pytest.mark.parametrize("defaults", [1, 2, 3])
def test_what_is_written_says_which_it_has(defaults: int, tmp_path: Path) -> None:
    config = resolve(load_config([NAMED, f"defaults={defaults}", "method.least=none"]))
    path = tmp_path / "again.toml"
    path.write_text(dump(config))
    assert f"defaults = {defaults}" in path.read_text()
    assert resolve(load_config([str(path), NAMED])) == config


def test_a_file_of_ours_without_the_key_has_the_first(tmp_path: Path) -> None:
    header = "# everclip 0.1.0\n"
    text = '[method]\nname = "everclip_changed.changed"\n'
    for name, content in {"ours": header + text, "theirs": "# mine\n" + text}.items():
        (tmp_path / f"{name}.toml").write_text(content)
    (tmp_path / "over.toml").write_text('extends = "ours.toml"\nseed = 3\n')
    found = {
        name: values(resolve(load_config([str(tmp_path / f"{name}.toml"), NAMED])))
        for name in ("ours", "theirs", "over")
    }
    assert found == {"ours": OLD, "theirs": NEW, "over": OLD}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text('method = "gdro"\n')  # by another hand
    assert Run.read_config(tmp_path / "run").defaults == 1


def test_a_wrong_generation_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^defaults is 4: use 1 or 2 or 3$"):
        load_config(["defaults=4"])


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_config_has_the_values_it_had(path: Path, tmp_path: Path) -> None:
    had = dotted(read_toml(path))
    typed = resolve(load_config([f"method={path.stem}", "defaults=1", *SMALL]))
    (tmp_path / "config.toml").write_bytes(path.read_bytes())
    for config in (typed, resolve(load_config([str(path)])), Run.read_config(tmp_path)):
        now = dotted(written(config))
        assert now.pop("defaults") == 1
        assert {key: now.get(key) for key in had} == had
        assert configs.config_hash(config) == configs.config_hash(typed)


def test_a_model_folder_without_the_key_has_the_first() -> None:
    config = resolve(load_config(["method=finetune"]))
    kept = card.settings(config)
    assert kept.pop("defaults") == 3
    known = {
        "classes": ["a"],
        "tasks": [{"name": "1", "labels": [0]}],
        "templates": ["{}"],
        "classifier": "text",
    }
    assert card.Card.model_validate({**known, "settings": kept}).config().defaults == 1


@pytest.mark.parametrize("method", ["finetune method.head=linear", "joint", "foster"])
def test_a_kept_run_goes_on_as_it_began(method: str, tmp_path: Path, toy: str, photos: str) -> None:
    tokens = [f"data={photos}", f"model={toy}", "scenario.tasks=2", *f"method={method}".split()]
    whole = run(tmp_path / "whole", *tokens, "defaults=1")
    out = tmp_path / "kept"
    assert run_for(out, 2, *tokens, "defaults=1") is None
    path = out / "config.toml"
    lines = path.read_text().splitlines(keepends=True)
    assert "defaults = 1\n" in lines
    path.write_text("".join(line for line in lines if line != "defaults = 1\n"))
    with Run.open(Run.read_config(out)) as opened:
        assert timeless(train(opened, Progress())) == timeless(whole)
    had = read_toml(KEPT[0].with_stem(method.split()[0]))["method"]
    now = written(Run.read_config(out))["method"]
    same = set(had) - {"head", "options"}
    assert {key: now[key] for key in same} == {key: had[key] for key in same}


def test_a_method_within_another_has_them_too() -> None:
    for name in ("joint", "wise_ft"):
        config = resolve(load_config([f"method={name}", "defaults=1", "method.options.head=linear"]))
        options = config.method.options["options"]
        assert options == {"head": "linear"} | before(method_class("finetune").Config)
        assert options["classes"] == "seen"
    assert resolve(load_config(["method=joint"])).method.options["options"] == {}
