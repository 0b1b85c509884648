"""POST /predict, /embed, /search, GET /health, /model: what they answer, and what they say to anything else."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from everclip.data.gathered import Encoded
from everclip.serving import answering, app, batches
from everclip.serving.answering import Answering, Ask, Result
from everclip.serving.current import Source
from everclip.serving.limits import Limits, Refused, without_folders
from tests.cli.conftest import Say
from tests.pictures import tiled
from tests.serving import malformed
from tests.serving.client import Client, Json
from tests.serving.conftest import Serving, serving_of


@pytest.fixture(scope="module")
def client(made: Path) -> Iterator[Client]:
    """A server of the second version, whose encoder is that of ``vectors``."""
    with serving_of(made / "v2", made / "vectors") as found:
        yield found


def test_predict_is_everclip_predict(client: Client, made: Path, say: Say) -> None:
    for name in ("red", "blue"):
        file = made / f"{name}.png"
        _, out, _ = say("predict", made / "v2", file, "--json", "--top", "3")
        status, found = client.ask("/predict?top=3", file.read_bytes())
        wanted = json.loads(out)
        assert status == 200
        assert list(found) == [*list(wanted)[1:], "version", "identity"]
        assert {key: found[key] for key in list(wanted)[1:]} == {
            key: pytest.approx(value, abs=1e-5) if key == "probability" else value
            for key, value in wanted.items()
            if key != "file"
        }
        assert found["version"] == 2
    rejected = client.ask("/predict?reject_below=1", file.read_bytes(), "")[1]
    assert rejected["class"] is None
    assert len(rejected["top"]) == 4
    for kind in ("application/octet-stream", "application/x-www-form-urlencoded", "image/jpeg; q=1"):
        assert client.ask("/predict?top=3", file.read_bytes(), kind) == (200, found)


def test_unknown_pictures_are_those_of_everclip_predict(client: Client, made: Path, say: Say) -> None:
    file = made / "red.png"
    _, out, _ = say("predict", made / "v2", file, "--json", "--unknown-at", "0.5")
    wanted = json.loads(out)
    status, found = client.ask("/predict?unknown_at=0.5", file.read_bytes())
    assert status == 200
    assert found["unknown"] is wanted["unknown"]
    assert found["unknown_score"] == pytest.approx(wanted["unknown_score"], rel=1e-3)
    status, found = client.ask("/predict?unknown_at=0.001", file.read_bytes())
    assert status == 400
    assert "a rate of 0.1 % needs 999 held-out images" in found["error"]
    assert str(made) not in found["error"]
    assert client.ask("/predict?unknown_at=1e-320", file.read_bytes())[0] == 400


def decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of pictures that are decoded together from now on."""
    sizes = list[int]()

    def noted(names: list[str], contents: list[bytes]) -> Encoded:
        sizes.append(len(contents))
        return Encoded(names, contents)

    monkeypatch.setattr(answering, "Encoded", noted)
    return sizes


def test_large_pictures_are_not_decoded_all_at_once(
    client: Client, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread that decodes takes some bytes for each pixel: together they stay below a bound."""
    pictures, texts = [(made / f"{name}.png").read_bytes() for name in ("red", "blue")], ["a dog"]
    with Image.open(made / "red.png") as image:
        side = image.width
    asks = [Ask("embed", content) for content in [*pictures, *texts, *pictures, pictures[0], b"none"]]
    assert client.current is not None
    answer = Answering(client.current, Limits().pixels, client.lines.append)
    whole = answer(asks)
    sizes = decoded_at_once(monkeypatch)
    for at_once, parts in ((10**8, [6]), (2 * side**2, [2, 2, 2]), (side**2 - 1, [1] * 6)):
        monkeypatch.setattr(answering, "AT_ONCE", at_once)
        sizes.clear()
        found = answer(asks)
        assert sizes == parts
        for one, other in zip(found[:-1], whole[:-1], strict=True):
            assert isinstance(one, dict)
            assert isinstance(other, dict)
            assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-5)
        assert isinstance(found[-1], Refused)


def test_a_tiff_counts_as_large_as_its_tiles(client: Client) -> None:
    status, found = client.ask("/predict", tiled(64, 16000))
    assert (status, "the picture has 16000 x 16000 pixels" in found["error"]) == (413, True)


def test_thin_pictures_count_as_what_they_are_resized_to(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy takes 32 x 32: of 2 x 400 pixels it makes 32 x 6400."""
    file = io.BytesIO()
    Image.new("RGB", (2, 400), "red").save(file, "PNG")
    asks, thin = [Ask("embed", file.getvalue())] * 3, 32 * 6400
    assert client.current is not None
    (refused, *_) = Answering(client.current, thin - 1, client.lines.append)(asks)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.message) == (
        413,
        "the picture has 2 x 400 pixels, more than 0.204799 million once its shorter side has 32: send a less thin one",
    )
    sizes = decoded_at_once(monkeypatch)
    monkeypatch.setattr(answering, "AT_ONCE", 2 * thin)
    found = Answering(client.current, thin, client.lines.append)(asks)
    assert sizes == [2, 1]
    assert not [one for one in found if isinstance(one, Refused)]
    clip = client.current.now.model.clip
    squashed = replace(clip._preprocess_cfg, resize_mode="squash")
    monkeypatch.setattr(clip, "_preprocess_cfg", squashed)  # of 2 x 400 pixels it makes 32 x 32
    (answered, *_) = Answering(client.current, thin - 1, client.lines.append)(asks)
    assert not isinstance(answered, Refused)


def test_embed_and_search_are_the_commands(client: Client, made: Path, say: Say) -> None:
    file, text = made / "red.png", "a red bicycle"
    assert client.current is not None
    own = client.current.now.own
    status, found = client.ask("/embed", file.read_bytes())
    assert status == 200
    assert found["embedding"] == pytest.approx(own.embed(str(file))[0].tolist(), abs=1e-5)
    assert found["fingerprint"] == json.loads((made / "vectors" / "table.json").read_text())["fingerprint"]
    assert client.say("/embed", {"text": text})[1]["embedding"] == pytest.approx(
        own.texts([text])[0].tolist(), abs=1e-5
    )
    _, out, _ = say("search", made / "vectors", file, text, "--model", made / "v2", "-k", "3", "--json")
    for line, (status, found) in zip(
        out.splitlines(),
        [client.ask("/search?k=3", file.read_bytes()), client.say("/search?k=3", {"text": text})],
        strict=True,
    ):
        wanted = json.loads(line)["found"]
        assert status == 200
        assert [one["id"] for one in found["found"]] == [one["id"] for one in wanted]
        assert [one["cosine"] for one in found["found"]] == pytest.approx(
            [one["cosine"] for one in wanted], abs=1e-5
        )


def test_a_text_is_never_a_file(client: Client, made: Path) -> None:
    """Unlike the command, which opens what a query names."""
    named = client.say("/embed", {"text": str(made / "red.png")})[1]["embedding"]
    assert client.current is not None
    assert named == pytest.approx(client.current.now.own.texts([str(made / "red.png")])[0].tolist(), abs=1e-5)


def test_what_a_monitor_sees(client: Client) -> None:
    status, health = client.ask("/health")
    assert status == 200
    assert health["status"] == "ok"
    assert health["error"] is None
    assert (health["search"], health["version"], health["switches"]) == ("on", 2, 0)
    model = client.ask("/model")[1]
    assert model["classes"] == ["red", "yellow", "blue", "green"]
    assert (model["model"], model["identity"]) == ("v2", health["identity"])
    assert model["embeddings"] == 12
    assert client.ask("/health", method="HEAD") == (200, {})


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "line"),
    [
        ("/predict", b"no picture", "image/png", 422, "the picture cannot be read (no JPEG, PNG, BMP, WEBP,"),
        ("/predict", b"", "image/png", 400, "the body is empty: send a picture as the body"),
        (
            "/predict",
            b"{}",
            "application/json",
            415,
            'the body is "application/json": send a picture, such as image/jpeg',
        ),
        (
            "/embed",
            b"--x",
            "multipart/form-data",
            415,
            'or application/json such as {"text": "a red bicycle"}',
        ),
        ("/predict?top=0", b"x", "", 400, 'top is "0": use a whole number from 1 to 1000'),
        ("/predict?topp=1", b"x", "", 400, '/predict has no option "topp"; did you mean "top"?'),
        ("/embed?k=1", b"x", "", 400, '/embed has no option "k"; it takes none'),
        ("/predict?reject_below=nan", b"x", "", 400, 'reject_below is "nan": use a number from 0 to 1'),
        (
            "/predict?unknown_at=1",
            b"x",
            "",
            400,
            'unknown_at is "1": use a number below 1, such as 0.05; 0 is off',
        ),
        ("/predict?unknown_at=1.0", b"x", "", 400, 'unknown_at is "1.0": use a number below 1'),
        ("/predict?unknown_at=1.1", b"x", "", 400, 'unknown_at is "1.1": use a number from 0 to 1'),
        ("/search?k=1001", b"x", "", 400, 'k is "1001": use a whole number from 1 to 1000'),
        ("/search", b'{"text": 3}', "application/json", 400, 'the body is not {"text": "..."} with one text'),
        ("/search", b"{", "application/json", 400, "the body cannot be read (no valid JSON"),
        ("/search", json.dumps({"text": "a" * 1001}).encode(), "application/json", 413, "1,001 characters"),
        ("/embed", b" " * 70_000, "application/json", 413, "the body has more than 65,536 bytes"),
        (
            "/classify",
            b"x",
            "",
            404,
            'there is no "/classify": use POST /predict, POST /embed, POST /search,',
        ),
        ("/predict/", b"x", "", 404, 'there is no "/predict/"'),
        ("/health", b"x", "", 405, '"/health" does not take "POST": use GET'),
        ("/predict", None, "", 405, '"/predict" does not take "GET": use POST'),
    ],
)
def test_what_is_refused(
    client: Client, path: str, body: bytes | None, kind: str, status: int, line: str
) -> None:
    found, answer, headers = client.whole(path, body, kind)
    assert (found, list(answer)) == (status, ["error"])
    assert line in answer["error"]
    assert ("allow" in headers) == (status == 405)


def test_limits(made: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, declared or not; pixels; requests at a time; seconds for a body."""
    body = (made / "red.png").read_bytes()
    monkeypatch.setattr(app, "SECONDS", 3)
    with serving(made / "v1", limits=Limits(body=len(body), pixels=40 * 40, waiting=1)) as client:
        assert client.ask("/predict", body)[0] == 200
        assert client.ask("/predict", body + b"x")[0] == 413
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body, body)) + b"0\r\n\r\n"
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
        raw = head + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunks
        assert b"the body has more than" in client.send(raw)
        status, answer, headers = client.whole("/search", body)
        assert answer == {"error": "the server has no embeddings: start it with --vectors DIR"}
        assert (status, "retry-after" in headers) == (503, False), "a second later it has none either"
        slow = threading.Thread(target=_send_half, args=(client.port, head, answers := []))
        slow.start()
        while client.ask("/health")[1]["waiting"] == 0:
            assert slow.is_alive()
            time.sleep(0.01)
        status, answer, headers = client.whole("/predict", body)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "too busy (1 request waiting)" in answer["error"]
        slow.join()
        assert b" 408 " in answers[0]
        assert client.ask("/predict", body)[0] == 200
    with serving(made / "v1", limits=Limits(pixels=40 * 40 - 1)) as client:
        status, answer = client.ask("/predict", body)
        assert (status, answer["error"][:38]) == (413, "the picture has 40 x 40 pixels, more t")


def _send_half(port: int, head: bytes, answers: list[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head + b"Content-Length: 10\r\n\r\nabc")
        answers.append(connection.recv(1000))


def test_malformed_requests_are_answered_in_a_line(client: Client, made: Path) -> None:
    """A thousand of them are in benchmarks/serving.py."""
    body = (made / "red.png").read_bytes()
    before = client.ask("/predict", body)
    with ThreadPoolExecutor(16) as pool:
        sent = list(malformed.requests(0, 210))
        for (kind, raw), answer in zip(sent, pool.map(client.send, [raw for _, raw in sent]), strict=True):
            assert not malformed.wrong(answer, raw, kind), (kind, raw[:200], answer[:300])
    assert malformed.alike(client.ask("/predict", body), before)
    assert not client.lines


def test_what_would_be_wrong_is_noticed() -> None:
    def answer(status: int, text: str) -> bytes:
        return f"HTTP/1.1 {status} X\r\nA: b\r\n\r\n{text}".encode()

    assert not malformed.wrong(answer(400, '{"error": "one line"}'))
    for kind, right in (("no HTTP", True), ("half a request", True), ("an odd option", False)):
        assert (not malformed.wrong(b"", kind=kind)) == right
    for kind, right in (("a changed picture", True), ("an odd type", True), ("a huge picture", False)):
        assert (not malformed.wrong(answer(200, "{}"), kind=kind)) == right
    for status, text in (
        (500, '{"error": "x"}'),
        (200, '{"class": "red", "file": "/tmp/x"}'),
        (400, "Traceback"),
        (422, '{"error": "Traceback (most recent call last)"}'),
        (422, '{"error": "/tmp/x"}'),
        (422, json.dumps({"error": f"{tempfile.gettempdir()}/x"})),
        (400, '{"detail": "x"}'),
    ):
        assert malformed.wrong(answer(status, text))


def test_requests_that_come_together_have_their_own_answers(client: Client, made: Path) -> None:
    bodies = [(made / f"{name}.png").read_bytes() for name in ("red", "blue", "green", "yellow")] * 10
    alone = [client.ask("/predict", body)[1] for body in bodies[:4]] * 10
    with ThreadPoolExecutor(40) as pool:
        together = list(pool.map(lambda body: client.ask("/predict", body)[1], bodies))
    for one, other in zip(alone, together, strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def _batched(run: Callable[[Sequence[Ask]], list[Result]], asks: Sequence[Ask]) -> list[Json | BaseException]:
    async def every() -> list[Json | BaseException]:
        made = batches.Batches(run)
        task = asyncio.create_task(made.work())
        found = await asyncio.gather(*(made.ask(ask) for ask in asks), return_exceptions=True)
        task.cancel()
        return found

    return asyncio.run(every())


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_batches_keep_the_order_and_outlive_an_error(error: type[BaseException]) -> None:
    sizes = []

    def run(asks: Sequence[Ask]) -> list[Result]:
        sizes.append(len(asks))
        if len(sizes) == 2:
            raise error("ours")
        return [{"text": ask.content} for ask in asks]

    found = _batched(run, [Ask("embed", str(number)) for number in range(2 * batches.SIZE + 3)])
    assert sizes == [batches.SIZE, batches.SIZE, 3]
    assert found[: batches.SIZE] == [{"text": str(number)} for number in range(batches.SIZE)]
    assert all(isinstance(one, Refused) and one.status == 500 for one in found[batches.SIZE : -3])
    assert found[-3:] == [{"text": str(number)} for number in range(2 * batches.SIZE, 2 * batches.SIZE + 3)]


def test_an_error_of_any_kind_costs_no_other_request_its_answer(
    client: Client, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(answering, "answers", leave)
    lines = list[str]()
    assert client.current is not None
    picture = (made / "red.png").read_bytes()
    asks = [Ask("predict", picture), Ask("embed", picture)]
    failed, answered = Answering(client.current, Limits().pixels, lines.append)(asks)
    assert isinstance(failed, Refused)
    assert (failed.status, "(SystemExit)" in failed.message) == (500, True)
    assert not isinstance(answered, Refused)
    assert lines == ["1 request of /predict failed: SystemExit:"]


def test_messages_name_no_folder() -> None:
    text = "/data/some place/v2 is damaged (x.pt is missing): see /a/b/c.json\nand ~/d/e"
    assert without_folders(text, "/data/some place/v2") == "v2 is damaged (x.pt is missing): see c.json and e"
    assert without_folders("either/or 3 / 4", "/v2", ".", "") == "either/or 3 / 4"


@pytest.mark.parametrize("folder", ["client (a) models", "/srv/client (a) models", "a/b c", "~/my d", ".."])
def test_nor_one_that_is_relative_or_has_spaces_and_brackets(folder: str) -> None:
    """The model and the embeddings are called what the server was started with, or what that is in full."""
    source = Source(f"local-dir:{folder}/v1", None, f"{folder}/vectors/")
    for path in (path.rstrip("/") for path in source.paths):
        told = without_folders(f"{path} (y) is not in {path}/x.pt: use embed local-dir:{path}", *source.paths)
        name = Path(path).name
        assert told == f"{name} (y) is not in {name}/x.pt: use embed local-dir:{name}"


def test_answers_name_no_folder(made: Path, tmp_path: Path, serving: Serving) -> None:
    here = Path(shutil.copytree(made, tmp_path / "client (a) models"))
    body = (here / "red.png").read_bytes()
    with serving(here / "v1", here / "vectors") as client:
        found = [client.ask("/predict?unknown_at=0.001", body)]
        shutil.rmtree(here / "vectors")
        assert client.current is not None
        client.current.ask()
        client.current.look()
        found += [client.ask("/search", body), client.ask("/health")]
        (here / "v1" / "method.pt").write_bytes(b"")
        client.current.ask()
        client.current.look()
        found.append(client.ask("/health"))
    told = [answer.get("error") or answer["search"] for _, answer in found]
    assert [" of v1: use 3" in told[0], told[3][:16]] == [True, "v1 is damaged (m"], told
    assert "off: vectors does not exist: write it with everclip embed MODEL DATA -o vectors" in told[2]
    assert not [line for line in told if "client" in line or "/m" in line]
