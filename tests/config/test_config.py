"""The config: what is accepted, what is refused and how, where values come from."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from everclip import config as configs
from everclip.config import Config, config_hash, load_config
from everclip.config.fields import allowed, leaves
from everclip.config.sources import text
from everclip.config.values import dump
from everclip.runs.resolve import resolve
from tests.complaints import complaint

DOCS = Path(__file__).parents[2] / "docs"


def toml(folder: Path, text: str, name: str = "my.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


# What values mean -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "value"),
    [
        ("train.lr=1e-4", 1e-4),
        ("train.lr=.5", 0.5),
        ("train.lr=5.", 5.0),
        ("train.lr=none", None),
        ("train.lr=auto", None),
        ("train.lr_text=0", 0.0),
        ("train.clip_norm=none", None),
        ("train.clip_norm=auto", 1.0),
        ("train.augment=none", "none"),
        ("image_size=auto", None),
        ("image_size=64", 64),
        ("scenario.tasks=[10,20]", [10, 20]),
        ("scenario.tasks=1_0", 10),
        ("scenario.order=7", 7),
        ("scenario.order=given", "given"),
        ('scenario.order=["cat", "dog"]', ["cat", "dog"]),
        ("memory.budget=all", "all"),
        ("memory.budget=0", 0),
        ("out=2026", "2026"),
        ("out=2026-01-31", "2026-01-31"),
        ("out=true", "true"),
        ("out=runs/a=b", "runs/a=b"),
        ("out=a # b", "a # b"),
        ('out="a # b"', "a # b"),
        ('out="a" # "b"', '"a" # "b"'),
        ("out=1, y = 2", "1, y = 2"),
        ("out= runs/a ", "runs/a"),
        ('"out"=x', None),
        ("data=imagefolder:/my pictures", "imagefolder:/my pictures"),
        ("model=ViT-B-16:laion400m_e32", "ViT-B-16:laion400m_e32"),
        ("device=cuda:1", "cuda:1"),
        ('templates=["a {}.", "{}"]', ["a {}.", "{}"]),
        ("templates=prompts.txt", "prompts.txt"),
    ],
)
def test_a_value_on_the_command_line(token: str, value: object) -> None:
    if token.startswith('"'):
        assert "is not a shipped config" in complaint(load_config, [token])
        return
    found: object = load_config([token])
    for name in token.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_a_method_and_its_options_stand_together() -> None:
    config = load_config(["method.margin=0.3", "method=gcl", "method.deep=true", "method.note=a b"])
    assert config.method.name == "gcl"
    assert config.method.options == {"margin": 0.3, "deep": True, "note": "a b"}
    assert load_config(["method.name=gcl"]) == load_config(["method=gcl"])


def test_without_tokens_it_is_the_offline_default() -> None:
    config = load_config([])
    assert config == load_config(["default"])
    assert config == Config(image_size=96)
    assert (config.data, config.model, config.method.name) == ("emoji", "lite", "gdro")
    assert (config.scenario.kind, config.scenario.tasks, config.scenario.order) == (
        "class-incremental",
        10,
        1993,
    )
    assert config.memory.budget == 200


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config([]).seed = 1
    assert Config.model_validate({"method": "gcl"}).method.name == "gcl"


# Layers -----------------------------------------------------------------------------------------------------


def test_later_layers_win(tmp_path: Path) -> None:
    toml(tmp_path, 'seed = 1\ndata = "a"\nmethod = "gcl"\n[train]\nlr = 0.1\nbatch_size = 8\n', "base.toml")
    child = toml(tmp_path, 'extends = "base.toml"\nseed = 2\n[train]\nlr = 0.2\n[method]\ntau = 0.1\n')
    config = load_config([child, "train.lr=0.3"])
    assert (config.seed, config.data, config.train.lr, config.train.batch_size) == (2, "a", 0.3, 8)
    assert (config.method.name, config.method.options) == ("gcl", {"tau": 0.1})


def test_a_memory_per_class_takes_the_place_of_a_budget(tmp_path: Path) -> None:
    base = toml(tmp_path, "[memory]\nbudget = 500\n", "base.toml")
    memory = load_config([base, "memory.per_class=10"]).memory
    assert (memory.budget, memory.per_class, memory.size(7)) == (None, 10, 70)
    written = toml(tmp_path, dump(resolve(load_config([base, "memory.per_class=10"]))))
    assert load_config([written]).memory == memory
    again = load_config([written, "memory.budget=all"]).memory
    assert (again.budget, again.per_class, again.size(7)) == ("all", None, "all")
    assert load_config([base, "memory.per_class=none"]).memory == load_config([base]).memory


def test_a_file_starts_from_the_general_defaults_and_may_extend_the_offline_one(tmp_path: Path) -> None:
    assert load_config([toml(tmp_path, "seed = 3")]) == Config(seed=3)
    assert load_config([toml(tmp_path, 'extends = "default"\nseed = 3')]) == load_config(["seed=3"])


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    toml(tmp_path, "seed = 4", "base.toml")
    child = toml(tmp_path / "inner", 'extends = "../base.toml"')
    assert load_config([child]).seed == 4


@pytest.mark.parametrize(
    ("lower", "tokens", "options"),
    [
        ('[method]\nname = "gdro"\nmargin = 0.5', ["method=gcl"], {}),
        ('[method]\nname = "gdro"\nmargin = 0.5', ["method=gdro"], {"margin": 0.5}),
        ('[method]\nname = "gdro"\nmargin = 0.5', ["method.tau=0.1"], {"margin": 0.5, "tau": 0.1}),
        ("[method]\nmargin = 0.5", ["method=gcl", "method.tau=0.1"], {"tau": 0.1}),
        ("[method]\nmargin = 0.5", ["method=gdro"], {"margin": 0.5}),
    ],
)
def test_another_method_drops_the_options_of_the_first(
    tmp_path: Path, lower: str, tokens: list[str], options: dict[str, object]
) -> None:
    assert load_config([toml(tmp_path, lower), *tokens]).method.options == options


def test_tables_among_the_options_are_merged(tmp_path: Path) -> None:
    path = toml(tmp_path, "[method.options]\na = 1\nb = 2")
    config = load_config([path, "method.options.b=3", "method.options.c=x"])
    assert config.method.options == {"options": {"a": 1, "b": 3, "c": "x"}}
    assert round_trip(config) == config


def test_another_model_drops_the_image_size_of_the_first(tmp_path: Path) -> None:
    assert load_config(["model=ViT-B-32:openai"]).image_size is None
    assert load_config(["model=ViT-B-32:openai", "image_size=128"]).image_size == 128
    assert load_config(["model=lite"]).image_size == 96
    assert load_config(["data=imagefolder:/photos"]).image_size == 96
    mine = toml(tmp_path, 'model = "ViT-B-32:openai"\nimage_size = 160')
    assert load_config([mine]).image_size == 160
    assert load_config([mine, "model=lite"]).image_size is None
    assert load_config([toml(tmp_path, "image_size = 160"), "model=ViT-B-32:openai"]).image_size is None


def test_epochs_and_steps_replace_each_other(tmp_path: Path) -> None:
    epochs, steps = toml(tmp_path, "train.epochs = 3", "e.toml"), toml(tmp_path, "train.steps = 30", "s.toml")
    assert load_config([epochs, "train.steps=9"]).train.model_dump(include={"epochs", "steps"}) == {
        "epochs": None,
        "steps": 9,
    }
    assert load_config([steps, "train.epochs=2"]).train.steps is None
    assert load_config([epochs, "train.steps=none"]).train.epochs == 3
    assert load_config([epochs, "train.epochs=auto"]).train.epochs is None


# Writing ----------------------------------------------------------------------------------------------------


def round_trip(config: Config) -> Config:
    return Config.model_validate(tomllib.loads(dump(config)))


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        ["train.clip_norm=none", "out=runs/x", 'scenario.order=["a", "b\\"c"]', "scenario.tasks=[1, 2]"],
        ["method=gcl", "method.tau=0.1", "method.names=[1, 2]", "memory.budget=all"],
        ["train.steps=7", 'templates=["{} é \\\\ "]', "model=hf-hub:a/b", "image_size=32"],
    ],
)
def test_a_dump_loads_to_an_equal_config(tmp_path: Path, tokens: list[str]) -> None:
    config = load_config(tokens)
    path = toml(tmp_path, dump(config))
    assert load_config([path]) == config
    assert dump(load_config([path])) == dump(config)


def test_the_same_run_whatever_its_folder() -> None:
    usual = config_hash(load_config([]))
    assert config_hash(load_config(["out=a"])) == usual
    how = [
        "trackers=tensorboard",
        "checkpoint.every=steps:5",
        "checkpoint.keep=1",
        "distributed.gather=light",
        "device=cpu",
        "loader.workers=0",
        "loader.cache_mb=0",
        "cache.ram_mb=1",
        "cache.shared=true",
    ]
    assert config_hash(load_config(how)) == usual
    assert config_hash(load_config(["seed=1"])) != usual
    assert config_hash(load_config(["cache.views=2"])) != usual
    assert config_hash(load_config(["method.tau=1"])) != usual
    assert len(usual) == 16


# Documentation ----------------------------------------------------------------------------------------------


def test_the_documented_table_is_that_of_the_models() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (DOCS / "config.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    documented = {row[0].strip("`"): row[1:] for row in rows}
    expected = {}
    for key, field in leaves(Config).items():
        default = "none" if field.default is None else json.dumps(field.default).strip('"')
        expected[configs.public(key)] = [f"`{default}`", allowed(field), str(field.description)]
    assert documented == expected


def test_every_shipped_config_loads_and_explains_itself() -> None:
    for name in configs.shipped():
        load_config([name])
        header = text(name).split("\n\n")[0]
        assert all(f"# {word}:" in header for word in ("Paper", "Command", "Time", "Expected"))


def test_a_refused_value_imports_no_torch() -> None:
    command = "import sys; from everclip.cli.app import main; code = main(['train', 'train.lr=-1'])"
    code = f"{command}\nsys.exit(code != 2 or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
