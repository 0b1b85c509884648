"""No random weights are drawn for a model whose weights are read next."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from everclip.models import zoo
from everclip.models.savable import WEIGHTS_FILE
from everclip.models.unset import Unset
from tests.toy import toy_clip


def test_what_would_be_drawn_is_nan_and_the_random_state_stays() -> None:
    before = torch.get_rng_state()
    with Unset():
        made = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(3, 4, 3), nn.Embedding(5, 2), nn.LayerNorm(3))
        weight = nn.init.trunc_normal_(torch.zeros(7))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(made[place].get_parameter("weight").isnan().all() for place in range(3))
    assert made[3].get_parameter("weight").eq(1).all(), "constants are set as ever"
    assert weight.isnan().all()
    assert not nn.Linear(3, 4).weight.isnan().any(), "and none is when it is closed"


def test_a_model_is_loaded_without_a_draw_and_has_its_files_weights(tmp_path: Path) -> None:
    folder = toy_clip(tmp_path)
    source, options = zoo._resolve(f"local-dir:{folder}")
    before = torch.get_rng_state()
    clip = zoo._create("toy", source, options, None)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in load_file(folder / WEIGHTS_FILE).items():
        assert torch.equal(clip.model.state_dict()[name], value), name


def test_lite_has_its_files_weights_all_of_them() -> None:
    clip = zoo.load("lite", 96)
    saved = load_file(Path(zoo._resolve("lite")[0].removeprefix("local-dir:")) / WEIGHTS_FILE)
    state = clip.model.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], value) for name, value in saved.items())
    assert all(value.isfinite().all() for value in state.values())
