"""The report page in a browser: what its script does, what its policy forbids, how it looks dark and on paper."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from everclip.report.build import build
from tests.report.page import PARTS, Page
from tests.report.synthetic import write_run, write_sweep

PROBE = """
<script id="probe">
addEventListener("load", () => {
  const out = {}, tables = [...document.querySelectorAll("table.sortable")];
  const table = tables.find((one) => one.tHead.rows[0].cells[0].textContent.trim() === "NAMES");
  const heads = [...table.tHead.rows[0].cells], box = table.closest(".finder").querySelector("input.search");
  const column = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].dataset.v ?? row.cells[i].textContent);
  const press = (i) => heads[i].querySelector("[role=button]").click();
  press(0); out.names = column(0);
  press(NUMBERS); out.up = column(NUMBERS);
  press(NUMBERS); out.down = column(NUMBERS);
  box.value = "WANTED"; box.dispatchEvent(new Event("input"));
  out.found = [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
  out.count = table.closest(".finder").querySelector(".count").textContent;
  out.page = getComputedStyle(document.body).backgroundColor;
  const seen = (one) => one.checkVisibility(), gone = (one) => !seen(one) && !one.closest(".choice");
  out.hidden = [...document.querySelectorAll(".needs-js")].filter(gone).length;
  out.sections = [...document.querySelectorAll("section")].map((one) => one.id);
  out.empty = [...document.querySelectorAll("section, figure")].filter(gone).length;
  out.chosen = [...document.querySelectorAll(".choice input")].map((one) => {
    document.querySelector(`label[for=${one.id}]`).click();
    return [...document.querySelectorAll(".choice figure h3")].filter(seen).map((head) => head.textContent);
  });
  const size = (text) => {
    const svg = text.closest("svg"), scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return parseFloat(getComputedStyle(text).fontSize) * Math.min(1, scale);
  };
  out.smallest = Math.min(...[...document.querySelectorAll("svg.fig text")].filter(seen).map(size));
  out.loaded = performance.getEntriesByType("resource").map((one) => one.name).filter((name) => /^http/.test(name));
  URL.createObjectURL = (blob) => { blob.text().then((text) => {
    out.svg = text; out.wide = document.documentElement.scrollWidth - innerWidth;
    const pre = document.createElement("pre"); pre.id = "probe-result";
    pre.textContent = JSON.stringify(out); document.body.append(pre); }); return "#"; };
  document.querySelector("button.save-svg").click();
});
</script>
"""
DARK = "--blink-settings=preferredColorScheme=0"


def chromium(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("needs chromium")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    flags = [f"--disable-{name}" for name in quiet] + ["--headless", "--no-sandbox", "--no-first-run"]
    profile.mkdir()
    command = [binary, *flags, f"--user-data-dir={profile}", "--enable-logging=stderr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sweep with a run that has stopped and data of another kind."""
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, seeds=2, tasks=3, per_task=4, steps=30)
    (folder / "gcl_m500_s1" / "results.json").unlink()
    write_run(folder / "other", data="imagefolder:drawings", tasks=3, per_task=4, steps=30)
    return build([folder], folder / "report.html").read_text(encoding="utf-8")


def probed(html: str, folder: Path, names: str, numbers: int, wanted: str, *flags: str) -> dict[str, Any]:
    """What the page says of itself: a table sorted by its names and by a column of numbers, and searched."""
    # The page's own policy forbids foreign scripts, so the probe needs a copy without it.
    loose = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", html)
    probe = PROBE.replace("NAMES", names).replace("NUMBERS", str(numbers)).replace("WANTED", wanted)
    page = folder / "probed.html"
    page.write_text(loose.replace("</body>", probe + "</body>"), encoding="utf-8")
    done = chromium(folder / "p1", *flags, "--virtual-time-budget=3000", "--dump-dom", page.as_uri())
    assert ":CONSOLE" not in done.stderr
    end = done.stdout[done.stdout.index('<pre id="probe-result">') :].split("</pre>")[0] + "</pre>"
    return json.loads("".join(Page(end).words))


@pytest.mark.parametrize("width", [1100, 500])
def test_in_a_browser(html: str, tmp_path: Path, width: int) -> None:
    seen = probed(html, tmp_path, "class", 1, "SCRIPT", f"--window-size={width},900")
    assert len(seen["names"]) == 100
    up = [float(value) for value in seen["up"]]
    assert up == sorted(up)
    assert [float(value) for value in seen["down"]] == up[::-1]
    assert seen["found"] == ["<script>alert(1)</script>"]
    assert seen["wide"] <= 0  # nothing makes the page scroll sideways
    assert seen["smallest"] >= 9
    root = ElementTree.fromstring(seen["svg"])
    assert root.attrib["width"] == "920"
    assert "var(" not in seen["svg"]


@pytest.mark.parametrize(
    ("flags", "colour"),
    [
        (["--window-size=1100,900"], "rgb(255, 255, 255)"),
        ([DARK, "--window-size=500,900"], "rgb(20, 24, 28)"),
    ],
)
def test_many_runs_in_a_browser(many: str, tmp_path: Path, flags: list[str], colour: str) -> None:
    seen = probed(many, tmp_path, "run", 6, "stopped", *flags)
    assert len(seen["names"]) == 41
    known = [float(value) for value in seen["up"] if value]
    assert known == sorted(known)
    assert seen["found"] == ["gcl_m500_s1"]
    assert seen["count"] == "1 of 41"
    assert seen["page"] == colour
    assert seen["wide"] <= 0
    assert seen["hidden"] == seen["empty"] == 0
    assert seen["smallest"] >= 9
    assert seen["chosen"] == [
        [f"{name} accuracy against {axis}"]
        for axis in ("memory", "bytes kept")
        for name in ("Last", "Average")
    ]
    assert seen["loaded"] == []
    assert seen["sections"] == [f"all-{part}" for part in PARTS]


def test_what_is_unknown_is_sorted_last_both_ways(many: str, tmp_path: Path) -> None:
    seen = probed(many, tmp_path, "method", 1, "joint", "--window-size=1100,900")
    assert [value for value in seen["up"] if value][:2] == ["0", "0"]
    assert seen["up"][-2:] == seen["down"][-2:] == ["", ""]  # joint and zero-shot belong to no memory size
    assert seen["down"][0] == "2000"


def test_its_own_policy_lets_its_script_run_and_nothing_else(html: str, tmp_path: Path) -> None:
    own = tmp_path / "own.html"
    own.write_text(html, encoding="utf-8")
    done = chromium(tmp_path / "p1", "--dump-dom", own.as_uri())
    assert ":CONSOLE" not in done.stderr
    assert 'class="js"' in done.stdout
    foreign = tmp_path / "foreign.html"
    foreign.write_text(
        html.replace("</body>", "<script>document.title = 'taken'</script></body>"), encoding="utf-8"
    )
    done = chromium(tmp_path / "p2", "--dump-dom", foreign.as_uri())
    assert "Content Security Policy" in done.stderr
    assert "<title>taken" not in done.stdout


def test_on_paper_and_off_line(many: str, tmp_path: Path) -> None:
    """Prints, and asks nothing of the network: the browser's own log of it names no other address."""
    page, paper, log = (tmp_path / name for name in ("page.html", "paper.pdf", "net.json"))
    page.write_text(many, encoding="utf-8")
    done = chromium(
        tmp_path / "p1",
        f"--print-to-pdf={paper}",
        f"--log-net-log={log}",
        "--no-pdf-header-footer",
        page.as_uri(),
    )
    assert ":CONSOLE" not in done.stderr
    pages = paper.read_bytes().count(b"/Type /Page\n")
    assert 5 <= pages <= 40
    asked = re.findall(r'"url":"(https?://[^"/]+)', log.read_text(encoding="utf-8"))
    # Chromium greets its maker whatever the page; that the page names no address at all is tested elsewhere.
    asked = [host for host in asked if not host.endswith((".google.com", ".googleapis.com"))]
    assert asked == []
