"""Run an exported graph with onnxruntime where torch would run the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from everclip.models.clip import Clip

LOGITS = "logits"
ROWS = 32
"""Rows that a graph is given at a time."""


def opened(path: Path) -> Any:
    """Return the session of a graph, on the processor, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def as_input(clip: Clip, pictures: UInt8[Tensor, "b 3 s s"]) -> Float32[np.ndarray, "b 3 s s"]:
    """Return pictures as a graph takes them, computed as preprocess.json says: without torch."""
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (clip.mean, clip.std))
    return (pictures.cpu().numpy().astype(np.float32) / 255 - mean) / std


def outputs(session: Any, given: np.ndarray) -> list[np.ndarray]:
    """Return all outputs of a graph of one input, for rows of any number."""
    key = session.get_inputs()[0].name
    parts = [session.run(None, {key: part}) for part in np.array_split(given, -(-len(given) // ROWS))]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


class Running(nn.Module):
    """An exported graph as a classifier.

    Args:
        clip: the model that was exported, whose preprocessing the graph expects.
    """

    def __init__(self, path: Path, clip: Clip) -> None:
        super().__init__()
        self._session, self._clip = opened(path), [clip]  # in a list: no part of this module

    def forward(self, images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b c"]:
        """Return logits of pictures."""
        return torch.from_numpy(self._session.run([LOGITS], {"images": as_input(self._clip[0], images)})[0])
