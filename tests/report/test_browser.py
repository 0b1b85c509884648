"""The report page in a browser: what its script does, and what its policy forbids."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.report.page import Page

PROBE = """
<script id="probe">
addEventListener("load", () => {
  const table = document.querySelector("table.sortable"), box = document.querySelector("input.search");
  const heads = [...table.tHead.rows[0].cells], out = {};
  const column = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].textContent);
  heads[0].querySelector("[role=button]").click(); out.names = column(0);
  heads[1].querySelector("[role=button]").click(); out.up = column(1).map(Number);
  heads[1].querySelector("[role=button]").click(); out.down = column(1).map(Number);
  box.value = "SCRIPT"; box.dispatchEvent(new Event("input"));
  out.found = [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
  URL.createObjectURL = (blob) => { blob.text().then((text) => {
    out.svg = text; out.wide = document.documentElement.scrollWidth - innerWidth;
    const pre = document.createElement("pre"); pre.id = "probe-result";
    pre.textContent = JSON.stringify(out); document.body.append(pre); }); return "#"; };
  document.querySelector("button.save-svg").click();
});
</script>
"""


def chromium(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("needs chromium")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    flags = [f"--disable-{name}" for name in quiet] + ["--headless", "--no-sandbox", "--no-first-run"]
    profile.mkdir()
    command = [binary, *flags, f"--user-data-dir={profile}", "--enable-logging=stderr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize("width", [1100, 500])
def test_in_a_browser(html: str, tmp_path: Path, width: int) -> None:
    # The page's own policy forbids foreign scripts, so the probe needs a copy without it.
    loose = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", html)
    probed = tmp_path / "probed.html"
    probed.write_text(loose.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    size_flag = f"--window-size={width},900"
    done = chromium(tmp_path / "p1", size_flag, "--virtual-time-budget=3000", "--dump-dom", probed.as_uri())
    assert ":CONSOLE" not in done.stderr
    page = Page(done.stdout[done.stdout.index('<pre id="probe-result">') :].split("</pre>")[0] + "</pre>")
    seen = json.loads("".join(page.words))
    assert len(seen["names"]) == 100
    assert seen["up"] == sorted(seen["up"])
    assert seen["down"] == sorted(seen["up"], reverse=True)
    assert seen["found"] == ["<script>alert(1)</script>"]
    assert seen["wide"] <= 0  # nothing makes the page scroll sideways
    root = ElementTree.fromstring(seen["svg"])
    assert root.attrib["width"] == "920"
    assert "var(" not in seen["svg"]


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
