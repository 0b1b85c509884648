"""everclip reproduce: published settings are trained, and a number outside of its tolerance fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w

from everclip.cli.app import main
from everclip.config import load_config
from everclip.runs import published
from everclip.runs.resolve import resolve


def entry(toy: str, photos: str, last: float, tolerance: float = 0.1) -> dict[str, object]:
    """Published numbers of class means on the toy model."""
    return {
        "config": "default",
        "settings": {
            "data": f"imagefolder:{photos}",
            "model": f"local-dir:{toy}",
            "method": "ncm",
            "scenario.tasks": 3,
            "device": "cpu",
        },
        "published": {"last": last},
        "tolerance": tolerance,
        "source": "a table",
        "url": "https://example.org/table",
    }


@pytest.mark.parametrize("name", published.every())
def test_every_published_setting_is_a_valid_config(name: str) -> None:
    known = published.named(name)
    words = [f"{key}={value}" for key, value in known.settings.items() if key not in ("method", "templates")]
    config = resolve(load_config([known.config, f"method={known.settings['method']}", *words]))
    assert config.model == known.settings["model"]
    assert {*known.published} <= {"last", "average"}
    assert all(1 < value < 100 for value in known.published.values())


def test_it_passes_fails_and_goes_on(
    tmp_path: Path,
    toy: str,
    photos: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(published, "FILE", tmp_path / "published.toml")
    path, images = toy.removeprefix("local-dir:"), photos.removeprefix("imagefolder:")
    published.FILE.write_text(tomli_w.dumps({"means": entry(path, images, 50.0, 50.0)}), encoding="utf-8")
    assert main(["reproduce", "means"]) == 0
    shown = capsys.readouterr().out
    assert "pass" in shown
    assert "https://example.org/table" in shown
    here = json.loads((tmp_path / "runs/reproduce/means/results.json").read_text())["last"]
    published.FILE.write_text(
        tomli_w.dumps({"means": entry(path, images, 100 * here + 0.2)}), encoding="utf-8"
    )
    assert main(["reproduce", "means", "--json"]) == 3  # of the run that is there
    told = json.loads(capsys.readouterr().out)
    assert not told["passed"]
    assert told["checks"][0]["here"] == pytest.approx(100 * here)
    assert main(["reproduce", "means", "train.lr=1"]) == 2
    assert "belongs to what means reproduces" in capsys.readouterr().err
    assert main(["reproduce", "means", "nothing"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_a_list_and_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    assert "zero-shot-cifar100-openai" in capsys.readouterr().out
    assert main(["reproduce", "--json"]) == 0
    assert {found["name"] for found in json.loads(capsys.readouterr().out)} == {*published.every()}
    assert main(["reproduce", "zero-shot-cifar100-opneai"]) == 2
    assert "zero-shot-cifar100-openai" in capsys.readouterr().err
