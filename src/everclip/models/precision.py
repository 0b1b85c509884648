"""Choose the precision of the towers in training: fp32, bf16, bf16 only for the text tower, or the fastest.

bf16 pays only where the hardware has units for it (AVX512-BF16, AMX, a GPU), and not for every layer: a depthwise
convolution can run slower in bf16 than in fp32, and a processor without such units emulates bf16 in fp32. So a
convolutional image tower may need fp32 and the transformer beside it bf16. ``auto`` measures: it times the distinct
layers of both towers, each on inputs of its real shape, forward and backward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from everclip.models.attention import CpuAttention
from everclip.models.clip import Clip
from everclip.models.passes import UNITS

Precision = Literal["fp32", "bf16", "bf16_text"]

IMAGES = 2
"""Number of images to time a layer on; prompts are short, so a batch of them is used."""
GAIN = 0.9
"""bf16 is chosen for a tower if it takes at most this fraction of fp32's time: it has to be worth its rounding."""
_RUNS = 2
_PROMPTS = tuple(f"a photo of thing {number}." for number in range(16))


@dataclass(frozen=True)
class Choice:
    """The outcome of ``auto``.

    Args:
        fp32, bf16, bf16_text: seconds that the towers' layers took; None where the device alone decides.
    """

    precision: Precision
    fp32: float | None = None
    bf16: float | None = None
    bf16_text: float | None = None

    def words(self) -> str:
        """Return the reason, for a line."""
        if self.fp32 is None or self.bf16 is None or self.bf16_text is None:
            return ""
        both, text = self.bf16 / self.fp32, self.bf16_text / self.fp32
        return f" (bf16 takes {both:.2f} of fp32's time, in the text tower only {text:.2f})"


@contextmanager
def autocast(clip: Clip, precision: Precision) -> Iterator[None]:
    """While open, compute the towers in this precision; parameters and features stay fp32."""
    both = torch.autocast(clip.device.type, torch.bfloat16, enabled=precision == "bf16")
    with clip.running(text_bf16=precision == "bf16_text"), both:
        yield


def attention(clip: Clip, precision: Precision) -> AbstractContextManager[Any]:
    """Return fast attention where it helps; keep it open for a whole step, as checkpointed blocks run twice."""
    gains = precision == "bf16" or clip.multihead
    return CpuAttention() if clip.device.type == "cpu" and gains else nullcontext()


@contextmanager
def training(clip: Clip, precision: Precision) -> Iterator[None]:
    """Compute the towers as in a step while it is open."""
    with attention(clip, precision), autocast(clip, precision):
        yield


def choose(clip: Clip, device: torch.device | None = None) -> Choice:
    """Return the faster precision for training the parameters that take a gradient now. This takes fractions of a
    second on a CPU, no time on a GPU.

    Args:
        device: where the model will train; default: where it is now.
    """
    device = device or clip.device
    if device.type == "cuda":
        return Choice("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32")
    if device.type != "cpu":
        return Choice("fp32")
    image = _layers(clip.model.visual, lambda: clip.encode_image(clip.blank()))
    text = _layers(clip.model, lambda: clip.encode_text(_PROMPTS))
    kinds: tuple[Precision, Precision] = ("fp32", "bf16")
    (image_32, image_16), (text_32, text_16) = (
        [_seconds(clip, layers, kind) for kind in kinds] for layers in (image, text)
    )
    fp32, bf16, bf16_text = image_32 + text_32, image_16 + text_16, image_32 + text_16
    chosen: Precision = "fp32"
    if image_16 < GAIN * image_32 and bf16 < GAIN * fp32:
        chosen = "bf16"
    elif text_16 < GAIN * text_32:
        chosen = "bf16_text"
    return Choice(chosen, fp32, bf16, bf16_text)


def _seconds(clip: Clip, layers: Iterable[_Layer], kind: Precision) -> float:
    with training(clip, kind):
        return sum(layer.count * min(layer.seconds() for _ in range(_RUNS)) for layer in layers)


@dataclass(eq=False)
class _Layer:
    """A layer, what it is called with, and how many of its kind the tower has."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    count: int = 1

    def seconds(self) -> float:
        """Return the processor's seconds of a forward and, if it trains, a backward pass."""
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        args = [_input(argument, bool(trained)) for argument in self.args]
        entered = [argument for argument in args if isinstance(argument, Tensor) and argument.requires_grad]
        start = time.process_time()
        output = self.module(*args, **self.kwargs)
        output = output[0] if isinstance(output, tuple) else output
        if trained and output.requires_grad:
            torch.autograd.grad(output.float().sum(), trained + entered, allow_unused=True)
        return time.process_time() - start


def _input(argument: Any, trained: bool) -> Any:
    """Return a copy of an input, with gradient where the layer trains; one image becomes several."""
    if not isinstance(argument, Tensor):
        return argument
    copied = argument.detach().repeat_interleave(IMAGES if len(argument) == 1 else 1, 0)
    return copied.requires_grad_(trained and argument.is_floating_point())


def _layers(tower: nn.Module, run: Callable[[], object]) -> list[_Layer]:
    """Return the distinct layers of a tower that ``run`` calls, by kind, shape of weights and shape of input."""
    found: dict[tuple[Any, ...], _Layer] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [*module.parameters(), *(argument for argument in args if isinstance(argument, Tensor))]
        key = (type(module), *((tuple(tensor.shape), tensor.requires_grad) for tensor in tensors))
        if key in found:
            found[key].count += 1
        elif any(isinstance(argument, Tensor) for argument in args):
            found[key] = _Layer(module, args, kwargs)

    with ExitStack() as hooks, torch.no_grad():
        for unit in _units(tower):
            hooks.enter_context(unit.register_forward_pre_hook(note, with_kwargs=True))
        run()
    return [*found.values()]


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a tower to time as one layer: those of ``UNITS``, and modules without children."""
    children = [*module.children()]
    if isinstance(module, UNITS) or not children:
        yield module
        return
    for child in children:
        yield from _units(child)
