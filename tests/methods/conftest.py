"""Models for tests that care about the kind of the image tower."""

from __future__ import annotations

import pytest

from everclip.models import zoo
from everclip.models.clip import Clip
from tests.methods.stages import TIMM, clip_with


@pytest.fixture(scope="session")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spec of a small model with an EfficientNet as its image tower."""
    folder = tmp_path_factory.mktemp("convolutional") / "model"
    return clip_with(folder, **TIMM, timm_model_name="test_efficientnet")


@pytest.fixture(params=["ViT", "EfficientNet"])
def model(request: pytest.FixtureRequest, toy: str, convolutional: str) -> str:
    """Spec of a small model, of either kind."""
    return {"ViT": toy, "EfficientNet": convolutional}[request.param]


@pytest.fixture(scope="module")
def clip(toy: str) -> Clip:
    """A small ViT, loaded anew for each file of tests."""
    return zoo.load(toy)
