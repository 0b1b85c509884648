"""Every method with two processes, which share out the towers or do not, and the ways of training that change what a
process does; then four processes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everclip import plugins
from everclip.training.plan import Plan
from tests.distributed.processes import work
from tests.distributed.test_exact import same
from tests.running import WIDE, configured, run

pytestmark = pytest.mark.slow

WORDS = ["scenario.tasks=2"]
SHARD = "distributed.shard=true"
MORE = [
    "gdro cache.trunk=on tune=top:1 cache.views=3",
    "gdro train.accumulate=2 references=all",
    "gdro train.precision=bf16",
    "gdro tune=lora:2 train.checkpointing=true center=true",
    "gdro method.dro=sagawa method.groups=class_origin method.sampling=class_balanced",
    "gcl method.negatives=multi_positive method.temperature=learnable",
    "gcl distributed.gather=light method.temperature=learnable",
    "cclis memory.policy=method",
    "cassle method.objective=sogclr method.probe=mixed",
    "cmoa method.dropout=0",
    "finetune memory.policy=herding train.nonfinite=skip method.head=linear",
    "multilayer_lda method.adapt=clip memory.per_class=5",  # a twin that goes on training
]
SHARDED = ["gdro train.checkpointing=true center=true", "gcl tune=top:1", "gcl tune=image"]
"""More that share out their towers."""

WITHIN = {
    # products of fewer rows are rounded otherwise
    "gdro train.precision=bf16": 2e-2,
    # a bias before a batch norm has no gradient but rounding, which Adam makes a step of
    "cassle": 2e-3,
    "cassle method.objective=sogclr method.probe=mixed": 2e-3,
    # a bias of an attention's keys has no gradient but rounding
    "clap4clip": 1e-2,
    # a head at zero gives the tower a gradient near zero at first, of which Adam makes a whole step
    "icarl train.lr=1e-3": 2e-2,
}
LOSSES = {"clap4clip": 1e-5, "icarl train.lr=1e-3": 1e-4}
"""The bounds for losses and gradients, which such steps do not move, or hardly: with half the rate they are far off."""
HEADS: dict[str, float] = dict.fromkeys(
    (
        "cassle",
        "cassle method.objective=sogclr method.probe=mixed",
        "cclis",
        "cclis memory.policy=method",
        "co2l",
    ),
    5e-2,
) | {"der_expand": 5e-4}  # its head is small: 0.03 at most here
"""A probe ends where its loss stops falling; where that is, rounding moves."""

PARTS = 3
"""Tests that share the forms, so that no core is left with the longest test of all at the end."""


def forms(photos: str, toy: str) -> list[str]:
    """Every method that processes can share, by its defaults, then the others."""
    found = []
    for name in plugins.names("methods"):
        if Plan.of(configured(*words(name, toy, photos))).method.capabilities.shares:
            more = " method.width=64" if f"method={name}" in WIDE else ""
            more += (
                " train.lr=1e-3" if name == "icarl" else ""
            )  # by its own rate it learns less than rounding does
            found.append(f"{name}{more}")
    return [*found, *MORE]


def words(form: str, toy: str, photos: str) -> list[str]:
    name, *options = form.split()
    return [f"data={photos}", f"model={toy}", f"method={name}", *WORDS, *options]


def shards(form: str, toy: str, photos: str) -> bool:
    """Whether processes can share out the towers of a form."""
    if any(word in form for word in ("gather=light", "accumulate", "lora")):
        return False
    return Plan.of(configured(*words(form, toy, photos))).method.capabilities.shards


@pytest.mark.parametrize("part", range(PARTS))
def test_every_method(tmp_path: Path, toy: str, photos: str, part: int) -> None:
    """Each form is trained by one process, by two, and by two that share out its towers, where they can."""
    whole = forms(photos, toy)
    assert len(whole) - len(MORE) >= len(plugins.names("methods")) - 5, (
        "zscl, cmoa, spu, engine, moe_adapters"
    )
    shared = [form for form in [*whole, *SHARDED] if shards(form, toy, photos)]
    assert len(shared) > 25
    mine = list(dict.fromkeys([*whole, *shared]))[part::PARTS]
    whole, shared = ([form for form in each if form in mine] for each in (whole, shared))
    ways = [*((form, "two", 1.0) for form in whole), *((form, "shard", 10.0) for form in shared)]
    jobs = [
        ["run", str(tmp_path / way / form), *words(form, toy, photos), *([SHARD] if way == "shard" else [])]
        for form, way, _ in ways
    ]
    alone = {form: run(tmp_path / "one" / form, *words(form, toy, photos)) for form in mine}
    different = []
    for (form, way, keys), found in zip(ways, work(2, *jobs), strict=True):
        folders, within = (tmp_path / "one" / form, tmp_path / way / form), WITHIN.get(form, 1e-5)
        try:
            same(alone[form], found, *folders, within, keys, HEADS.get(form), LOSSES.get(form))
        except AssertionError as error:
            different.append(f"{form}, {way}: {error}")
    assert not different, "\n".join(different)


def test_four_processes(tmp_path: Path, toy: str) -> None:
    """Test images are several batches here, which the processes share."""
    tokens = ["data=emoji", f"model={toy}", "method=gdro", "scenario.tasks=[20,80]", "train.batch_size=42"]
    (shared,) = work(4, ["run", str(tmp_path / "four"), *tokens])
    same(run(tmp_path / "one", *tokens), shared, tmp_path / "one", tmp_path / "four")
    predictions = [np.load(tmp_path / name / "predictions.npz") for name in ("one", "four")]
    assert predictions[0]["id"].tolist() == predictions[1]["id"].tolist()
    assert len(set(predictions[0]["id"].tolist())) > 4 * 64
