"""What a data set that is not as it should be is answered with."""

from __future__ import annotations

import pytest

from everclip import data
from everclip.cli.app import main
from tests.complaints import complaint


def refusal(spec: str, home: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The line that loading ``spec`` ends with. ``everclip datasets check`` must print it too, with the address
    ``home``, and exit with 1."""
    text = complaint(data.load, spec)
    assert main(["datasets", "check", spec]) == 1
    assert capsys.readouterr().out == f"{text}\nnot complete: {spec} (available from {home})\n"
    return text
