"""Stand in for a model when features are given: an image tower that passes rows on, and fixed class embeddings.

Whatever runs on images runs on such rows unchanged, unless it trains a tower, reads pictures or needs other prompts. It
is saved as a folder like that of ``Clip.save``, whose config has the ``KEY`` in place of open_clip's towers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from safetensors.torch import load_file
from torch import Tensor, nn

from everclip.data.formats import features
from everclip.data.prompts import clean
from everclip.errors import UserError
from everclip.models.catalogue import FEATURES
from everclip.models.clip import Clip, Images
from everclip.models.savable import WEIGHTS_FILE
from everclip.models.trunk import Beside

KEY = "features"
"""Key of the width in a saved model's config."""
LOGIT_SCALE = 100.0
"""That of CLIP's released models."""


class Rows(nn.Identity):
    """The image tower."""

    image_size = 0
    preprocess_cfg: Mapping[str, Any] = {}


class _Towers(nn.Module):
    """Both towers, under open_clip's names."""

    text: Tensor

    def __init__(self, text: Float32[Tensor, "c d"]) -> None:
        super().__init__()
        self.visual = Rows()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(LOGIT_SCALE)))
        self.register_buffer("text", text)

    def encode_image(self, rows: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Return the rows."""
        return self.visual(rows)

    def encode_text(self, tokens: Int64[Tensor, "p 1"]) -> Float[Tensor, "p d"]:
        """Return the embedding of each class, whose place is its token."""
        return self.text[tokens[:, 0]]


class Vectors(Clip):
    """A model of features: an image is its features, a prompt the bare name of a class.

    Attributes:
        width: numbers per row.
    """

    def __init__(
        self, width: int, name: str, classes: Sequence[str] = (), text: Float32[Tensor, "c d"] | None = None
    ) -> None:
        """Make one for rows of ``width``; ``classes`` are the names of the classes in ``text``, in its order."""
        place = {known: number for number, known in enumerate(classes)}

        def tokenizer(prompts: Sequence[str]) -> Int64[Tensor, "p 1"]:
            for prompt in prompts:
                if prompt not in place:
                    raise UserError(f'{name} has no text feature of "{prompt}": add it to text_features')
            return torch.tensor([[place[prompt]] for prompt in prompts])

        self.width = width
        towers = _Towers(torch.zeros(0, width) if text is None else text)
        super().__init__(towers, {KEY: width, "classes": list(classes)}, tokenizer, name)

    def blank(self, count: int = 1) -> Images:
        return torch.zeros(count, self.width)

    def normalise(self, images: Images) -> Float[Tensor, "b d"]:
        """Put rows on the model's device. Raises UserError for rows of another width."""
        if images.ndim != 2 or images.shape[1] != self.width:
            raise UserError(f"features have {images.shape[1]} numbers, not {self.width}: use the model's own")
        return images.to(self.device, torch.float32, non_blocking=True)

    def class_embeddings(self, names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "c d"]:
        """Return the given embeddings, unit length. Raises UserError where there are none."""
        if not templates or not len(self.model.text):
            raise UserError(f"{self.name} has no class embeddings: add text_features to the file")
        return super().class_embeddings(names, templates)

    def cut(self, blocks: int, beside: Beside | None = None) -> None:
        """Raise UserError: there is nothing to cut off."""
        raise UserError("features have no tower whose activations could be kept: leave cache.trunk out")


def load(spec: str, image_size: int | None) -> Vectors:
    """Return the model of ``features:FILE`` or ``features:WIDTH``. Raises UserError where there is none."""
    if image_size is not None:
        raise UserError(f"image_size={image_size}: {spec} reads no images: leave it out")
    what = spec.removeprefix(FEATURES)
    if re.fullmatch("[1-9][0-9]{0,4}", what):
        return Vectors(int(what), spec)
    found = features.read(Path(what))
    names = [] if found.text is None else [clean(name) for name in found.names]
    text = None if found.text is None else torch.from_numpy(found.text)
    return Vectors(found.store.rows.shape[1], spec, names, text)


def of_folder(folder: Path, config: Mapping[str, Any], spec: str) -> Vectors:
    """Return the model that was saved in a folder. Raises ValueError where there is none."""
    width, names = config[KEY], config.get("classes")
    state = load_file(folder / WEIGHTS_FILE)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    if (
        type(width) is not int
        or not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or shapes != {"logit_scale": (), "text": (len(names), width)}
    ):
        raise ValueError(f"its config and {WEIGHTS_FILE} do not go together")
    made = Vectors(width, spec, names, state["text"])
    made.model.load_state_dict(state)
    return made
