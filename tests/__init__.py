from __future__ import annotations

import os

SHAPES = "EVERCLIP_SHAPES"
"""The environment variable that says to check shapes in the modules of tests which tests start as processes."""

if os.environ.get(SHAPES):
    from tests import shapes

    shapes.install()
