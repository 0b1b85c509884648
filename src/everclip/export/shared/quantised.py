"""Quantise an exported graph to 8 bits (onnxruntime, static), and measure the accuracy that this costs.

    model.int8.onnx     beside model.onnx, with the same input and the same output

Convolutions and products with fixed matrices are quantised; the classifier, norms, sums and softmax stay as they are.
Weights become int8 per channel, in 7 bits, as sums of two products of 8 bits do not fit into 16 on processors without
VNNI; activations become uint8, from the smallest to the largest value that they have on calibration images. Measured on
lite: benchmarks/int8.md.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from everclip.data.images import ImageSet, content_id
from everclip.data.inventory import contents
from everclip.errors import RunError, UserError, check_range
from everclip.export.shared.session import Running, as_input
from everclip.inference import assess
from everclip.inference.learned import Learned, repeated
from everclip.inference.model import Deployed
from everclip.models.clip import Clip

FILE = "model.int8.onnx"
MOST = 256
"""Largest number of images that ranges are taken from."""
_BATCH = 16
_PRODUCTS = ("Conv", "Gemm", "MatMul")
KINDS = [*_PRODUCTS, "Clip", "Relu"]
"""What is quantised: the last two become part of a product."""


class Dropped(Exception):
    """More accuracy is lost than allowed.

    Args:
        lost: the numbers that ``write`` would have returned.
        words: the same as a message.
    """

    def __init__(self, lost: dict[str, Any], words: str) -> None:
        super().__init__(words)
        self.lost = lost


@dataclass(frozen=True, eq=False)
class Samples:
    """Images to quantise with.

    Args:
        calibrate: images from which activations get their ranges.
        test: images to measure accuracy on, none of them among the others; labels are the model's.
        max_drop: percentage points that may be lost.
    """

    calibrate: ImageSet
    test: ImageSet
    max_drop: float


def samples(
    model: Deployed,
    kept: tuple[ImageSet, ImageSet] | None,
    given: tuple[str | None, str | None],
    max_drop: float,
) -> Samples:
    """Return the images to calibrate and to test on.

    Args:
        kept: a version's exemplars and check images, labelled with the model's labels.
        given: ``--calibrate`` and ``--check``, data sets that are used instead of those.

    Raises:
        UserError: there are none, one has a class that the model does not know, or ``max_drop`` is no share.
    """
    check_range("--max-drop", max_drop, 0, 100, "percentage points")
    found = []
    for place, (option, what) in enumerate((("--calibrate", "no exemplars"), ("--check", "no check images"))):
        data = given[place]
        if data is not None:
            found.append(assess.labelled(model, assess.load(data, model), f"{option} {data}"))
            continue
        images = None if kept is None else kept[place].of_classes(model.labels)
        if images is None or not len(images):
            raise UserError(f"--int8: {model.spec} keeps {what}: give images in CLASS folders with {option}")
        found.append(images)
    calibrate, test = found
    if given[1] is not None:
        repeated(model.spec, test, given[1])
    # by the bytes, as Learned compares them: a source may know its images by something else
    tested = Learned(contents(test.rows, lambda row: content_id(test.store.read(row))), None)
    apart = calibrate.select(~tested.among(calibrate))
    if not len(apart):
        raise UserError("--int8: all images of --calibrate are also in --check: keep some apart")
    return Samples(apart, test, max_drop)


def write(model: Deployed, folder: Path, asked: Samples) -> dict[str, Any]:
    """Write the quantised graph beside model.onnx, and compare the two.

    Returns:
        accuracies in 0..1 (``accuracy``, ``accuracy_fp32``), ``drop`` in percentage points, ``images``,
        ``same_class``, ``calibrated_on``, ``bytes`` and ``bytes_fp32``.

    Raises:
        Dropped: the quantised graph loses more than ``max_drop``.
        RunError: no image can be read.
    """
    whole, small = folder / "model.onnx", folder / FILE
    calibrated = quantise(whole, small, model.clip, asked.calibrate)
    pixels = assess.decoded(asked.test, model.clip, assess.KEPT_BYTES)
    graphs = (Running(path, model.clip) for path in (whole, small))
    models = [replace(model, build=lambda _, graph=graph: graph) for graph in graphs]
    before, after = (assess.answers(one, asked.test, pixels) for one in models)
    same = before.scores.scores.argmax(1) == after.scores.scores.argmax(1)
    drop = 100 * (before.accuracy - after.accuracy)
    lost = {
        "images": len(same),
        "accuracy": after.accuracy,
        "accuracy_fp32": before.accuracy,
        "drop": round(drop, 2),
        "max_drop": asked.max_drop,
        "same_class": int(same.sum()),
        "calibrated_on": calibrated,
        "bytes": small.stat().st_size,
        "bytes_fp32": whole.stat().st_size,
    }
    if drop > asked.max_drop + 1e-9:
        raise Dropped(lost, f"{told(lost)}; {asked.max_drop:g} allowed")
    return lost


def told(lost: dict[str, Any]) -> str:
    """Return what ``write`` has found, in words."""
    return (
        f"int8: {lost['accuracy']:.1%} on {lost['images']} images, fp32 {lost['accuracy_fp32']:.1%},"
        f" {lost['drop']:.1f} points lost; {lost['bytes'] / 1e6:.1f} MB, fp32 {lost['bytes_fp32'] / 1e6:.1f} MB"
    )


def quantise(whole: Path, small: Path, clip: Clip, images: ImageSet, **other: Any) -> int:
    """Write a graph's quantised form, calibrated on at most ``MOST`` images spread over ``images``.

    Args:
        other: arguments of onnxruntime's ``quantize_static`` in place of the usual ones.

    Returns:
        how many could be read.

    Raises:
        RunError: none could be read.
    """
    import onnx
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(ort.CalibrationDataReader):
        """Batches of pictures, as onnxruntime asks for them."""

        def get_next(self) -> Any:
            return next(batches, None)

    batches = _batches(clip, images, read := [])
    with tempfile.TemporaryDirectory(dir=small.parent) as scratch:
        ready = Path(scratch) / "ready.onnx"
        # the exporter has inferred symbolic shapes already
        quant_pre_process(whole, ready, skip_symbolic_shape=True)
        usual = {
            "quant_format": ort.QuantFormat.QDQ,
            "op_types_to_quantize": KINDS,
            "nodes_to_exclude": _last(onnx.load(ready, load_external_data=False).graph),
            "per_channel": True,
            "reduce_range": True,
            "activation_type": ort.QuantType.QUInt8,
            "weight_type": ort.QuantType.QInt8,
            "extra_options": {"MatMulConstBOnly": True},
        }
        ort.quantize_static(ready, small, Reader(), **(usual | other))
        graph = onnx.load(small)
        _merge(graph.graph)
        onnx.save(graph, small)
    return sum(read)


def _batches(
    clip: Clip, images: ImageSet, read: list[int]
) -> Iterator[dict[str, Float32[np.ndarray, "b 3 s s"]]]:
    """Yield batches of images spread over a set, and note in ``read`` how many each has. Raises RunError for none."""
    rows = images.spread(MOST).rows
    pixels = assess.decoded(images, clip)
    for start in range(0, len(rows), _BATCH):
        found, good = pixels.load(rows[start : start + _BATCH])
        if good.any():
            read.append(len(found))
            yield {"images": as_input(clip, found)}
    if not read:  # onnxruntime's own error would not say what is wrong
        raise RunError(f"not one of {len(images)} images to calibrate on can be read")


def _last(graph: Any) -> list[str]:
    """Return the names of the products that no other product follows: those of the classifier."""
    made = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type in _PRODUCTS]
    waiting, leading = [name for node in products for name in node.input], set()
    while waiting:
        node = made.get(waiting.pop())
        if node is not None and node.name not in leading:
            leading.add(node.name)
            waiting += node.input
    return [node.name for node in products if node.name not in leading]


def _merge(graph: Any) -> None:
    """Keep one of the constants that are alike: those of a tower that runs twice, on a picture and its mirror image."""
    first: dict[bytes, str] = {}
    double: dict[str, str] = {}
    for one in list(graph.initializer):
        name, one.name = one.name, ""
        known = first.setdefault(one.SerializeToString(), name)
        one.name = name
        if known != name:
            double[name] = known
            graph.initializer.remove(one)
    for node in graph.node:
        node.input[:] = [double.get(name, name) for name in node.input]
