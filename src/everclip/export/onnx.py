"""Export an ONNX graph from pictures to scores, with all that a program without torch needs beside it.

    model.onnx          images float32 [batch, 3, size, size] -> logits float32 [batch, classes]; any batch size
                        and, for a closed form that keeps thresholds, unknown_score float32 [batch]
    labels.json         the classes, in the order of the columns
    preprocess.json     how a picture becomes ``images``
    example.py          a standalone program: numpy, Pillow and onnxruntime

The classes are fixed: where the text tower classifies, the graph has the image tower and the class embeddings.
softmax(logits) are the probabilities that ``everclip predict`` shows, a fitted temperature included.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from everclip._version import __version__
from everclip.errors import RunError, needing
from everclip.export import Written, quiet, write_json
from everclip.export.shared.session import as_input, opened, outputs
from everclip.export.shared.tracing import trace
from everclip.inference.model import Deployed
from everclip.inference.predict import shares_of
from everclip.inference.unknown import LOGIT, judged
from everclip.metrics.calibration import probabilities
from everclip.models.clip import Clip

TOLERANCE = 1e-3
"""Largest difference of a probability, and of an unknown score as a fraction of the span of all scores, the pictures'
and the kept ones."""
LEAST_SPAN = 0.1
"""Least span of unknown scores, as a fraction of the largest: the error of scores that are all alike goes by their
size."""
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Rates of false alarms whose thresholds are written, as far as the held-out images allow them."""
EXAMPLE = Path(__file__).parents[1] / "assets" / "export" / "onnx_example.py"


def write(model: Deployed, folder: Path, pictures: UInt8[Tensor, "b 3 s s"]) -> Written:
    """Write the graph and its files, and run it with onnxruntime beside torch.

    Raises:
        UserError: the packages of the extra ``onnx`` are missing, the model gives no probabilities, or the exporter
            does not know an operation.
        RunError: a probability differs from torch's by more than ``TOLERANCE``.
    """
    with needing("--format onnx", "onnx"), quiet():
        import onnx
        import onnxruntime  # noqa: F401  (its absence is said before anything is traced)
        import onnxscript  # noqa: F401  (the exporter's)

        program = _trace(model)
        program.save(folder / "model.onnx")
        graph = onnx.load(folder / "model.onnx", load_external_data=False)
        onnx.helper.set_model_props(graph, {"classes": json.dumps(model.names, ensure_ascii=False)})
        onnx.save(graph, folder / "model.onnx")
    write_json(folder / "labels.json", list(model.names))
    write_json(folder / "preprocess.json", preprocessing(model.clip) | _thresholds(model))
    shutil.copyfile(EXAMPLE, folder / "example.py")
    return Written(_compare(model, opened(folder / "model.onnx"), pictures))


class _Graph(nn.Module):
    """Map images, normalised as preprocess.json says, to logits and, if it has thresholds, to unknown scores."""

    def __init__(self, model: Deployed) -> None:
        super().__init__()
        self.clip, self.classifier, self.to_logits = model.clip, model.classifier, model.to_logits
        self.judge = model.judge if _judges(model) else None

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b c"] | tuple[Float[Tensor, "b c"], Float[Tensor, " b"]]:
        inputs = images if self.clip.trunk is None else self.clip.trunk(images)
        if self.judge is None:
            return (self.classifier(inputs) * self.to_logits).float()
        scores, unknown = self.judge(inputs)
        return (scores * self.to_logits).float(), unknown[:, 0].float()


def _judges(model: Deployed) -> bool:
    """Return whether a model has thresholds for a score that does not follow from its logits."""
    return model.unknown is not None and model.judge.names == (model.unknown.score,) != (LOGIT,)


def _thresholds(model: Deployed) -> dict[str, Any]:
    """Return what preprocess.json says of ``unknown_score``: rates of false alarms and their thresholds."""
    held = model.unknown
    if held is None or not _judges(model):
        return {}
    table = {f"{rate:g}": held.threshold(rate) for rate in RATES if rate >= held.finest}
    words = "unknown_score: float32 [batch]; above a threshold: a picture of no class; rate of false alarms: threshold"
    return {"unknown": {"output": words, "score": held.score, "thresholds": table}}


def _trace(model: Deployed) -> Any:
    """Return the graph, with a batch of any size."""
    side = model.clip.image_size
    batch = torch.zeros(2, 3, side, side, device=model.clip.device)
    made = ["logits", "unknown_score"] if _judges(model) else ["logits"]
    return trace(model.spec, _Graph(model), batch, "images", made)


def _compare(model: Deployed, session: Any, pictures: UInt8[Tensor, "b 3 s s"]) -> dict[str, Any]:
    """Return differences between onnxruntime and torch on the pictures."""
    ours = model.logits(pictures)
    shares = shares_of(model, ours)
    theirs, *scores = outputs(session, as_input(model.clip, pictures))
    apart = {}
    if _judges(model) and model.unknown is not None:
        mine = judged(model, model.judge, pictures)[1][:, 0]
        known = np.concatenate([mine, model.unknown.scores])
        off = np.abs(mine - scores[0]).max() / max(np.ptp(known), LEAST_SPAN * np.abs(known).max(), 1e-9)
        apart = {"largest_difference_of_unknown_scores": float(off)}
        if not off <= TOLERANCE:  # nan is no small difference either
            raise RunError(f"onnxruntime's unknown scores differ from torch's by {off:.2g} of their span")
    worst = float(np.abs(shares - probabilities(theirs)).max())
    same = int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    if not worst <= TOLERANCE:
        raise RunError(f"onnxruntime's probabilities differ from torch's by up to {worst:.2g}")
    finite = np.isfinite(ours)
    return {
        "pictures": len(ours),
        "same_class": same,
        "largest_difference_of_logits": float(np.abs(ours[finite] - theirs[finite]).max(initial=0)),
        "largest_difference_of_probabilities": worst,
        **apart,
    }


def preprocessing(clip: Clip) -> dict[str, Any]:
    """Describe how a picture becomes the graph's input, as ``example.py`` does it."""
    known = clip.preprocessing()
    return {
        "everclip": __version__,
        "input": "images: float32 [batch, 3, size, size], RGB, (value / 255 - mean) / std",
        "output": "logits: float32 [batch, classes]; softmax: probabilities; -inf: a class never trained",
        "size": clip.image_size,
        "resize_mode": known["resize_mode"],
        # "random" is random only in training
        "interpolation": "bilinear" if known["interpolation"] == "bilinear" else "bicubic",
        "fill_color": known["fill_color"],
        "mean": list(clip.mean),
        "std": list(clip.std),
    }
