"""everclip search: exact over many shards, for the encoder that the vectors are of and for no other."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import everclip
from everclip.errors import UserError
from everclip.index import search
from everclip.index.encoder import fingerprint, open_encoder
from everclip.index.folder import Listed, Table, Vectors, append, create, read
from everclip.index.maps import FILE, Map
from everclip.index.queries import fitting
from everclip.seeding import generator
from tests.cli.conftest import Say
from tests.index.test_embed import cut, gone
from tests.toy import toy_clip


def filled(path: Path, rows: np.ndarray, each: int = 30, dtype: str = "float32") -> Vectors:
    """A folder of given embeddings, whose ids are their numbers."""
    made = create(path, Table("image", "none", None, "0" * 64, rows.shape[1], dtype))  # pyright: ignore[reportArgumentType]
    for start in range(0, len(rows), each):
        part = rows[start : start + each]
        made = append(made, part, Listed([str(start + row) for row in range(len(part))], {}, []))
    return read(path, whole=True)


def unit(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    """Random unit vectors."""
    found = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where faiss is not installed."""
    monkeypatch.setattr(search, "find_spec", lambda name: None)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("each", "k", "dtype"),
    [(30, 10, "float32"), (7, 10, "float16"), (200, 1, "float32"), (30, 500, "float32")],
)
def test_it_finds_what_a_whole_sort_finds(tmp_path: Path, each: int, k: int, dtype: str) -> None:
    # whole numbers, whose products are exact: many are equal, and the first row goes before
    rows, queries = np.rint(4 * unit(100)), np.rint(4 * unit(5, seed=1))
    vectors = filled(tmp_path / "v", rows, each, dtype)
    cosines = queries @ rows.T
    wanted = np.lexsort((np.broadcast_to(np.arange(100), cosines.shape), -cosines), axis=1)[:, :k]
    found, places = search.nearest(vectors, queries, k)
    assert places.tolist() == wanted.tolist()
    np.testing.assert_allclose(found, np.take_along_axis(cosines, wanted, 1), atol=1e-6)
    assert vectors.names(places[0].tolist()) == [str(row) for row in wanted[0]]
    assert search.nearest(vectors, queries[:0], 3)[0].shape == (0, 3)


FAISS = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")


@FAISS
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("k", [1, 60])
def test_nor_does_faiss_pass_by_what_is_not_finite(tmp_path: Path, odd: float, k: int) -> None:
    rows = unit(60)
    rows[40, 3] = odd
    with pytest.raises(UserError, match="an embedding from row 30 on is not finite"):
        search.nearest(filled(tmp_path / "v", rows), unit(2, seed=1), k)


@FAISS
def test_faiss_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = filled(tmp_path / "v", unit(100)), unit(5, seed=1)
    by_faiss = search.nearest(vectors, queries, 10)
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    plain = search.nearest(vectors, queries, 10)
    np.testing.assert_allclose(by_faiss[0], plain[0], atol=1e-6)
    assert by_faiss[1].tolist() == plain[1].tolist()


@pytest.mark.usefixtures("small")
def test_pictures_are_found_by_pictures_and_texts(toy: str, pictures: Path, tmp_path: Path, say: Say) -> None:
    assert say("embed", toy, pictures, "-o", tmp_path / "v")[0] == 0
    one = str(pictures / "00.png")
    code, out, err = say("search", tmp_path / "v", one, "a red bicycle", "-k", "3", "--json")
    assert (code, err) == (0, "")
    by_picture, by_text = map(json.loads, out.splitlines())
    assert (by_picture["query"], by_picture["kind"], by_text["kind"]) == (one, "image", "text")
    assert by_picture["found"][0] == {"id": one, "cosine": pytest.approx(1, abs=1e-5)}
    learner = everclip.Learner(toy, progress=False)
    ids = [name for shard in read(tmp_path / "v").shards for name in read(tmp_path / "v").listed(shard).ids]
    cosines = learner.embed(ids) @ learner.embed(texts=["a red bicycle"])[0]
    assert [hit["id"] for hit in by_text["found"]] == [ids[row] for row in np.argsort(-cosines)[:3]]
    code, out, _ = say("search", tmp_path / "v", "a red bicycle")
    assert [line.split("\t")[1] for line in out.splitlines()[:3]] == [hit["id"] for hit in by_text["found"]]
    assert (code, len(out.splitlines())) == (0, 10)


def test_a_query_of_another_encoder_is_refused(toy: str, pictures: Path, tmp_path: Path, say: Say) -> None:
    assert say("embed", toy, pictures, "-o", tmp_path / "v")[0] == 0
    other = f"local-dir:{toy_clip(tmp_path, seed=1)}"
    code, out, err = say("search", tmp_path / "v", "a dog", "--model", other)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"is not the encoder of {tmp_path / 'v'} (" in err
    assert f"use the model that made them, or embed again with everclip embed {other}" in err
    everclip.Learner(toy, progress=False)
    table = json.loads((tmp_path / "v" / "table.json").read_text())
    assert say("search", tmp_path / "v", "a dog", "--model", table["model"])[0] == 0


def test_a_strangers_map_of_another_width_is_refused(tmp_path: Path) -> None:
    """It and the folder fit each other and the encoder's fingerprint, but not what the encoder gives."""
    model, vectors = toy_clip(tmp_path), filled(tmp_path / "v", unit(3, 4))
    clip = open_encoder(f"local-dir:{model}")
    Map(torch.eye(4), torch.zeros(4), fingerprint(clip), vectors.table.fingerprint, "k").save(model / FILE)
    line = r"index.safetensors takes embeddings of 4 numbers, and .* gives 16: use another copy"
    with pytest.raises(UserError, match=line):
        fitting(vectors, clip, str(model))


def test_bad_input_is_one_line(toy: str, pictures: Path, tmp_path: Path, say: Say) -> None:
    moved = toy_clip(tmp_path, seed=1)
    (tmp_path / "texts.txt").write_text("a dog\n")
    assert say("embed", moved, "--text", tmp_path / "texts.txt", "-o", tmp_path / "t")[0] == 0
    moved.rename(tmp_path / "elsewhere")
    for words, line in (
        ((tmp_path / "nowhere", "a dog"), "does not exist: write it with everclip embed MODEL DATA -o"),
        ((pictures, "a dog"), "has no table.json: write it with everclip embed MODEL DATA -o"),
        ((tmp_path / "t", "lost.jpg"), "lost.jpg does not exist: give an existing picture, or a text"),
        ((tmp_path / "t", "a dog", "-k", "0"), "-k is 0: use a whole number from 1 to 1000000"),
        ((tmp_path / "t",), "everclip search needs a query"),
        ((tmp_path / "t", "--modle", toy, "a dog"), "Unknown option: --modle. Did you mean --model?"),
        ((tmp_path / "t", "--", "--lost.jpg"), "--lost.jpg does not exist"),
        (
            (tmp_path / "t", "a dog"),
            f"or give the model of {tmp_path / 't'} as --model MODEL",
        ),
        (
            (tmp_path / "t", pictures / "03b.png", "--model", tmp_path / "elsewhere"),
            "cannot be read (no JPEG",
        ),
    ):
        code, out, err = say("search", *words)
        assert (code, out, line in err, err.count("\n")) == (2, "", True, 1), err
    assert say("search", tmp_path / "t", "a" * 5000, "--model", tmp_path / "elsewhere")[0] == 0


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    """Found by its size, its form, or what is in it."""
    vectors, query = filled(tmp_path / "v", unit(100)), unit(1)
    file = vectors.path / "000001.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-32] + np.full(8, np.nan, dtype=np.float32).tobytes())
    with pytest.raises(UserError, match="not finite"):
        search.nearest(read(vectors.path), query, 3)
    file.write_bytes(b"\0" * len(whole))
    with pytest.raises(UserError, match=r"000001.npy is broken"):
        read(vectors.path)
    np.save(file, np.zeros((30, 8), dtype=">f4"))
    assert file.stat().st_size == len(whole)
    with pytest.raises(UserError, match=r"it holds no float32 \[n, 8\]"):
        read(vectors.path)
    file.write_bytes(whole)
    assert len(read(vectors.path)) == 100
    ids = vectors.path / "000001.json"
    ids.write_text(ids.read_text().replace("31", "13"))
    with pytest.raises(UserError, match=r"000001.json is not what was written, or was replaced since"):
        read(vectors.path).names([31])
    cut(vectors)
    with pytest.raises(UserError, match=r"000000.npy is missing, or does not have the 1,088 bytes"):
        read(vectors.path)
    gone(vectors)
    with pytest.raises(UserError, match=r"00000[01].npy is missing"):
        read(vectors.path)
    with pytest.raises(UserError, match="the query has 5 numbers"):
        search.nearest(vectors, unit(1, 5), 3)


def test_a_strangers_folder_is_data(tmp_path: Path) -> None:
    """Random changes to each small file: read as it is, or refused in a line; no object is unpickled."""
    random, said = generator(0, "a stranger's vectors"), []
    vectors = filled(tmp_path / "v", unit(20), each=10)
    for turn in range(200):
        file = vectors.path / ("table.json", "000000.json", "000001.npy", "manifest.json")[turn % 4]
        whole = file.read_bytes()
        content = bytearray(whole)
        content[int(random.integers(min(len(content), 120)))] = int(random.integers(256))
        file.write_bytes(content)
        try:
            changed = read(vectors.path)
            search.nearest(changed, unit(1), 3)
            changed.names(range(len(changed)))
        except UserError as error:
            said.append(str(error))
        file.write_bytes(whole)
    assert len(said) > 100
    assert not [line for line in said if "\n" in line]
