"""A model that knows other classes learns one more class from any source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from everclip import data
from everclip.data.formats.folders import ADDITION
from everclip.errors import UserError
from tests.cli.conftest import Say, say
from tests.data.lists import listed, photos
from tests.pictures import domain_folder
from tests.tars import samples, shard

__all__ = ["say"]


def csv(root: Path) -> str:
    return f"csv:{listed(root / 'list.csv', 'path,label', photos(root, 6, 1))}"


def domains(root: Path) -> str:
    return f"domainfolder:{domain_folder(root, 2, 1)}"


def features(root: Path) -> str:
    np.savez(root / "one.npz", features=np.eye(6, dtype=np.float32), labels=["red"] * 6)
    return f"features:{root / 'one.npz'}"


def hugging(root: Path) -> str:
    from tests.data.hf_sets import saved, table

    return f"hf:{saved(root / 'set', train=table(6, ['red']))}"


def shards(root: Path) -> str:
    shard(root / "a.tar", samples(6, 1, kind="txt"))
    return f"webdataset:{root / 'a.tar'}?train=6"


@pytest.mark.parametrize("make", [csv, domains, features, hugging, shards])
def test_one_class_is_enough(tmp_path: Path, hf_cache: Path, make: Callable[[Path], str]) -> None:
    spec = make(tmp_path)
    found = data.load(spec, ADDITION)
    assert found.class_names == ("red",)
    with pytest.raises(UserError, match="a classifier needs two"):
        data.load(spec)


def test_one_class_is_looked_through(tmp_path: Path, say: Say) -> None:
    code, out, err = say("data", "check", csv(tmp_path), "--exact")
    assert (code, "1 classes, 6 training and 0 test pictures" in out) == (0, True), err
