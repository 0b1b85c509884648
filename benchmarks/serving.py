"""The speed of ``everclip serve`` compared with direct ``predict``, and its losses when versions change or it is
killed.

    EVERCLIP_DATA=/folder/with/caltech50 python -m benchmarks.serving [--seconds 60]

makes two versions of `lite` at 96 px (10 classes of Caltech photographs, then 5 more), serves a link to the first,
and asks it as 32 clients on the loopback interface, each with one connection; the clients are threads of this process.
Then the link moves to the second version, which is rolled back, while the clients ask; 1,000 malformed requests are
sent; and the server is killed with -9 and started again. Direct prediction is measured in a process of its own, before
and after, as other work may run beside it. Writes benchmarks/serving.md.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.serving import malformed
from tests.serving.client import Client

from benchmarks.serving_page import page
from everclip.data.formats.folders import image_files

PAGE = Path(__file__).with_suffix(".md")
SIZE, CLIENTS, PICTURES, MALFORMED = 96, 32, 256, 1000
PATIENCE = 10.0
"""Seconds to wait for an answer to a malformed request before saying that no more will follow."""
FIRST, NEW = 10, 5
"""Classes of the first version, and those added."""
Json = dict[str, Any]


@dataclass
class Load:
    """What clients have seen.

    Args:
        seconds: of each answer.
        versions: number of answers by version.
        failed: what went wrong, once per request.
        first: version -> time of its first answer.
        took: seconds in all.
    """

    seconds: list[float] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    first: dict[int, float] = field(default_factory=dict)
    took: float = 0.0

    def as_json(self) -> Json:
        """Rate, quantiles and failures."""
        return {
            "rate": len(self.seconds) / self.took,
            "p50": float(np.quantile(self.seconds, 0.5)),
            "p99": float(np.quantile(self.seconds, 0.99)),
            "failed": self.failed,
        }

    def ask(self, port: int, bodies: list[bytes], end: threading.Event) -> None:
        """Ask on one connection until told to end."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        number = 0
        while not end.is_set():
            begin = time.perf_counter()
            try:
                connection.request("POST", "/predict", bodies[number % len(bodies)])
                found = connection.getresponse()
                answer = json.loads(found.read())
                if found.status != 200:
                    self.failed.append(f"{found.status}: {answer}")
                    continue
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                connection.close()
                continue
            now = time.perf_counter()
            self.seconds.append(now - begin)
            self.versions[answer["version"]] += 1
            self.first.setdefault(answer["version"], now)
            number += 1
        connection.close()


def loaded(
    port: int,
    bodies: list[bytes],
    seconds: float,
    changes: Callable[[Load], object] = lambda load: None,
    clients: int = CLIENTS,
) -> Load:
    """Ask with ``clients`` clients for some seconds, and at least until ``changes``, which runs beside them,
    returns."""
    load, end, begin = Load(), threading.Event(), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        asking = [
            pool.submit(load.ask, port, bodies[number:] + bodies[:number], end) for number in range(clients)
        ]
        try:
            changes(load)
            end.wait(max(0.0, begin + seconds - time.perf_counter()))
        finally:
            end.set()
        for one in asking:
            one.result()
    load.took = time.perf_counter() - begin
    return load


def direct(model: str, files: list[str], seconds: float) -> Json:
    """Pictures a second in batches of ``BATCH``, and seconds of a picture alone; in this process."""
    from everclip.inference.model import open_model
    from everclip.inference.predict import BATCH, answers
    from everclip.inference.predict import files as stores

    opened = open_model(model)
    list(answers(opened, stores(files[:BATCH])))  # the first is slower
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        count += sum(answer.probabilities is not None for answer in answers(opened, stores(files)))
    rate = count / (time.perf_counter() - begin)
    alone = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds / 2:
        start = time.perf_counter()
        list(answers(opened, stores([files[len(alone) % len(files)]])))
        alone.append(time.perf_counter() - start)
    return {"rate": rate, "p50": float(np.quantile(alone, 0.5)), "p99": float(np.quantile(alone, 0.99))}


def directly(model: Path, listed: Path, seconds: float) -> Json:
    """The same in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.serving", "--direct", str(model), str(listed), str(seconds)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def serving(model: Path, log: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """``everclip serve`` and its port, once it listens."""
    words = [sys.executable, "-m", "everclip", "serve", str(model), "--port", str(port)]
    with log.open("wb") as file, subprocess.Popen(words, stderr=file) as process:
        try:
            while not (found := re.search(r"on http://127\.0\.0\.1:(\d+)\n", log.read_text())):
                if process.poll() is not None:
                    raise RuntimeError(log.read_text())
                time.sleep(0.1)
            yield process, int(found[1])
        finally:
            process.kill()


def versions(scratch: Path) -> list[str]:
    """Write v1, v2 and the link ``current``; return test pictures of the first classes. Versions that were made before
    are used again."""
    source, made = Path(os.environ["EVERCLIP_DATA"]).resolve() / "caltech50", scratch / "made"
    names = sorted(path.name for path in (source / "train").iterdir())[: FIRST + NEW]
    every = ["--method", "layers", "--max-drop", "100"]  # what an update prefers, without training the others
    for folder, part, some in (
        ("a", "train", names[:FIRST]),
        ("b", "train", names[FIRST:]),
        ("t", "test", names[:FIRST]),
        ("u", "test", names),
    ):
        for name in some:
            shutil.copytree(source / part / name, made / folder / name, dirs_exist_ok=True)
    for version, words in (
        ("v1", ["lite", "--image-size", str(SIZE), "--add", "imagefolder:a", "--test", "imagefolder:t"]),
        ("v2", ["v1", "--add", "imagefolder:b", "--test", "imagefolder:u"]),
    ):
        if not (made / version).exists():
            words = [sys.executable, "-m", "everclip", "update", *words, *every, "-o", version]
            subprocess.run(words, cwd=made, check=True)
        shutil.rmtree(scratch / version, ignore_errors=True)
        shutil.copytree(made / version, scratch / version)
    (scratch / "current").unlink(missing_ok=True)
    (scratch / "current").symlink_to("v1")
    files = [
        str(source / "test" / name / file)
        for name in names[:FIRST]
        for file in image_files(source / "test" / name, "")
    ]
    picked = np.random.default_rng(0).permutation(len(files))[:PICTURES]
    return [files[place] for place in picked.tolist()]


def switched(scratch: Path, port: int, bodies: list[bytes], seconds: float) -> tuple[Load, float, float]:
    """Move the link on, then roll back, while clients ask. Also return the seconds until the first answer of each."""
    moments = {}

    def changes(load: Load) -> None:
        time.sleep(seconds / 4)
        subprocess.run(["ln", "-sfn", "v2", "next"], cwd=scratch, check=True)
        moments[2] = time.perf_counter()
        subprocess.run(["mv", "-T", "next", "current"], cwd=scratch, check=True)
        while 2 not in load.first:
            time.sleep(0.05)
        time.sleep(seconds / 4)
        subprocess.run([sys.executable, "-m", "everclip", "rollback", "current"], cwd=scratch, check=True)
        moments[1] = time.perf_counter()
        load.first.pop(1, None)
        while 1 not in load.first:
            time.sleep(0.05)

    load = loaded(port, bodies, seconds, changes)
    return load, load.first[2] - moments[2], load.first[1] - moments[1]


def attacked(port: int, body: bytes) -> Json:
    """Send malformed requests; count those that are answered wrongly, and check that the server answers as before."""
    client = Client(port)
    before = client.ask("/predict", body)
    sent = list(malformed.requests(1, MALFORMED))
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda one: client.send(one[1], PATIENCE), sent))
    bad = [(kind, malformed.wrong(answer, raw, kind)) for (kind, raw), answer in zip(sent, got, strict=True)]
    statuses = Counter(answer.split(b" ")[1].decode() if answer else "no answer" for answer in got)
    return {
        "wrong": [(kind, why) for kind, why in bad if why],
        "tracebacks": sum(b"Traceback" in answer for answer in got),
        "statuses": dict(sorted(statuses.items())),
        "same": malformed.alike(client.ask("/predict", body), before),
    }


def measure(scratch: Path, seconds: float) -> Json:
    """Everything, one after another."""
    files = versions(scratch)
    bodies = [Path(file).read_bytes() for file in files]
    listed = scratch / "files.txt"
    listed.write_text("\n".join(files), encoding="utf-8")
    found: Json = {"load": [os.getloadavg()[0]], "direct": [directly(scratch / "v1", listed, seconds / 2)]}
    with serving(scratch / "current", scratch / "log") as (process, port):
        loaded(port, bodies, 3)
        load = loaded(port, bodies, seconds)
        found["load"].append(os.getloadavg()[0])
        found["serve"] = load.as_json()
        found["one"] = loaded(port, bodies, seconds / 4, clients=1).as_json()
        found["direct"].append(directly(scratch / "v1", listed, seconds / 2))
        load, there, back = switched(scratch, port, bodies, seconds)
        found["switch"] = load.as_json() | {
            "seconds": load.took,
            "answers": len(load.seconds),
            "versions": dict(sorted(load.versions.items())),
            "there": there,
            "back": back,
            "longest": max(load.seconds),
        }
        found["malformed"] = attacked(port, bodies[0])
        found["alive"] = process.poll() is None
        before = Client(port).ask("/model"), Client(port).ask("/predict", bodies[0])
        asking = threading.Thread(target=loaded, args=(port, bodies, 2))
        asking.start()
        time.sleep(1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        asking.join()
        found["log"] = (scratch / "log").read_text().splitlines()
    begin = time.perf_counter()
    with serving(scratch / "current", scratch / "log", port) as (_, port):
        found["restart"] = time.perf_counter() - begin
        after = Client(port).ask("/model"), Client(port).ask("/predict", bodies[0])
        found["same"] = before[0] == after[0] and malformed.alike(before[1], after[1])
    return found


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--scratch", type=Path, default=Path("runs/serving"), help="work goes here")
    parser.add_argument("--direct", nargs=3, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.direct:
        model, listed, seconds = wanted.direct
        files = Path(listed).read_text(encoding="utf-8").splitlines()
        print(json.dumps(direct(model, files, float(seconds))))
        return
    wanted.scratch.mkdir(parents=True, exist_ok=True)
    found = measure(wanted.scratch, wanted.seconds)
    print(json.dumps(found))
    about = {
        "seconds": f"{wanted.seconds:.0f}",
        "clients": str(CLIENTS),
        "model": f"`lite` at {SIZE} px, {FIRST} classes of Caltech photographs, {PICTURES} of their test pictures",
    }
    PAGE.write_text(page(found, about), encoding="utf-8")


if __name__ == "__main__":
    main()
