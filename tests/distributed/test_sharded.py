"""Towers whose weights the processes share out: that they do, and how such a run ends."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

import pytest

from everclip.distributed import collectives
from everclip.models import zoo
from tests.distributed.processes import finish, start, work
from tests.distributed.test_ends import OFTEN, command, errors, wait_for, words
from tests.distributed.test_every_method import SHARD
from tests.distributed.test_exact import same
from tests.methods.stages import TIMM, clip_with
from tests.running import run, run_for


@pytest.mark.slow
def test_each_process_has_its_part_alone(toy: str, photos: str) -> None:
    (found,) = work(3, ["parts", toy, f"data={photos}", "method=clip"])
    whole = sum(parameter.numel() for parameter in zoo.load(toy).model.parameters())
    for kind, times in (("weights", 1), ("gradients", 1), ("moments", 2)):
        for process in found:
            # what stands around the blocks is everywhere
            assert process[kind] < 0.45 * whole * times, kind
        assert sum(process[kind] for process in found) >= whole * times * 0.9, kind


@pytest.mark.slow
def test_towers_of_many_makes() -> None:
    (found,) = work(2, ["towers"])
    assert len(found) == 8
    assert not any(found.values()), found


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_every_process_has_as_many_chunks(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "size", lambda: processes)
    for count, most in itertools.product(range(processes, 40), range(2, 9)):
        found = []
        for rank in range(processes):
            monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
            found.append([[*range(count)[part]] for part in collectives.chunks(count, most)])
            assert [*itertools.chain(*found[-1])] == [*range(count)[collectives.own(count)]]
            assert all(0 < len(chunk) <= most for chunk in found[-1])
        assert len({len(chunks) for chunks in found}) == 1, (count, most)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_one_line(tmp_path: Path, toy: str, photos: str) -> None:
    out = tmp_path / "run"
    processes = start(2, command(*words(toy, photos, OFTEN, SHARD, f"out={out}")))
    wait_for(out / "metrics.jsonl", 8)
    processes[1].kill()
    ended = finish(processes, 60)
    assert [code for code, _, _ in ended] == [1, -signal.SIGKILL], ended
    (line,) = errors([text for _, _, text in ended])
    assert "another process of this run has ended" in line


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformer", "convolutions"])
def test_it_goes_on_with_one_process_and_back(tmp_path: Path, toy: str, photos: str, kind: str) -> None:
    """Weights of convolutions lie otherwise in memory than their parts, and fused AdamW does not look."""
    model = toy
    if kind == "convolutions":
        model = clip_with(tmp_path / "conv", **TIMM | {"timm_model_name": "test_resnet"})
    tokens, out = words(model, photos), tmp_path / "two"
    processes = start(2, command(*tokens, SHARD, f"out={out}"))
    wait_for(out / "metrics.jsonl", 5)
    processes[0].send_signal(signal.SIGTERM)
    assert [code for code, _, _ in finish(processes)] == [75, 75]
    assert [*(out / "checkpoints").glob("task-*-step-*")], "it was saved within the task"
    assert run_for(out, 7, *tokens) is None, "one process has gone on, and was stopped"
    again = finish(start(2, command(*tokens, SHARD, f"out={out}")))
    assert [code for code, _, _ in again] == [0, 0], again
    results = json.loads((out / "results.json").read_text())
    same(run(tmp_path / "one", *tokens), results, tmp_path / "one", out, keys=10)
