"""What becomes of an index of embeddings when the model is updated: kept, mapped, made anew, or at least told."""

from __future__ import annotations

import copy
import html
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from everclip.errors import UserError
from everclip.index.encoder import fingerprint, open_encoder
from everclip.index.folder import Listed, Vectors, append, create, read
from everclip.index.maps import FILE
from everclip.index.queries import asker
from everclip.index.search import nearest
from everclip.system.checkpoint import amend
from everclip.updating import core
from everclip.updating.candidates import TRAINED
from everclip.updating.classifiers import text_form
from everclip.updating.core import Options, prepare
from everclip.updating.index import Asked, Guard, asked, recall
from tests.cli.conftest import Say, say
from tests.learned import coloured
from tests.toy import toy_clip
from tests.versions import COLD, ENDS, WARM, begin, colours, first, load, updated, written

__all__ = ["say"]
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def world(toy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version that knows two colours, embeddings by it, and the next version, whose queries are mapped to them."""
    from everclip.cli.app import main

    root = tmp_path_factory.mktemp("index")
    state = begin(toy)
    written(first(toy, root), state, root / "v1")
    coloured(root / "photos", WARM | COLD | ENDS, 10, 5)
    coloured(root / "cold", COLD, 24)
    coloured(root / "test", WARM | COLD, 6, 9)
    assert main(["embed", str(root / "v1"), str(root / "photos"), "-o", str(root / "vectors")]) == 0
    adapt = ("--index", "adapt", "--vectors", root / "vectors", "--method", "trained")
    assert main([str(word) for word in words(root, root / "v2", *adapt)]) == 0
    return root


def files(folder: Path) -> Files:
    """All files of a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def words(world: Path, out: Path, *more: object) -> tuple[object, ...]:
    """The command that teaches two more colours."""
    data = ("--add", f"imagefolder:{world / 'cold'}", "--test", f"imagefolder:{world / 'test'}")
    return "update", world / "v1", *data, "--max-drop", "100", "--exemplars", "4", "-o", out, *more


def test_keep_allows_what_leaves_the_encoder_as_it_is(world: Path, tmp_path: Path, say: Say) -> None:
    vectors = world / "vectors"
    before = files(vectors)
    code, out, _ = say(*words(world, tmp_path / "v2", "--index", "keep", "--vectors", vectors))
    assert (code, "index valid: existing embeddings can be searched as before" in out) == (0, True)
    verdict = json.loads((tmp_path / "v2" / "verdict.json").read_text())
    assert verdict["index"]["valid"]
    assert verdict["index"]["before"] == verdict["index"]["after"] == read(vectors).table.fingerprint
    assert {row["name"] for row in verdict["candidates"]}.isdisjoint(TRAINED)
    assert any("--index keep: nothing is trained" in line for line in verdict["rule"])
    assert "index valid" in (tmp_path / "v2" / "verdict.html").read_text()
    assert say("search", vectors, "a dog", "--model", tmp_path / "v2")[0] == 0
    assert files(vectors) == before


@pytest.mark.slow
def test_without_a_word_the_owner_is_told(world: Path, tmp_path: Path, say: Say) -> None:
    code, out, _ = say(*words(world, tmp_path / "v2", "--method", "trained"))
    assert (code, "so embeddings that" in out, "no longer fit; --index keep" in out) == (0, True, True)
    told = json.loads((tmp_path / "v2" / "verdict.json").read_text())["index"]
    assert (told["valid"], told["mode"], told["count"]) == (False, None, None)
    assert told["after"] == fingerprint(open_encoder(str(tmp_path / "v2"))) != told["before"]
    code, _, err = say("search", world / "vectors", "a dog", "--model", tmp_path / "v2")
    assert (code, "is not the encoder of" in err) == (2, True)


def test_adapt_lets_new_queries_search_old_embeddings(world: Path, say: Say) -> None:
    told = json.loads((world / "v2" / "verdict.json").read_text())["index"]
    assert told["words"] in html.unescape((world / "v2" / "verdict.html").read_text())
    assert told["words"] == (
        f"Recall@10 of old vectors with new queries {told['recall']:.0%}, with the map {told['recall_mapped']:.0%};"
        " rebuilding: less than a minute for 60 images on this machine"
    )
    assert (told["valid"], told["count"], told["queries"]) == (False, 60, 24)
    assert told["recall_mapped"] >= told["recall"]
    # the numbers, by another way: each picture searched with as a user would
    there, asking = read(world / "vectors"), asker(read(world / "vectors"), str(world / "v2"))
    before, pictures = asker(there), sorted(map(str, (world / "test").rglob("*.png")))
    old, new = (np.concatenate([one.embed(picture) for picture in pictures]) for one in (before, asking))
    again = recall(nearest(there, new, 10)[1], nearest(there, old, 10)[1])
    assert again == pytest.approx(told["recall_mapped"], abs=0.02)
    code, out, _ = say("search", world / "vectors", "a dog", "--model", world / "v2")
    assert (code, len(out.splitlines())) == (0, 10)


def test_the_map_undoes_a_turn_of_the_whole_space(world: Path) -> None:
    """An encoder whose two towers end in a rotation finds nothing of what was found before, and all with the map."""
    state, vectors = begin(str(world / "v1")), read(world / "vectors")
    options = Options(method="means", unmeasured=True)
    pictures, _, _ = prepare(state, load(f"imagefolder:{world / 'cold'}", state), options)
    turned, turn = copy.deepcopy(state.frozen), torch.linalg.qr(torch.randn(16, 16))[0]
    with torch.no_grad():
        turned.model.visual.proj.copy_(turned.model.visual.proj @ turn)
        turned.model.text_projection.copy_(turned.model.text_projection @ turn)
    after = replace(state, model=text_form("turned", state.known, turned, "finetune"))
    done, told = Guard(state, Asked("adapt", vectors)).judge(after, pictures, None)
    assert done.map is not None
    assert told["recall"] < 0.5
    assert told["recall_mapped"] > 0.85
    left, _ = Guard(state, Asked("rebuild", vectors)).judge(after, pictures, None)
    assert left.map is None


@pytest.mark.slow
def test_a_rollback_gives_back_the_map(world: Path, tmp_path: Path, say: Say) -> None:
    """From a version with another map, and from one with a map to one without."""
    shutil.copytree(world / "v2", tmp_path / "v2")
    state, ends = begin(str(tmp_path / "v2")), colours(tmp_path / "ends", ENDS, 24)
    outcome = updated(state, ends, method="trained", index=Asked("adapt", read(world / "vectors")))
    after = written(outcome, state, tmp_path / "v3")
    assert state.map is not None
    assert after.map is not None
    assert after.map.to == state.map.to == read(world / "vectors").table.fingerprint
    assert after.map.of == fingerprint(after.encoder) != state.map.of
    whole = {
        name: content for name, content in files(tmp_path / "v2").items() if not name.startswith("before/")
    }
    assert say("rollback", tmp_path / "v3")[0] == 0
    given_back = files(tmp_path / "v3")
    assert given_back.pop("manifest.json")
    assert given_back == {name: content for name, content in whole.items() if name != "manifest.json"}
    assert say("search", world / "vectors", "a dog", "--model", tmp_path / "v3")[0] == 0


def test_a_rollback_to_a_version_without_a_map_has_none(world: Path, tmp_path: Path, say: Say) -> None:
    shutil.copytree(world / "v2", tmp_path / "v2")
    assert (tmp_path / "v2" / FILE).exists()
    assert say("rollback", tmp_path / "v2")[0] == 0
    assert not (tmp_path / "v2" / FILE).exists()
    assert (
        say("search", world / "vectors", "a dog", "--model", tmp_path / "v2")[0] == 0
    )  # by the old encoder again


@pytest.mark.slow
def test_a_map_stays_where_the_encoder_does(world: Path, tmp_path: Path) -> None:
    state, ends = begin(str(world / "v2")), colours(tmp_path / "ends", ENDS)
    assert state.map is not None
    outcome = updated(state, ends, method="nothing", index=Asked("keep", read(world / "vectors")))
    assert outcome.state.map is state.map
    assert outcome.verdict["index"]["words"].endswith("can be searched as before through the map")
    unasked = updated(state, ends, method="nothing")
    assert unasked.state.map is state.map
    back = updated(
        state, ends, method="ridge", index=Asked("keep", read(world / "vectors"))
    )  # of the first encoder
    assert (back.verdict["index"]["valid"], back.state.map) == (True, None)
    with pytest.raises(UserError, match="cannot be used here"):
        updated(
            state, ends, method="ridge", index=Asked("keep", None)
        )  # embeddings of v2, which it would change


@pytest.mark.slow
def test_rebuild_embeds_again_beside_the_old_folder(world: Path, tmp_path: Path, say: Say) -> None:
    coloured(tmp_path / "photos", WARM | COLD, 5, 5)
    vectors = tmp_path / "vectors"
    assert say("embed", world / "v1", tmp_path / "photos", "-o", vectors, "--fp16")[0] == 0
    before = files(vectors)
    rebuild = ("--index", "rebuild", "--vectors", vectors, "--method", "trained")
    code, out, err = say(*words(world, tmp_path / "v2", *rebuild))
    assert code == 0
    assert f" for 20 images on this machine, into {vectors}.v2" in out
    assert f"{vectors}.v2: 20 embeddings by {tmp_path / 'v2'}, 0 not readable; {vectors} is unchanged" in err
    made = read(tmp_path / "vectors.v2", whole=True)
    assert made.names(range(20)) == read(vectors).names(range(20))
    assert (made.table.dtype, made.table.model) == ("float16", str(tmp_path / "v2"))
    assert made.table.fingerprint == fingerprint(open_encoder(str(tmp_path / "v2")))
    assert say("search", f"{vectors}.v2", "a dog")[0] == 0
    assert files(vectors) == before
    code, _, err = say(*words(world, tmp_path / "v3", *rebuild))
    assert (code, _besides(err)) == (2, 1)
    assert f"error: {vectors}.v2 exists: give a new or an empty folder\n" in err
    (tmp_path / "vectors.v2").rename(tmp_path / "mine")
    (tmp_path / "photos").rename(tmp_path / "gone")
    code, _, err = say(*words(world, tmp_path / "v3", *rebuild))
    assert (code, "photos does not exist" in err, (tmp_path / "v3").exists()) == (2, True, False)


def test_what_does_not_go_together_is_one_line(world: Path, tmp_path: Path, say: Say) -> None:
    other = toy_clip(tmp_path, seed=1)
    assert say("embed", other, world / "photos", "-o", tmp_path / "other")[0] == 0
    before = files(world / "v1")
    for more, line in (
        (("--vectors", world / "vectors"), "needs --index: use --index keep, adapt or rebuild"),
        (("--index", "adopt"), '--index is "adopt"; did you mean "adapt"?'),
        (("--index", "adapt"), "--index adapt needs --vectors: give the folder that everclip embed wrote"),
        (("--index", "keep", "--method", "trained"), "leave one of them out"),
        (("--index", "keep", "--vectors", tmp_path / "no"), "does not exist: write it with everclip embed"),
        (("--index", "adapt", "--vectors", tmp_path / "other"), "embed with it, or use --index rebuild"),
    ):
        code, out, err = say(*words(world, tmp_path / "v2", *more))
        assert (code, out, line in err, _besides(err)) == (2, "", True, 1), err
        assert not (tmp_path / "v2").exists()
    assert files(world / "v1") == before


def test_a_stale_index_can_be_rebuilt(world: Path, tmp_path: Path, say: Say) -> None:
    """Of an encoder that the version knows nothing of there is no recall, only the time."""
    other = toy_clip(tmp_path, seed=1)
    assert say("embed", other, world / "photos", "-o", tmp_path / "other")[0] == 0
    rebuild = ("--index", "rebuild", "--vectors", tmp_path / "other", "--method", "means")
    code, out, _ = say(*words(world, tmp_path / "v2", *rebuild))
    assert (code, "\nrebuilding: less than a minute for 60 images on this machine, into " in out) == (
        0,
        True,
    )
    assert len(read(tmp_path / "other.v2")) == 60


def test_a_picture_that_has_moved_is_missed_before_anything_is_trained(
    world: Path, tmp_path: Path, say: Say
) -> None:
    photos = tmp_path / "photos"
    coloured(photos, WARM, 3, 5)
    assert say("embed", world / "v1", photos, "-o", tmp_path / "vectors")[0] == 0
    (photos / "red" / "1.png").rename(photos / "red" / "moved.png")
    (photos / "yellow" / "0.png").unlink()
    rebuild = ("--index", "rebuild", "--vectors", tmp_path / "vectors")
    code, out, err = say(*words(world, tmp_path / "v2", *rebuild))
    assert (code, out, _besides(err)) == (2, "", 1)
    assert f"{photos / 'red' / '1.png'} is no longer where it was embedded from (2 of 6 pictures of" in err
    assert not (tmp_path / "v2").exists()


def test_a_refused_update_rebuilds_nothing(
    world: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = toy_clip(tmp_path, seed=1)
    assert say("embed", other, world / "photos", "-o", tmp_path / "other")[0] == 0
    refused = {"passed": False, "max_drop": 0.0, "drop": 9.0, "words": "old classes lose", "unmeasured": []}
    monkeypatch.setattr(core, "gate_of", lambda *_: refused)
    rebuild = ("--index", "rebuild", "--vectors", tmp_path / "other", "--method", "means")
    code, _, err = say(*words(world, tmp_path / "v2", *rebuild))
    assert (code, "gate not met" in err, (tmp_path / "other.v2").exists()) == (3, True, False)
    told = json.loads((tmp_path / "v2.verdict.json").read_text())["index"]
    assert (told["rebuilt"], "other.v2" in told["words"]) == (None, False)


@pytest.mark.parametrize("source", ["{}:x", "joined:{}:x+emoji"])
def test_no_code_runs_that_a_folder_names(world: Path, tmp_path: Path, say: Say, source: str) -> None:
    """What was embedded is listed again by a rebuild; a stranger's folder may say that it was a program's."""
    mine = read(world / "vectors")
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    listed = Listed([str(row) for row in range(len(mine))], {}, [source.format(evil)])
    append(create(tmp_path / "theirs", mine.table), mine.blocks[0][1], listed)
    code, out, err = say(
        *words(world, tmp_path / "v2", "--index", "rebuild", "--vectors", tmp_path / "theirs")
    )
    assert (code, out, "--trust" in err, _besides(err)) == (2, "", True, 1)
    assert not (tmp_path / "ran").exists()


def test_texts_are_rebuilt_from_the_folder_alone(world: Path, tmp_path: Path, say: Say) -> None:
    """A stranger's folder may name a private file in place of the texts that it has: no line of it is copied."""
    secret, theirs = tmp_path / "id_ed25519", tmp_path / "theirs"
    secret.write_text("private\n")
    table = replace(read(world / "vectors").table, kind="text")
    rows = read(world / "vectors").blocks[0][1][:3]
    append(create(theirs, table), rows, Listed(["a dog", "half \\ud800", "a cat"], {}, [str(secret)]))
    listed = theirs / "000000.json"
    listed.write_text(
        listed.read_text().replace("\\\\ud800", "\\ud800")
    )  # as JSON can have it, and no file can
    amend(theirs, {listed.name: listed.read_bytes()})
    rebuild = ("--index", "rebuild", "--vectors", theirs, "--method", "trained")
    code, _, err = say(*words(world, tmp_path / "v2", *rebuild))
    assert code == 0, err
    assert read(tmp_path / "theirs.v2", whole=True).names(range(3)) == ["a dog", "half ?", "a cat"]


def _besides(err: str) -> int:
    """How many lines there are beside those that say how folders were read."""
    return sum(not line.startswith("--") for line in err.splitlines())


def test_recall_by_hand() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(truth[:, ::-1], truth) == 1
    assert recall(np.array([[1, 2, 9, 10], [8, 11, 12, 13]]), truth) == 3 / 8
    found: Vectors | None = None
    assert asked(None, None, "auto") is found
