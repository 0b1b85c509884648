"""Export a graph for each encoder and one for the classifier, beside the graph of the whole model.

    image.onnx          images float32 [batch, 3, size, size] -> embeddings [batch, d] of unit length; also features,
                        where the classifier reads others than the embeddings
    text.onnx           tokens int64 [batch, length] -> embeddings [batch, d] of unit length
    classifier.onnx     features, or embeddings where there are none -> logits [batch, classes]
    text.json           what tokens are; the tokenizer's own files lie beside it. "tokenizer_kwargs", where there are
                        some, are what open_clip does around it: clean a text, take away separators

So embeddings can be kept in an index and searched by texts, and classified later.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from everclip.errors import RunError, UserError
from everclip.export import quiet, write_json
from everclip.export.shared import vocabulary
from everclip.export.shared.session import LOGITS, as_input, opened, outputs
from everclip.export.shared.tracing import trace
from everclip.inference.model import Deployed
from everclip.methods.base.method import TextClassifier
from everclip.methods.shared.statistics import Linear
from everclip.metrics.calibration import probabilities
from everclip.models.clip import Clip
from everclip.models.foreign import HFTokenizer
from everclip.models.savable import write_text_tower

TOLERANCE = 1e-3
"""Largest difference of a probability, and of a number of an embedding."""
PROMPTS = ("a photo of a cat.", "b", "two dogs and a red bicycle")


class _Image(nn.Module):
    """Images to embeddings, and to the features of a linear classifier."""

    def __init__(self, encoder: Clip, classifier: Linear | None) -> None:
        super().__init__()
        self.clip, self.classifier = encoder, classifier

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Tensor | tuple[Tensor, Tensor]:
        inputs = images if self.clip.trunk is None else self.clip.trunk(images)
        embeddings = self.clip.encode_image(inputs)
        return embeddings if self.classifier is None else (embeddings, self.classifier.encode(inputs).float())


class _Text(nn.Module):
    """Tokens to embeddings."""

    def __init__(self, encoder: Clip) -> None:
        super().__init__()
        self.model = encoder.model

    def forward(self, tokens: Int64[Tensor, "b length"]) -> Float[Tensor, "b d"]:
        return nn.functional.normalize(self.model.encode_text(tokens).float(), dim=-1)


class _Classifier(nn.Module):
    """Embeddings, or features, to logits."""

    def __init__(self, model: Deployed) -> None:
        super().__init__()
        self.linear, self.to_logits = _linear(model), model.to_logits

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        return (self.linear(features) * self.to_logits).float()


def _linear(model: Deployed) -> nn.Module:
    """Return the classifier as a map from what ``image.onnx`` gives."""
    classifier = model.classifier
    if isinstance(classifier, TextClassifier):
        weights = classifier.get_buffer("weights")
        linear = nn.Linear(weights.shape[1], len(weights), bias=False, device=weights.device)
        linear.weight.data = weights.clone()
        return linear
    assert isinstance(classifier, Linear)
    linear = copy.copy(classifier)
    linear.encode = torch.Tensor.double
    return linear


def check(model: Deployed) -> None:
    """Raise UserError where the classifier is not a function of embeddings or features."""
    if not isinstance(model.classifier, TextClassifier | Linear):
        raise UserError(f"--encoders separate: {model.spec} classifies with towers of its own; leave it out")


def write(model: Deployed, folder: Path, pictures: UInt8[Tensor, "b 3 s s"]) -> dict[str, Any]:
    """Write the three graphs, and compare their outputs with torch.

    Returns:
        ``largest_difference`` of a probability, that of texts' embeddings as ``text``, and the graphs' outputs.

    Raises:
        UserError: the exporter does not know an operation.
        RunError: a difference is above ``TOLERANCE``.
    """
    encoder, classifier = model.encoder, model.classifier
    linear = classifier if isinstance(classifier, Linear) else None
    with torch.no_grad():
        images = encoder.normalise(pictures[:2])
        embeddings = encoder.encode_image(images)
        features = embeddings if linear is None else linear.encode(images).float()
    if torch.equal(features, embeddings):
        linear = None
    names = ["embeddings"] if linear is None else ["embeddings", "features"]
    length = encoder.text.truncated(())[1]
    side = encoder.image_size
    blank = torch.zeros(2, 3, side, side, device=encoder.device)
    tokens = encoder.tokenize(PROMPTS).to(encoder.device)
    tokens = nn.functional.pad(tokens, (0, length - tokens.shape[1]), value=_padding(encoder))
    with quiet():
        for name, module, example, given, made in (
            ("image", _Image(encoder, linear), blank, "images", names),
            ("text", _Text(encoder), tokens[:2], "tokens", ["embeddings"]),
            ("classifier", _Classifier(model), features, names[-1], [LOGITS]),
        ):
            trace(model.spec, module, example, given, made).save(folder / f"{name}.onnx")
    _describe(encoder, folder, length)
    found = outputs(opened(folder / "image.onnx"), as_input(encoder, pictures))
    logits = outputs(opened(folder / "classifier.onnx"), found[-1])[0]
    worst = float(np.abs(probabilities(logits) - probabilities(model.logits(pictures))).max())
    with torch.no_grad():
        ours = encoder.encode_text(PROMPTS).cpu().numpy()
    theirs = outputs(opened(folder / "text.onnx"), tokens.cpu().numpy())[0]
    text = float(np.abs(theirs - ours).max())
    if not (most := np.max([worst, text])) <= TOLERANCE:  # max() might pass nan by
        raise RunError(f"the separate graphs give other results than torch (by {most:.2g})")
    return {"largest_difference": worst, "text": text, "image_outputs": names}


def _padding(encoder: Clip) -> int:
    """Return the token that fills up a short text."""
    return int(encoder.text.tokenizer(["a"])[0, -1])


def _describe(encoder: Clip, folder: Path, length: int) -> None:
    """Write text.json and the tokenizer."""
    # a text tower of open_clip's own may have one of Hugging Face too (SigLIP, CLIPA)
    own = not isinstance(encoder.text.tokenizer, HFTokenizer)
    if own:
        vocabulary.write(folder, length)
    else:
        write_text_tower(folder, encoder.model, encoder.text.tokenizer)
    order = "the start token, those of the text, the end token" if own else "those that tokenizer.json gives"
    around = encoder.config["text_cfg"].get("tokenizer_kwargs")
    write_json(
        folder / "text.json",
        {
            "input": f"tokens: int64 [batch, length]: {order}, padding",
            "output": "embeddings: float32 [batch, d], of unit length; cosines to those of image.onnx compare them",
            "length": length,
            "padding": _padding(encoder),
            "tokenizer": "vocab.json and merges.txt" if own else "tokenizer.json",
            **({"tokenizer_kwargs": around} if around else {}),
        },
    )
