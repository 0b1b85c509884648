"""everclip embed: embeddings on disk are those of the towers, and no stop, disk or stranger costs one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import everclip
from everclip.errors import UserError
from everclip.index import embed
from everclip.index.encoder import fingerprint, fingerprints, open_encoder
from everclip.index.folder import TABLE, TEXT, Listed, Table, Vectors, append, create, read
from everclip.inference.model import open_model
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.system import checkpoint
from everclip.system.reading import JSON_BYTES, MOST_PARTS
from everclip.updating.index import beside
from tests.attacks.plant import change, hugging
from tests.cli.conftest import Say
from tests.learned import coloured, learned
from tests.running import files_up_to
from tests.toy import damaged_clip, toy_clip


def whole(path: Path) -> tuple[np.ndarray, list[str]]:
    """All embeddings of a folder, and their ids."""
    vectors = read(path, whole=True)
    return np.concatenate([block for _, block in vectors.blocks]), vectors.names(range(len(vectors)))


def files(path: Path) -> dict[str, bytes]:
    """The bytes of each file, but for the lock that a killed process leaves."""
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.usefixtures("small")
def test_embeddings_are_those_of_the_image_tower(toy: str, pictures: Path, tmp_path: Path, say: Say) -> None:
    code, out, _ = say("embed", toy, pictures, "-o", tmp_path / "v", "--json")
    assert code == 0
    told = json.loads(out)
    broken = str(pictures / "03b.png")
    assert (told["vectors"], told["made"], told["width"], told["dtype"]) == (19, 19, 16, "float32")
    assert told["skipped"] == {broken: "no JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM"}
    rows, ids = whole(tmp_path / "v")
    assert ids == sorted(set(map(str, pictures.rglob("*.png"))) - {broken})
    learner = everclip.Learner(toy, progress=False)
    np.testing.assert_allclose(rows, learner.embed(ids), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    mapped = np.load(tmp_path / "v" / "000000.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert [len(block) for _, block in read(tmp_path / "v").blocks] == [7, 8, 4]


def test_texts_have_a_folder_of_their_own(toy: str, pictures: Path, tmp_path: Path, say: Say) -> None:
    (tmp_path / "texts.txt").write_text("a red bicycle\n\na dog\na red bicycle\n")
    words = ("embed", toy, "--text", tmp_path / "texts.txt", "-o", tmp_path / "t")
    assert say(*words)[0] == 0
    rows, ids = whole(tmp_path / "t")
    assert ids == ["a red bicycle", "a dog"]
    learner = everclip.Learner(toy, progress=False)
    np.testing.assert_allclose(rows, learner.embed(texts=ids), atol=1e-6)
    assert learner.embed(texts=[]).shape == learner.embed([]).shape == (0, 16)
    before = files(tmp_path / "t")
    code, _, err = say("embed", toy, pictures, "-o", tmp_path / "t")
    assert (code, err) == (
        2,
        f"error: {tmp_path / 't'} has embeddings of texts: embed images into a separate folder\n",
    )
    assert files(tmp_path / "t") == before
    code, _, err = say("embed", toy, "-o", tmp_path / "u")
    assert (code, "either pictures or" in err) == (2, True)


def test_half_precision_on_request(toy: str, pictures: Path, tmp_path: Path, say: Say) -> None:
    assert say("embed", toy, pictures, "-o", tmp_path / "h", "--fp16")[0] == 0
    assert say("embed", toy, pictures, "-o", tmp_path / "v")[0] == 0
    half, ids = whole(tmp_path / "h")
    assert (half.dtype, ids) == (np.float16, whole(tmp_path / "v")[1])
    np.testing.assert_allclose(half, whole(tmp_path / "v")[0], atol=1e-3)
    assert say("embed", toy, pictures, "-o", tmp_path / "h")[0] == 0  # goes on in the precision that it has
    code, _, err = say("embed", toy, pictures, "-o", tmp_path / "v", "--fp16")
    assert (code, "has embeddings in float32: leave --fp16 out" in err) == (2, True)


@pytest.mark.usefixtures("small")
def test_what_was_stopped_goes_on_to_the_bit(
    toy: str, pictures: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the first shard and the second, twice, and then between the two files of the second."""
    assert say("embed", toy, pictures, "-o", tmp_path / "v")[0] == 0
    begun: list[int] = []
    once = zoo.Clip.encode_image

    def stop(clip: zoo.Clip, images: torch.Tensor) -> torch.Tensor:
        begun.extend([len(begun) + 1] * (len(images) > 1))  # a single blank one only tells the width
        if len(images) > 1 and begun[-1] in (2, 5, 6):
            raise KeyboardInterrupt
        return once(clip, images)

    with monkeypatch.context() as patch:
        patch.setattr(zoo.Clip, "encode_image", stop)
        codes = [say("embed", toy, pictures, "-o", tmp_path / "w") for _ in range(3)]
    assert {code for code, _, _ in codes} == {130}
    assert codes[0][2].endswith(
        f"interrupted: {tmp_path / 'w'} keeps what it has; the same command continues\n"
    )
    assert len(read(tmp_path / "w")) == 7
    (tmp_path / "w" / "000001.npy").write_bytes(b"half a shard")
    code, out, _ = say("embed", toy, pictures, "-o", tmp_path / "w", "--json")
    assert (code, json.loads(out)["made"]) == (0, 12)
    assert files(tmp_path / "w") == files(tmp_path / "v")
    code, out, _ = say("embed", toy, pictures, "-o", tmp_path / "w")
    assert (code, "none was missing" in out) == (0, True)


@pytest.mark.slow
def test_killed_three_times_it_is_equal_to_the_bit(toy: str, tmp_path: Path) -> None:
    many = coloured(tmp_path / "many", {"red": (220, 40, 40), "blue": (40, 60, 220)}, 32)
    code = (
        "import sys; from everclip.index import embed; embed.BATCH, embed.SHARD = 4, 4;"
        "from everclip.cli.app import main; sys.exit(main(sys.argv[1:]))"
    )

    def start(out: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", code, "embed", toy, many, "-o", str(tmp_path / out)]
        return subprocess.Popen(words)

    assert start("v").wait() == 0
    for kill in range(3):
        process, most = start("w"), 2 + 4 * kill
        while len(list((tmp_path / "w").glob("*.npy"))) < most and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert len(read(tmp_path / "w")) < 64
    assert start("w").wait() == 0
    assert files(tmp_path / "w") == files(tmp_path / "v")


@pytest.mark.usefixtures("small")
def test_more_pictures_are_added(toy: str, pictures: Path, tmp_path: Path, say: Say) -> None:
    more = coloured(tmp_path / "more", {"red": (220, 40, 40), "blue": (40, 60, 220)})
    assert say("embed", toy, pictures / "deep", "-o", tmp_path / "v")[0] == 0
    before, ids = whole(tmp_path / "v")
    assert say("embed", toy, more, pictures / "00.png", "-o", tmp_path / "v")[0] == 0
    after, every = whole(tmp_path / "v")
    assert every[: len(ids)] == ids
    assert np.array_equal(after[: len(ids)], before)
    assert len(every) == len(ids) + 9
    assert str(tmp_path / "more" / "red" / "0.png") in every
    there = read(tmp_path / "v")
    given = [there.listed(shard).sources for shard in there.shards]
    assert given == [[str(pictures / "deep")]] * 2 + [[more, str(pictures / "00.png")]] * 2


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("inside", "name"), [("v", "."), ("v/deeper", "..")])
def test_the_folder_may_be_the_current_one(
    toy: str, pictures: Path, tmp_path: Path, say: Say, inside: str, name: str
) -> None:
    assert say("embed", toy, pictures / "deep", "-o", tmp_path / "v")[0] == 0
    before = len(read(tmp_path / "v"))
    (tmp_path / inside).mkdir(exist_ok=True)
    with chdir(tmp_path / inside):
        assert say("embed", toy, pictures, "-o", name)[0] == 0
        assert beside(read(Path(name)), 2) == tmp_path.resolve() / "v.v2"
    assert len(read(tmp_path / "v", whole=True)) > before
    assert {path.name for path in tmp_path.iterdir()} - {pictures.name} == {"v"}


# Bad input ----------------------------------------------------------------------------------------------------------


def test_what_is_not_a_number_is_no_embedding(pictures: Path, tmp_path: Path, say: Say) -> None:
    model = f"local-dir:{damaged_clip(tmp_path)}"
    code, out, err = say("embed", model, pictures, "-o", tmp_path / "v")
    line = f"error: {model} gives embeddings that are not finite: use another copy\n"
    assert (code, out, err.endswith(line)) == (1, "", True)
    assert not len(read(tmp_path / "v"))


def test_another_encoder_is_refused(toy: str, pictures: Path, tmp_path: Path, say: Say) -> None:
    assert say("embed", toy, pictures, "-o", tmp_path / "v")[0] == 0
    before = files(tmp_path / "v")
    other = f"local-dir:{toy_clip(tmp_path, seed=1)}"
    code, out, err = say("embed", other, pictures, "-o", tmp_path / "v")
    marks = [fingerprint(open_encoder(spec))[:12] for spec in (toy, other)]
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err == (
        f"error: {tmp_path / 'v'} has embeddings of {toy} (fingerprint {marks[0]}), but {other} is another"
        f" encoder ({marks[1]}): embed into a new folder, or give the folder's own model\n"
    )
    assert files(tmp_path / "v") == before


def test_a_fingerprint_is_of_weights_and_preprocessing_alone(toy: str, tmp_path: Path) -> None:
    clip = open_encoder(toy)
    mark = fingerprint(clip)
    clip.save(tmp_path / "copy")
    assert fingerprint(open_encoder(f"local-dir:{tmp_path / 'copy'}")) == mark
    with torch.no_grad():
        clip.model.logit_scale += 1
    assert fingerprint(clip) == mark
    config = json.loads((tmp_path / "copy" / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (tmp_path / "copy" / "open_clip_config.json").write_text(json.dumps(config))
    assert fingerprint(open_encoder(f"local-dir:{tmp_path / 'copy'}")) != mark
    with torch.no_grad():
        clip.model.visual.conv1.weight[0, 0, 0, 0] += 1e-6
    assert fingerprint(clip) != mark


@pytest.mark.parametrize(
    "claim", ["vision head_width 8", "vision pool_type avg", "vision eps 0.1", "text heads 1"]
)
def test_a_fingerprint_is_of_how_towers_compute_too(tmp_path: Path, claim: str) -> None:
    folder = toy_clip(tmp_path)
    here = open_encoder(f"local-dir:{folder}")
    tower, key, text = claim.split()
    value: Any = {"eps": float(text)} if key == "eps" else text if text.isalpha() else int(text)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][f"{tower}_cfg"]["norm_kwargs" if key == "eps" else key] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    there = open_encoder(f"local-dir:{folder}")
    assert all(torch.equal(value, there.whole_state()[key]) for key, value in here.whole_state().items())
    assert fingerprint(there) != fingerprint(here)


def test_a_fingerprint_is_of_how_a_transformer_computes_too(tmp_path: Path) -> None:
    folder = hugging(tmp_path / "model")
    here = fingerprint(open_encoder(f"local-dir:{folder}"))
    change(folder / "config.json", layer_norm_eps=0.1)
    assert fingerprint(open_encoder(f"local-dir:{folder}")) != here


def test_defaults_that_a_config_writes_down_make_no_other_fingerprint(tmp_path: Path) -> None:
    folder = toy_clip(tmp_path)
    here = fingerprint(open_encoder(f"local-dir:{folder}"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= {"mlp_ratio": 4.0, "pool_type": "tok", "timm_drop": 0.5}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert fingerprint(open_encoder(f"local-dir:{folder}")) == here


def test_a_folder_of_an_earlier_version_is_continued_and_searched(
    toy: str, pictures: Path, tmp_path: Path, say: Say
) -> None:
    path = tmp_path / "v"
    assert say("embed", toy, pictures / "deep", "-o", path)[0] == 0
    earlier = fingerprints(open_encoder(toy))[1]
    table = json.loads((path / TABLE).read_text()) | {"fingerprint": earlier}
    checkpoint.amend(path, {TABLE: json.dumps(table).encode()})
    assert say("embed", toy, pictures, "-o", path)[0] == 0
    assert say("search", path, "a dog")[0] == 0
    assert read(path).table.fingerprint == earlier
    other = f"local-dir:{toy_clip(tmp_path, seed=1)}"
    assert say("embed", other, pictures, "-o", path)[0] == 2


@pytest.mark.slow
def test_a_fingerprint_of_a_run_is_that_of_its_towers(toy: str, photos: str, tmp_path: Path) -> None:
    mark = fingerprint(open_encoder(toy))
    closed = learned(tmp_path / "run", toy, photos, "method=ncm")
    assert fingerprint(open_encoder(str(closed))) == mark
    trained = learned(tmp_path / "trained", toy, photos, "method=finetune", "train.epochs=1", "tune=top:1")
    assert fingerprint(open_encoder(str(trained))) != mark
    centred = learned(tmp_path / "centred", toy, photos, "method=ncm", "center=true")
    assert fingerprint(open_encoder(str(centred))) != mark


def test_embedding_reads_a_picture_once_and_no_class_names(
    toy: str, photos: str, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the classifier needs is left out: mirror images, and the prompts of its classes."""
    run = learned(tmp_path / "run", toy, photos, "method=multilayer_lda")
    clip, passes = open_model(str(run)).encoder, []
    assert clip.trunk is not None
    clip.trunk.lower.register_forward_hook(lambda *_: passes.append(1))
    clip.encode_image(clip.blank())
    alone = clip.alone()
    assert fingerprint(alone) == fingerprint(clip)
    assert len(passes) == 2
    torch.testing.assert_close(alone.encode_image(clip.blank()), clip.encode_image(clip.blank()))
    assert len(passes) == 5
    text = learned(tmp_path / "text", toy, photos, "method=zero_shot")
    assert say("export", text, "-o", tmp_path / "model")[0] == 0
    monkeypatch.setattr(Clip, "class_embeddings", None)
    assert open_encoder(str(tmp_path / "model")).encode_text(["a dog"]).shape == (1, 16)
    assert open_encoder(str(run)).trunk is None


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_one_line_and_costs_nothing(
    toy: str, pictures: Path, tmp_path: Path, say: Say
) -> None:
    assert say("embed", toy, pictures / "deep", "-o", tmp_path / "v")[0] == 0
    before = whole(tmp_path / "v")
    with files_up_to(600):
        code, _, err = say("embed", toy, pictures, "-o", tmp_path / "v")
    assert (code, err) == (
        1,
        f"error: {tmp_path / 'v'} cannot be written (File too large): make room and repeat the command\n",
    )
    there = whole(tmp_path / "v")
    assert np.array_equal(there[0], before[0])
    assert there[1] == before[1]
    assert say("embed", toy, pictures, "-o", tmp_path / "v")[0] == 0
    assert len(whole(tmp_path / "v")[1]) == 19


def cut(vectors: Vectors) -> None:
    file = vectors.path / "000000.npy"
    file.write_bytes(file.read_bytes()[:-8])


def turned(vectors: Vectors) -> None:
    file = vectors.path / "000001.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")


def gone(vectors: Vectors) -> None:
    (vectors.path / "000001.npy").unlink()


def without_table(vectors: Vectors) -> None:
    (vectors.path / "manifest.json").unlink()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "000000.npy is not what was written"),
        (turned, "000001.npy is not what was written"),
        (gone, "000001.npy is missing"),
        (without_table, "it has no manifest.json"),
    ],
)
def test_a_damaged_folder_is_one_line_and_stays_as_it_is(
    toy: str, pictures: Path, tmp_path: Path, say: Say, spoil: object, words: str
) -> None:
    assert say("embed", toy, pictures, "-o", tmp_path / "v")[0] == 0
    assert callable(spoil)
    spoil(read(tmp_path / "v"))
    before = files(tmp_path / "v")
    code, _, err = say("embed", toy, pictures, "-o", tmp_path / "v")
    assert (code, err) == (
        2,
        f"error: {tmp_path / 'v'} is damaged ({words}): use another copy, or embed into a new folder\n",
    )
    assert files(tmp_path / "v") == before


def test_what_is_given_must_be_there(toy: str, pictures: Path, tmp_path: Path, say: Say) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    for words, line in (
        (
            ("nowhere", "-o", tmp_path / "v"),
            "nowhere does not exist: give pictures, folders or a source: imagefolder:PATH",
        ),
        ((pictures, "-o", tmp_path / "full"), f"{tmp_path / 'full'} exists: give a new or an empty folder"),
        ((tmp_path / "full", "-o", tmp_path / "v"), f"no images in {tmp_path / 'full'}"),
        (
            ("--text", tmp_path / "none.txt", "-o", tmp_path / "v"),
            "cannot be read (No such file or directory)",
        ),
    ):
        code, _, err = say("embed", toy, *words)
        assert (code, line in err, err.count("\n")) == (2, True, 1), err
        assert not (tmp_path / "v").exists()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for _ in range(2):
        code, out, err = say("embed", toy, tmp_path / "bad.png", "-o", tmp_path / "none")
        assert (code, "not one image can be read" in out, "skipped" in err) == (1, True, True)
    assert say("embed", "features:8", pictures, "-o", tmp_path / "v")[0] == 2


def test_names_are_utf8_before_anything_is_computed(
    toy: str, pictures: Path, tmp_path: Path, say: Say
) -> None:
    odd = os.fsdecode(b"caf\xe9")
    try:
        (pictures / "00.png").rename(pictures / f"{odd}.png")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    (tmp_path / f"{odd}.txt").write_text("a dog")
    for words in ((pictures / f"{odd}.png",), ("--text", tmp_path / f"{odd}.txt")):
        code, _, err = say("embed", toy, *words, "-o", tmp_path / "v")
        assert (code, err.count("\n")) == (2, 1)
        assert "caf\\udce9" in err
        assert err.endswith(" in what is to be embedded is not a UTF-8 name: rename it\n")
    assert not (tmp_path / "v").exists()


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    """However many files were given by name, and however long a text is."""
    vectors = create(tmp_path / "v", Table(TEXT, "toy", None, "0", 4, "float32"))
    row, given = np.eye(1, 4, dtype=np.float32), [str(number) for number in range(10_001)]
    vectors = append(vectors, row, Listed(["a dog"], {}, given))
    for text in ("x" * JSON_BYTES, "[" * MOST_PARTS):
        with pytest.raises(UserError, match="the 1 ids of a shard of "):
            append(vectors, row, Listed([text], {}, given))
    there = read(tmp_path / "v", whole=True)
    assert there.names([0]) == ["a dog"]
    assert there.listed(there.shards[0]).sources == given


def test_a_learner_says_what_it_cannot_embed(toy: str, pictures: Path) -> None:
    learner = everclip.Learner(toy, progress=False)
    with pytest.raises(UserError, match="image 0 cannot be read"):
        learner.embed([pictures / "03b.png"])
    with pytest.raises(UserError, match="give either images or texts"):
        learner.embed([pictures / "00.png"], texts=["a dog"])
    with pytest.raises(UserError, match="embeddings already"):
        everclip.Learner("features:4", progress=False).embed(texts=["a dog"])


def test_progress_says_the_pace(
    toy: str, pictures: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.system.progress.EVERY", 0.0)
    monkeypatch.setattr(embed, "BATCH", 8)
    _, _, err = say("embed", toy, pictures, "-o", tmp_path / "v")
    assert err.splitlines()[0].startswith("embed images  7/20  ")  # the broken one is counted at the end
    assert err.splitlines()[0].endswith("images/s")
    assert os.listdir(tmp_path / "v")
