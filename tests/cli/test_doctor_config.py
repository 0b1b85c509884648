"""everclip doctor --config: data, weights, memory, disk and hours of a config against this machine."""

from __future__ import annotations

import functools
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from everclip.cli import _needs
from everclip.cli._finding import GIB
from everclip.cli.app import main
from everclip.config import load_config
from everclip.data.formats.download import Remote
from everclip.data.sources import cifar100
from everclip.models.catalogue import costs
from everclip.runs.resolve import resolve
from everclip.training import estimate, pace
from everclip.training.estimate import Sizes
from tests.pictures import image_folder
from tests.toy import toy_clip


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no folders of the user; runs would go into the test's folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(cifar100, "ARCHIVE", Remote(f"{nowhere}/cifar.tar.gz", 169_001_437, "md5:0"))
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the rows by name."""
    code = main(["doctor", *arguments, "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert len({row["name"] for row in rows}) == len(rows)
    return code, {row["name"]: row for row in rows}


def test_the_offline_default_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = examined(capsys, "--config", "default", "device=cpu")
    assert code == 0
    assert rows["data"]["text"] == "emoji: 600 training and 300 test images, 10 tasks of 100 classes"
    assert {
        rows[name]["state"] for name in ("data", "weights", "device", "disk", "time", "lite", "emoji")
    } == {"ok"}
    assert main(["doctor", "--config", "default", "device=cpu"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == 'The config default can run: use "everclip train default device=cpu".'
    code, rows = examined(capsys, "--config", "default", "device=cpu", "cache.trunk=on")
    assert (code, rows["time"]["state"]) == (1, "fail")
    assert "but tune=full trains all of it: use tune=top:K" in rows["time"]["text"]


def test_data_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.toml").write_text('data = "imagefolder:/no/such/folder"\n')
    code, rows = examined(capsys, "--config", "my.toml")
    assert code == 1
    assert rows["data"]["state"] == "fail"
    assert "/no/such/folder" in rows["data"]["text"]
    assert rows["estimate"]["state"] == "warn"
    assert main(["doctor", "--config", "my.toml"]) == 1
    assert capsys.readouterr().out.endswith("The config my.toml cannot run: see the lines that fail.\n")


@pytest.mark.slow
def test_neither_data_nor_weights_and_still_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = examined(capsys, "--config", "cifar100", "device=cpu")
    assert code == 1
    assert rows["data"]["state"] == rows["weights"]["state"] == "fail"
    assert "cifar.tar.gz does not answer" in rows["data"]["remedy"]
    assert "cannot be reached" in rows["weights"]["text"]
    assert "local-dir:FOLDER" in rows["weights"]["remedy"]
    assert rows["time"]["text"].split(": ")[1].startswith("42 PFLOP")
    assert "the run and the data may take" in rows["disk"]["text"]
    code, rows = examined(capsys, "--config", "imagenet/gdro-m20000", "device=cpu")
    assert "https://image-net.org/download-images" in rows["data"]["text"]
    assert rows["time"]["text"].split(": ")[1].startswith("418 PFLOP")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A web server with one file."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "cifar.tar.gz").write_bytes(b"x")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_data_that_can_be_downloaded(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(load_config(["cifar100"]))
    monkeypatch.setattr(cifar100, "ARCHIVE", Remote(f"{site}/cifar.tar.gz", 169_001_437, "md5:0"))
    _, found = _needs.data_there(config)
    assert (found.state, found.remedy) == ("warn", "up to 0.2 GB will be downloaded")
    monkeypatch.setattr(cifar100, "ARCHIVE", Remote(f"{site}/gone.tar.gz", 1, "md5:0"))
    _, found = _needs.data_there(config)
    assert found.state == "fail"


def test_weights_that_are_missing_cached_or_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture_root = image_folder(tmp_path / "pictures", {"train": 4, "test": 2}, classes=2)
    asked = ["--config", "default", f"data=imagefolder:{picture_root}", "scenario.tasks=2", "device=cpu"]
    code, rows = examined(capsys, *asked, "model=ViT-B-32:laion2b_s34b_b79k")
    assert (code, rows["data"]["state"], rows["weights"]["state"]) == (1, "ok", "fail")
    code, rows = examined(capsys, *asked, "model=ViT-B-23:openai")
    assert 'unknown model "ViT-B-23:openai"; the nearest are ViT-B-32:openai' in rows["weights"]["text"]
    code, rows = examined(capsys, *asked, f"model=local-dir:{toy_clip(tmp_path)}")
    assert (code, rows["weights"]["state"], rows["device"]["state"]) == (0, "ok", "ok")
    (tmp_path / "toy" / "open_clip_model.safetensors").unlink()
    code, rows = examined(capsys, *asked, f"model={tmp_path / 'toy'}")
    assert (code, rows["weights"]["state"]) == (1, "fail")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", site)
    code, rows = examined(capsys, *asked, "model=ViT-B-32:laion2b_s34b_b79k")
    assert (rows["weights"]["state"], code) == ("warn", 0)
    folder = tmp_path / "hub" / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1" * 40)
    file = folder / "snapshots" / ("1" * 40) / "open_clip_model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"0" * 2_000_000)
    code, rows = examined(capsys, *asked, "model=ViT-B-32:laion2b_s34b_b79k")
    assert rows["weights"]["state"] == "ok"
    assert rows["weights"]["text"].endswith("open_clip_model.safetensors (2 MB)")


def test_no_such_device(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.device_count() > 999:
        pytest.skip("has that device")
    code, rows = examined(capsys, "--config", "default", "device=cuda:999")
    assert (code, rows["device"]["state"]) == (1, "fail")
    assert "use device=cpu" in rows["device"]["text"]


@pytest.mark.parametrize(
    ("name", "said"), [("tensorbord", 'unknown tracker "tensorbord"'), ("os.path", "asks to run the code")]
)
def test_trackers_that_a_run_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    (tmp_path / "my.toml").write_text(f'trackers = ["{name}"]\n')
    code, rows = examined(capsys, "--config", "my.toml", "device=cpu")
    assert (code, rows["trackers"]["state"]) == (1, "fail")
    assert said in rows["trackers"]["text"]


def test_a_config_that_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", "cifar10"]) == 2
    assert 'did you mean "cifar100"' in capsys.readouterr().err
    assert main(["doctor", "--config", "cifar100", "method.margin=7"]) == 2
    assert "margin" in capsys.readouterr().err


SIZES = Sizes((5000,) * 10, (1000,) * 10, tuple(range(10, 101, 10)), 18)


def test_a_card_that_is_too_small_gets_a_batch_that_fits() -> None:
    config, model = resolve(load_config(["cifar100"])), costs("ViT-B-16:openai")
    assert model is not None
    wanted = estimate.device_bytes(config, model, SIZES)
    assert 10 * GIB < wanted < 40 * GIB
    assert _needs.device_memory(config, model, SIZES, ("a card", 80 * GIB)).state == "ok"
    assert _needs.device_memory(config, model, SIZES, ("a card", int(1.02 * wanted))).state == "warn"
    found = _needs.device_memory(config, model, SIZES, ("a card", 16 * GIB))
    assert (found.state, found.remedy) == ("fail", "use train.batch_size=128")
    found = _needs.device_memory(config, model, SIZES, ("a card", 1 * GIB))
    assert found.remedy == "use a smaller model, or a GPU with more memory"
    assert _needs.device_memory(config, model, SIZES, ("xpu", None)).state == "warn"


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    config, model = resolve(load_config(["checkpoint.keep=1000000000"])), costs("lite")
    assert model is not None
    (found,) = _needs.disk(config, model, SIZES)
    assert (found.state, found.remedy) == ("fail", "make room, or use out=PATH on another disk")
    assert str(tmp_path) in found.text


def test_pictures_that_do_not_fit_into_memory() -> None:
    sizes = Sizes((10**9,), (1,), (10,))
    config = resolve(load_config(["cifar100", "loader.cache_mb=1000000000"]))
    (found,) = _needs.cache_memory(config, sizes)
    assert (found.state, found.remedy.partition(" to ")[0]) == ("warn", "use loader.cache_mb=0")
    assert not [*_needs.cache_memory(resolve(load_config(["cifar100"])), sizes)]


def test_the_rate_of_products_is_plausible() -> None:
    assert 1e8 < pace.products("cpu", "fp32", 128) < 1e15
