from __future__ import annotations

from collections.abc import Callable

import pytest

from everclip.cli.app import main

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command line; gives its exit code, stdout and stderr."""

    def said(*tokens: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(token) for token in tokens])
        out, err = capsys.readouterr()
        return code, out, err

    return said
