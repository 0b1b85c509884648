"""What is said of input that is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from everclip.errors import UserError


def complaint(call: Callable[..., object], *args: object, **options: object) -> str:
    """What a call that must refuse its input says, in one line."""
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    said = str(caught.value)
    assert "\n" not in said
    return said
