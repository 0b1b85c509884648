from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everclip.cli.app import main
from everclip.runs.run import Run
from everclip.runs.words import size
from tests.pictures import image_folder

SMALL = ["scenario.tasks=3", "train.epochs=1", "train.batch_size=8", "memory.budget=12", "device=cpu"]


@pytest.fixture
def tokens(toy: str, photos: str) -> list[str]:
    return [f"data={photos}", f"model={toy}", *SMALL]


def test_train_prints_a_table_and_writes_the_run(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", *tokens, f"out={out}"]) == 0
    stdout, stderr = capsys.readouterr()
    assert "zero-shot" in stdout
    assert "task 3" in stdout
    assert f"report: {out}/report.html" in stdout
    assert "on all classes seen so far" in stderr
    assert (out / "report.html").stat().st_size > 10_000
    assert main(["train", *tokens, f"out={out}", "--json"]) == 0
    stdout, stderr = capsys.readouterr()
    assert json.loads(stdout) == json.loads((out / "results.json").read_text())
    assert "is finished: nothing to do" in stderr
    assert main(["resume", str(out)]) == 0
    assert main(["train", *tokens, f"out={out}", "seed=5"]) == 2
    assert main(["evaluate", str(out), "--json"]) == 0


def test_dry_run_trains_nothing(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *tokens, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "6 optimizer steps in all, less than a minute (" in text
    assert text.endswith("; nothing was trained\n")
    assert 'name = "gdro"' in text
    assert main(["train", *tokens, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [task["steps"] for task in plan["tasks"]] == [1, 2, 3]
    assert [task["memory_per_class"] for task in plan["tasks"]] == [6, 3, 2]
    assert [task["memory"] for task in plan["tasks"]] == [8, 12, 12]
    assert all(task["memory_bytes"] > 0 for task in plan["tasks"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("budget", "steps"), [("4", [1, 0, 0]), ("12", [1, 2, 0]), ("30", [1, 2, 3])])
def test_dry_run_counts_the_steps_of_adapt(
    budget: str, steps: list[int], tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    adapt = (
        f"memory.budget={budget}",
        "method=multilayer_lda",
        "method.adapt=finetune",
        "method.follow_from=4",
    )
    assert main(["train", *tokens[:-2], tokens[-1], *adapt, "--dry-run", "--json"]) == 0
    assert [task["steps"] for task in json.loads(capsys.readouterr().out)["tasks"]] == steps


def test_dry_run_says_how_much_is_kept(
    tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frozen = [*tokens, "method=finetune", "tune=top:1", "train.augment=none"]
    assert main(["train", *frozen, "--dry-run"]) == 0
    line = "activations of the frozen trunk are kept: 1.1 kB each (fp16), at most "
    assert line + "34.8 kB\n" in capsys.readouterr().out
    assert main(["train", *frozen, "cache.shared=true", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cache_bytes"] == 36 * 17 * 32 * 2
    assert not list(tmp_path.iterdir())
    assert main(["train", *frozen, f"out={tmp_path / 'run'}"]) == 0
    assert line + "34.8 kB in memory" in capsys.readouterr().err, "as the run itself says"
    whole = [*tokens, "method=finetune", "tune=top:1"]
    away = ["model=ViT-B-32:openai" if word.startswith("model=") else word for word in frozen]
    for words, expected in ((whole, 0), (away, None)):
        assert main(["train", *words, "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["cache_bytes"] == expected
    assert main(["train", *away, "--dry-run"]) == 0
    assert "not known: ViT-B-32:openai has no weights on this machine" in capsys.readouterr().out


def test_smoke(tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *tokens, f"out={tmp_path / 'run'}", "--smoke", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["smoke"]


BAD = [
    (["methd=gcl"], 'unknown key "methd"; did you mean "method"'),
    (["method=gdr"], 'unknown method "gdr"; did you mean "gdro"'),
    (["method=gdro", "method.margn=1"], 'method "gdro" has no option "margn"; did you mean "margin"'),
    (["method=der"], "use der_expand"),
    (["method=joint", "method.loss=joint"], "names itself"),
    (["memory.budget=-1"], "memory.budget is -1: use a whole number from 0"),
    (["scenario.tasks=7"], "scenario.tasks=7 but there are 6 classes: use at most 6"),
    (["scenario.kind=domain-incremental"], "has one domain"),
    (["data=imagefolder:nowhere"], "data folder nowhere does not exist"),
    (["data=imagefoldr:x"], 'did you mean "imagefolder"'),
    (["model=lit"], "unknown model"),
    (["model=local-dir:nowhere"], "nowhere does not exist"),
    (["classnames=nowhere.txt"], "class names file nowhere.txt cannot be read"),
    (["templates=nowhere.txt"], "templates file nowhere.txt cannot be read"),
    (["train.lr=fast"], 'train.lr is "fast"'),
    (["method=cassle", "train.augment=none"], "train.augment=none makes them the same"),
]


@pytest.mark.parametrize(("change", "part"), BAD)
def test_bad_input_gives_one_line_and_leaves_nothing(
    change: list[str], part: str, tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {token.partition("=")[0] for token in change}
    kept = [token for token in tokens if token.partition("=")[0] not in keys]
    assert main(["train", *kept, *change, f"out={tmp_path / 'run'}"]) == 2
    stdout, stderr = capsys.readouterr()
    assert not stdout
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert part in last
    assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists()
    assert main(["train", *kept, *change, "--dry-run"]) == 2
    assert part in capsys.readouterr().err


def test_unreadable_pictures_and_warnings(
    tmp_path: Path, toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(tmp_path / "photos", {"train": 4, "test": 2})
    (root / "train/red/0.png").write_bytes(b"no picture")
    words = [f"data=imagefolder:{root}", f"model={toy}", *SMALL[:-2], "memory.budget=5"]
    assert main(["train", *words, f"out={tmp_path / 'run'}"]) == 0
    stdout, stderr = capsys.readouterr()
    assert "warning: skipping 1 broken image: see run.log" in stderr
    assert "warning: memory.budget=5 is below the 6 classes" in stderr
    assert "skipped 1 broken image: see run.log" in stdout


def test_resume_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert main(["evaluate", "lite"]) == 2
    assert "is not a run directory: give one, or a model's name with --data" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue_and_resume_does(tmp_path: Path, tokens: list[str]) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "everclip"]
    many = [token.replace("epochs=1", "epochs=2000") for token in tokens]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "train", *many, f"out={out}"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # a shell starts background jobs, such as a whole CI, with Ctrl-C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or '"step"' not in (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline, "no step within a minute"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip().splitlines()[-1].startswith(f"interrupted: everclip resume {out} continues")
    assert "Traceback" not in stderr
    assert not Run(out, Run.read_config(out)).finished


def test_the_last_line_counts_the_state_beside_the_images(
    tmp_path: Path, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data={photos}", f"model={toy}", "method=ridge", "scenario.tasks=3", "device=cpu"]
    assert main(["train", *words, f"out={tmp_path / 'run'}"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["memory_bytes"] == 0 < results["state_bytes"] == results["kept_bytes"]
    assert f"memory 0 bytes of images + {size(results['state_bytes'])} of state" in capsys.readouterr().out
    stages = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    states = [line["memory"]["state_bytes"] for line in stages if line["event"] == "stage"]
    assert states[-1] == results["state_bytes"]


def test_the_terminal_does_not_praise_what_may_be_chance(
    tmp_path: Path, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data={photos}", f"model={toy}", *SMALL, "method=finetune", "train.lr=1e-9", "train.lr_text=0"]
    assert main(["train", *words, f"out={tmp_path / 'run'}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "No better than zero-shot. With 12 test images a gap below" in out
