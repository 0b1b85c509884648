"""The page of ``benchmarks.serving``, which has the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.jobs import machine

Json = dict[str, Any]


def page(found: Json, about: Mapping[str, str]) -> str:
    """The page.

    Args:
        found: what was measured.
        about: ``seconds``, ``clients`` and ``model`` in words.
    """
    seconds, clients = about["seconds"], about["clients"]
    loads = " and ".join(f"{one:.1f}" for one in found["load"])
    best = max(found["direct"], key=lambda row: row["rate"])
    quick = min(found["direct"], key=lambda row: row["p50"])
    serve, one, switch, bad = found["serve"], found["one"], found["switch"], found["malformed"]

    def row(name: str, rate: float, p50: float | None, p99: float | None) -> str:
        cells = ["" if value is None else f"{1000 * value:.0f}" for value in (p50, p99)]
        return f"| {name} | {rate:.1f} | {rate / best['rate']:.2f} | {cells[0]} | {cells[1]} |"

    lines = [
        "# `everclip serve` compared with direct prediction",
        "",
        f"`EVERCLIP_DATA=... python -m benchmarks.serving`: {about['model']}, sent as files by {clients} clients on",
        f"the loopback interface for {seconds} s, on the same cores as the server. {machine()}, with other work",
        f"running (load averages {loads} before, and at the end of the minute with clients): only ratios are",
        "meaningful.",
        "",
        "| | pictures per second | ratio | p50, ms | p99, ms |",
        "|---|---|---|---|---|",
        row("direct, batches of 64 (the better of two)", best["rate"], None, None),
        row("direct, one after another (the better of two)", 1 / quick["p50"], quick["p50"], quick["p99"]),
        row(f"served, {clients} clients", serve["rate"], serve["p50"], serve["p99"]),
        row("served, one client", one["rate"], one["p50"], one["p99"]),
        "",
        "*Direct* is `everclip.inference.predict.answers`, which is `everclip predict` without its start. It ran before"
        " and after the served requests: "
        + " and ".join(f"{row['rate']:.1f} pictures per second" for row in found["direct"])
        + f". Failed requests: {len(serve['failed'])}.",
        "",
        "## A version switched and rolled back under load",
        "",
        f"The same clients for {switch['seconds']:.0f} s. The link is moved from v1 to v2 (`mv -T`), then v2 is"
        " rolled back.",
        "",
        "| | |",
        "|---|---|",
        f"| requests answered | {switch['answers']:,} |",
        f"| of them by version | {', '.join(f'{name}: {count:,}' for name, count in switch['versions'].items())} |",
        f"| failed | {len(switch['failed'])} |",
        f"| seconds from the change to the first answer of the new version | {switch['there']:.1f};"
        f" rollback {switch['back']:.1f} |",
        f"| p99, longest, ms | {1000 * switch['p99']:.0f}, {1000 * switch['longest']:.0f} |",
        "",
        "## 1,000 malformed requests",
        "",
        "Fourteen kinds, such as noise, truncated pictures, headers that claim billions of pixels, deep JSON, odd"
        " lengths and chunks (`tests/serving/malformed.py`), eight at a time.",
        "",
        "| | |",
        "|---|---|",
        f"| answers by status | {', '.join(f'{name}: {count}' for name, count in bad['statuses'].items())} |",
        f"| answers that are not one line of JSON with an expected status | {len(bad['wrong'])} |",
        f"| tracebacks in answers | {bad['tracebacks']} |",
        f"| crashes | {0 if found['alive'] else 1} |",
        f"| tracebacks in the server's log | {sum('Traceback' in line for line in found['log'])} |",
        f"| a good request is answered as before | {'yes' if bad['same'] else 'no'} |",
        "",
        "Status 200: the changed picture is still a valid one. Incomplete requests get no answer.",
        "",
        "## Killed",
        "",
        f"Killed with -9 under load and started again on the same port: after {found['restart']:.0f} s, "
        + ("the same version gives the same answer." if found["same"] else "ANOTHER VERSION ANSWERS."),
        "",
    ]
    return "\n".join(lines)
