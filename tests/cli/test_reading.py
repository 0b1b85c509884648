"""The commands that only read: methods, datasets, models, scenarios, doctor."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from everclip import plugins
from everclip.cli import app, doctor
from everclip.cli._output import print_columns, summary
from everclip.config import load_config
from everclip.models.catalogue import catalogue


def read(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert app.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def read_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(read(capsys, *arguments, "--json"))


@pytest.mark.parametrize(
    "command", ["configs", "methods", "datasets", "models", "scenarios", "tunings", "trackers"]
)
def test_lists_import_no_torch(command: str) -> None:
    code = (
        f"import sys; from everclip.cli.app import main; code = main(['{command}'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of every list of methods: by name, what there is to compare with last."""
    last = ["joint", "zero_shot"]
    names = [name for name in plugins.names("methods") if name not in last] + last
    text = read(capsys, "methods")
    assert [
        line.split()[0] for line in text.split("\n\n")[0].splitlines() if not line.startswith(" ")
    ] == names
    listed = read_json(capsys, "methods")
    assert [row["name"] for row in listed] == names
    assert all(row["summary"] for row in listed)


def test_a_methods_page_has_its_docstring_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    text = read(capsys, "methods", "finetune")
    assert text.startswith(plugins.docstring("methods", "finetune"))
    page = read_json(capsys, "methods", "finetune")
    option = next(option for option in page["options"] if option["name"] == "label_smoothing")
    assert option["default"] == 0.0
    assert option["allowed"] == "a number from 0 to below 1"
    assert re.search(rf"method\.label_smoothing  0\.0 +{option['help']} \({option['allowed']}\)\n", text)
    assert "It has no options." in read(capsys, "methods", "zero_shot")


def test_a_method_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "everclip_reading").mkdir()
    (tmp_path / "everclip_reading" / "own.py").write_text(
        '"""My own method."""\n'
        "from everclip.methods import Method, MethodConfig\n"
        "class Own(Method):\n"
        "    class Config(MethodConfig):\n"
        '        recommends = {"epochs": 2}\n'
        "    def encode(self, clip, batch, phase): return {}\n"
        "    def loss(self, features, batch, phase): return {}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    page = read_json(capsys, "methods", "everclip_reading.own")
    assert (page["summary"], page["options"], page["recommends"]) == ("My own method", [], {"epochs": 2})
    assert "Its defaults in [train]: train.epochs=2." in read(capsys, "methods", "everclip_reading.own")


def test_datasets(capsys: pytest.CaptureFixture[str]) -> None:
    names = plugins.names("data/sources")
    assert [row["name"] for row in read_json(capsys, "datasets")] == names
    text = read(capsys, "datasets")
    assert all(name in text for name in names)
    text = plugins.docstring("data/sources", "emoji")
    assert read(capsys, "datasets", "emoji") == f"{text}\n\nIt has no options.\n"
    page = read_json(capsys, "datasets", "emoji")
    assert (page["description"], page["options"]) == (text, [])


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["name"] for row in read_json(capsys, "models")] == [info.name for info in catalogue()]
    text = read(capsys, "models")
    assert all(info.name in text for info in catalogue())
    assert read_json(capsys, "models", "lite")["recommended"]["lr"] == 3e-5
    assert "train.lr=3e-05" in read(capsys, "models", "lite")


def test_models_that_hold_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    found = read_json(capsys, "models", "vit-b-16")
    names = [row["name"] for row in found]
    assert {"ViT-B-16:openai", "ViT-B-16-SigLIP:webli"} <= {*names}
    assert all("vit-b-16" in name.lower() for name in names)
    assert "ViT-B-16:openai" in read(capsys, "models", "ViT-B-16")


def test_models_that_are_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert [row["name"] for row in read_json(capsys, "models", "lite", "--here")] == ["lite"]
    assert read(capsys, "models", "bigG", "--here").startswith("none; ")
    assert read_json(capsys, "models", "bigG", "--here") == []


@pytest.mark.parametrize(
    ("tag", "imagenet", "cifar"),
    [
        ("openai", 68.34, 66.95),
        ("laion400m_e32", 67.05, 71.16),
        ("laion2b_s34b_b88k", 70.23, 76.84),
        ("datacomp_xl_s13b_b90k", 73.49, 82.12),
    ],
)
def test_the_papers_model_with_its_weights(
    tag: str, imagenet: float, cifar: float, capsys: pytest.CaptureFixture[str]
) -> None:
    page = read_json(capsys, "models", f"ViT-B-16:{tag}")
    assert (page["parameters"], page["imagenet"], page["cifar100"]) == (149.6, imagenet, cifar)
    assert page["image_flops"] == pytest.approx(35.13e9, rel=1e-3)
    assert page["text_flops"] == pytest.approx(5.96e9, rel=1e-3)
    text = read(capsys, "models", f"ViT-B-16:{tag}")
    assert "35.1 GFLOP per image and 6.0 per prompt" in text
    assert f"{imagenet:.2f} % on ImageNet, {cifar:.2f} % on CIFAR-100" in text
    assert ("ViT-B-16-quickgelu" in text) == page["quick_gelu"] == (tag == "openai")
    row = next(line for line in read(capsys, "models").splitlines() if line.startswith(f"ViT-B-16:{tag} "))
    assert row.split()[1:5] == ["149.6", "35.1", "6.0", "224"]


@pytest.mark.parametrize("command", ["scenarios"])
def test_a_catalogue_shows_each_plug_in_with_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_json(capsys, command)
    assert rows
    for row in rows:
        page = read_json(capsys, command, row["name"])
        assert page["summary"] == row["summary"] != ""
        text = read(capsys, command, row["name"])
        assert page["description"] in text
        assert all(
            option["name"] in text and option["help"] in " ".join(text.split()) for option in page["options"]
        )
        assert row["name"] in read(capsys, command)


def test_scenarios_shows_commands_that_are_configs(capsys: pytest.CaptureFixture[str]) -> None:
    examples = [
        shlex.split(line)
        for name in plugins.names("data/scenarios")
        for line in read(capsys, "scenarios", name).splitlines()
        if line.startswith("    everclip train ")
    ]
    assert len(examples) == 20
    for _, _, *words in examples:
        load_config([word for word in words if word != "my.toml"])


def test_the_doctor_finds_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    code = app.main(["doctor", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"python", "torch", "processor", "memory", "disk", "cache", "lite", "emoji", "data", "hub"} <= set(
        rows
    )
    assert code == any(row["state"] == "fail" for row in rows.values())
    assert rows["torch"]["state"] == "ok"
    app.main(["doctor"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("The offline default can")


def states(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def test_the_doctor_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "file" / "inner"))
    monkeypatch.setenv("EVERCLIP_LITE_DIR", str(tmp_path))
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("COLUMNS", "400")  # or the length of the path decides where it wraps
    found = states(doctor.examine())
    assert (found["cache"], found["lite"], found["data"]) == ("fail", "fail", "warn")
    assert app.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "set EVERCLIP_CACHE to a folder that can" in text
    assert text.splitlines()[-1] == "The offline default cannot run: see the lines that fail."


def test_the_doctor_lists_data_sets_and_damaged_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "caltech").mkdir()
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path))
    assert doctor._data()[0].text == f"EVERCLIP_DATA={tmp_path} holds caltech"
    from everclip.data.sources import emoji

    for name, more in (("SHA256SUMS", b""), ("class-incremental.csv", b"x")):
        (tmp_path / name).write_bytes((emoji.ASSETS / name).read_bytes() + more)
    monkeypatch.setattr(emoji, "ASSETS", tmp_path)
    assert states(doctor._emoji()) == {"emoji": "fail"}


def test_columns_are_aligned_and_wrapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_columns([("a", "1", "word " * 10), ("long", "22", "")], ("name", "n", "text"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "name  n   text"
    assert lines[1].startswith("a     1   word word")
    assert lines[2].startswith("          word")
    assert lines[-1] == "long  22"
    assert max(map(len, lines)) <= 40
    assert summary("One\nsentence.\n\nMore.") == "One sentence"
