"""der_expand and memo in whole runs: their extractors are kept, with any choice of what is tuned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from everclip.errors import UserError
from everclip.models import zoo
from everclip.training.restore import open_run
from tests.methods.stages import TIMM, batch, clip_with, outputs, state
from tests.running import run

BOTH = pytest.mark.parametrize("name", ["der_expand", "memo"])


@BOTH
def test_a_run_keeps_its_extractors(name: str, tmp_path: Path, model: str, photos: str) -> None:
    """From the checkpoints of a real run: each stage's extractor is in all later ones, bit for bit."""
    run(tmp_path / "run", f"data={photos}", f"model={model}", f"method={name}", "checkpoint.keep=3")
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    saved = [torch.load(folder / "state.pt", weights_only=True)["method"] for folder in folders]
    plan, clip, _ = open_run(tmp_path / "run")
    older: nn.ModuleList = plan.method.older  # pyright: ignore[reportAssignmentType]
    assert len(older) == 2
    first = {key: value for key, value in saved[1].items() if key.startswith("older.")}
    assert first
    assert all(torch.equal(value, saved[2][key]) for key, value in first.items())
    for stage, part in enumerate(older):
        own = state(zoo.load(f"local-dir:{folders[stage]}").model.visual)
        for key, value in state(part).items():
            assert torch.equal(value, own[key.removeprefix("tower.")])
    if name == "der_expand":
        images = clip.normalise(batch([0] * 4).images)
        for stage, said in enumerate(outputs(clip, older, images)):
            with torch.no_grad():
                assert torch.equal(said, zoo.load(f"local-dir:{folders[stage]}").encode_image(images))


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("tune", ["lora:2", "top:1", "head"])
def test_partial_tuning(name: str, tune: str, tmp_path: Path, model: str, photos: str) -> None:
    tokens = (f"data={photos}", f"model={model}", f"method={name}", f"tune={tune}", "scenario.tasks=2")
    results = run(tmp_path / "run", *tokens)
    plan, _, _ = open_run(tmp_path / "run")
    assert len(plan.method.older) == 1  # pyright: ignore[reportArgumentType]
    assert 0 <= results["last"] <= 1


def test_a_tower_that_cannot_be_cut_is_refused(tmp_path: Path, toy: str, photos: str) -> None:
    nfnet = clip_with(tmp_path / "model", **TIMM, timm_model_name="test_nfnet")
    with pytest.raises(UserError, match="use method=der_expand"):
        run(tmp_path / "run", f"data={photos}", f"model={nfnet}", "method=memo")
    with pytest.raises(UserError, match="2 blocks of the image tower's 2 leaves none to share"):
        run(tmp_path / "other", f"data={photos}", f"model={toy}", "method=memo", "method.blocks=2")
