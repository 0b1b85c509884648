"""Ways of tuning are found by name, inside the package and outside it, and ``tune`` is read in one place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from everclip import plugins
from everclip.cli.app import main
from everclip.config import load_config
from everclip.config.values import dump
from everclip.errors import UserError
from everclip.models import zoo
from everclip.models.catalogue import Costs
from everclip.models.tunings import tuning_of
from everclip.runs.resolve import resolve
from tests.complaints import complaint

SCALE = '''"""The logit scale alone."""

from everclip.models.tunings import Tuning

class Scale(Tuning):
    rates = ("lr",)
    blocks = (0, 0)

    def held(self, clip):
        return {name for name, _ in clip.model.named_parameters() if name != "logit_scale"}
'''
LAST = '''"""The image tower's last blocks and nothing else."""

from pydantic import Field
from everclip.models.tunings import Tuning

class Last(Tuning):
    class Config(Tuning.Config):
        count: int = Field(default=1, ge=1, description="blocks")
        biases: bool = Field(default=True, description="whether biases train too")

    @property
    def blocks(self):
        return self.config.count, 0

    def held(self, clip):
        names = [name for name, _ in clip.model.named_parameters()]
        inner = sorted({name.split(".")[3] for name in names if name.startswith("visual.transformer.resblocks")})
        tops = {f"visual.transformer.resblocks.{number}" for number in inner[-self.config.count:]}
        return {
            name for name in names
            if name.rsplit(".", len(name.split(".")) - 4)[0] not in tops
            or (name.endswith("bias") and not self.config.biases)
        }
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a way of tuning in a package and another in a file."""
    (tmp_path / "my_ways").mkdir()
    (tmp_path / "my_ways" / "scale.py").write_text(SCALE)
    (tmp_path / "last.py").write_text(LAST)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def moved(toy: str, run: Path) -> set[str]:
    old, new = zoo.load(toy).model.state_dict(), zoo.load(str(run)).model.state_dict()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.parametrize(
    ("words", "written", "blocks"),
    [
        ("tune=my_ways.scale", ("my_ways.scale", {}), None),
        ("tune=./last.py train.augment=none", ("./last.py:1", {"biases": True}), "1"),
        ("tune=./last.py:1 tuning.biases=false", ("./last.py:1", {"biases": False}), "1"),
    ],
)
def test_ways_of_ones_own_train_what_they_say(
    own: Path,
    words: str,
    written: tuple[str, dict[str, bool]],
    blocks: str | None,
    toy: str,
    photos: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens = [
        f"data={photos}",
        f"model={toy}",
        "method=clip",
        "device=cpu",
        "scenario.tasks=2",
        "train.lr=1e-3",
    ]
    tokens += ["train.epochs=1", "train.batch_size=8", "memory.budget=0", "out=run", *words.split()]
    assert main(["train", *tokens]) == 0
    found = moved(toy, own / "run")
    if blocks is None:
        assert found == {"logit_scale"}
    else:
        inside = f"visual.transformer.resblocks.{blocks}."
        assert {name for name in found if name.startswith(inside)} == found
        assert any(name.endswith("weight") for name in found)
        assert any(name.endswith("bias") for name in found) == (written[1]["biases"])
    results = json.loads((own / "run" / "results.json").read_text())
    assert results["tune"] == written[0]
    config = resolve(load_config(["run/config.toml", *words.split()[:1]]))
    assert (config.tune, config.tuning.options) == written
    capsys.readouterr()
    assert main(["resume", "run"]) == 2
    assert "asks to run the code" in capsys.readouterr().err


def test_the_pages_of_ways(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tunings", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert names == plugins.names("models/tunings") == ["full", "head", "image", "lora", "text", "top"]
    assert main(["tunings", "top"]) == 0
    assert "tune=top:BLOCKS  -  " in capsys.readouterr().out
    assert main(["tunings", "./last.py"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The image tower's last blocks")
    assert "tune=./last.py:COUNT  1 " in out
    assert "tuning.biases         true " in out
    assert main(["tunings", "my_ways.scale", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert (page["name"], page["summary"], page["options"]) == ("my_ways.scale", "The logit scale alone", [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tune=fulll", 'unknown tuning "fulll"; did you mean "full"?'),
        ("tune=top", 'tune is "top": use tune=top:BLOCKS, BLOCKS being a whole number from 1 to 9999'),
        ("tune=top:0", 'tune is "top:0": use tune=top:BLOCKS, BLOCKS being a whole number from 1'),
        ("tune=lora:x", 'tune is "lora:x": use tune=lora:RANK, RANK being a whole number from 1'),
        ("tune=image:2", 'tune is "image:2", and image takes no value: use tune=image'),
        ("tune=top:1 tuning.blocks=2", 'unknown key "tuning.blocks": use tune=top:BLOCKS'),
        ("tuning.rank=2", 'unknown key "tuning.rank": use tune=full'),
        ("tune=./last.py tuning.bias=false", 'unknown key "tuning.bias"; did you mean "tuning.biases"?'),
        ("tune=./last.py tuning.biases=3", "tuning.biases is 3: use true or false"),
        (
            "tune=./last.py:0",
            'tune is "./last.py:0": use tune=./last.py:COUNT, COUNT being a whole number from 1',
        ),
        ("tune=my_ways.none", 'tuning "my_ways.none" cannot be imported'),
        (
            "tune=os.path",
            "module os.path defines no tuning: it must define one subclass of everclip.models.tunings",
        ),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_mistake_is_refused_in_one_line(words: str, message: str) -> None:
    assert complaint(resolve, load_config(words.split())).startswith(message)


@pytest.mark.parametrize("tune", ["a..b", "top:", ":2", "a b"])
def test_what_is_no_name_is_refused_by_the_config(tune: str) -> None:
    with pytest.raises(UserError, match="use NAME or NAME:VALUE, where NAME is a way of tuning"):
        load_config([f"tune={tune}"])


def test_what_is_written_once_stays() -> None:
    """A config that is resolved says the same as before there were plug-ins, and is resolved once."""
    for tune in ("full", "image", "text", "head", "top:2", "lora:8"):
        config = resolve(load_config([f"tune={tune}"]))
        assert f'tune = "{tune}"' in dump(config)
        assert "tuning" not in dump(config)
        assert resolve(config) == config
    assert resolve(load_config(["tune=top:0x2"])).tune == "top:2"


def test_another_way_drops_the_options_of_the_lower_one(own: Path) -> None:
    (own / "my.toml").write_text('tune = "./last.py:2"\n[tuning]\nbiases = false\n')
    assert resolve(load_config(["my.toml", "tune=./last.py"])).tuning.options == {"biases": False}
    assert resolve(load_config(["my.toml", "tune=full"])).tuning.options == {}


def test_what_estimates_and_searches_ask() -> None:
    costs = Costs(1.0, 1.0, 1, 1, (1.0, 1.0), blocks=(12, 6))
    both = ["lr", "lr_text"]
    asked = {
        "full": ((None, None), (1, 1), both, 3, True),
        "image": ((None, 0), (1, 0), ["lr"], 3, True),
        "text": ((0, None), (0, 1), ["lr_text"], 3, True),
        "head": ((0, 0), (0, 0), [], 3, True),
        "top:3": ((3, 3), (1 / 4, 1 / 2), both, 3, True),
        "top:9": ((9, 9), (3 / 4, 1), both, 3, True),
        "lora:4": ((None, None), (1, 1), both, 2, False),
    }
    for tune, expected in asked.items():
        way = tuning_of(tune)
        assert (way.blocks, way.fractions(costs), way.rates, way.passes, way.shards) == expected, tune


def test_the_package_of_ways_imports_no_torch() -> None:
    code = "import sys, everclip.models.tunings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
