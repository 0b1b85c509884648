"""Trace modules as ONNX graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everclip.errors import UserError


def trace(spec: str, module: nn.Module, example: Tensor, given: str, made: Sequence[str]) -> Any:
    """Return a module of one input as a program that can be saved, for batches of any size.

    Args:
        spec: what the model was opened by, for the message.
        example: a batch.
        given, made: names of the input and the outputs.

    Raises:
        UserError: the exporter does not know an operation.
    """
    try:
        with torch.no_grad():
            return torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                input_names=[given],
                output_names=[*made],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{spec} cannot become ONNX ({reason}): use --format open-clip") from error
