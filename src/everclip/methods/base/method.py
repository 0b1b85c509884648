"""Define what a method is. The loop knows this class and no method's name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from everclip.config import MethodConfig
from everclip.data.images import ImageSet
from everclip.data.loader import Batch, Phase
from everclip.data.prompts import Prompts
from everclip.data.scenario import Task
from everclip.methods.base.cost import Passes
from everclip.methods.base.sample_table import SampleTable
from everclip.models.clip import Clip, Images
from everclip.models.depths import Depths


@dataclass(frozen=True)
class Capabilities:
    """What the engine has to know of a method.

    Args:
        trains: whether it has phases at all.
        uses_memory: whether exemplars are kept for it at all.
        fewest: exemplars per class from which on it uses them; if the memory allows fewer, none are kept.
        memory_policy: how its exemplars are chosen unless the config says otherwise: the name of a memory policy.
        needs_exemplars: whether it is undefined where old classes have no images: new classes come, and nothing is
            kept.
        needs_text: whether it needs class embeddings even if no tower trains: data of features without images may lack
            them.
        pairs: whether it can also learn from images with captions, which belong to no class.
        one_task: whether all tasks are learned at once (joint training).
        reads: what it takes from the image tower: features; pooled ones too; its last blocks, to copy them; or pixels
            or all of its blocks, which no kept activation can replace.
        depths: what it reads from the whole tower in one pass, if more than features; kept with the features.
        centers: whether it reads features that ``center=true`` subtracts a mean from.
        shares: whether several processes can share its batches: it gives the towers all images of the batch and no
            others, and draws no random numbers in them.
        light: whether its loss has a form for a part of the batch (``collectives.Share.light``).
        shards: whether processes can divide the towers' weights among them (``distributed.shard``): within a phase it
            neither reads nor writes them.
        fits: when it fits what it predicts with to features of trained towers: never, in a phase of its own, or at the
            task's end. Averaged towers have other features.
    """

    trains: bool = True
    uses_memory: bool = True
    fewest: int = 1
    memory_policy: str = "random"
    needs_exemplars: bool = False
    needs_text: bool = False
    pairs: bool = False
    one_task: bool = False
    reads: Literal["features", "pooled", "blocks", "pixels"] = "features"
    depths: Depths | None = None
    centers: bool = True
    shares: bool = True
    light: bool = False
    shards: bool = True
    fits: Literal["never", "phase", "end"] = "never"


class Classifier(nn.Module):
    """A map from images to scores, logits of a softmax when multiplied with ``to_logits``."""

    to_logits: float = 1.0
    any_name: bool = False
    """Whether it answers for classes by their names, learned or not."""


def sharpness(classifier: nn.Module) -> float:
    """Return the factor that turns a classifier's scores into logits of a softmax; 1 if it has none."""
    return classifier.to_logits if isinstance(classifier, Classifier) else 1.0


class TextClassifier(Classifier):
    """Cosine similarity of images to class embeddings ``weights``, ``[c, d]`` of unit length."""

    any_name = True

    def __init__(self, clip: Clip, weights: Float[Tensor, "c d"]) -> None:
        super().__init__()
        self.clip = clip
        self.to_logits = clip.logit_scale.exp().item()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, images: Images) -> Float[Tensor, "b c"]:
        return self.clip.encode_image(images) @ self.get_buffer("weights").T


class Method(nn.Module, ABC):
    """A continual-learning method: a loss, and whatever it keeps beside the model.

    A concrete method lives in a file of its own, is final, and has a nested ``Config`` whose fields are its
    hyper-parameters. Its modules and parameters are nn.Module members; per-sample state goes into ``tables``.

    What is set when, in each task:

        grow                    nothing takes a gradient; torch's random numbers are those of this task alone
        begin_task              ``tune`` has settled what it holds fixed; still nothing takes a gradient
        trains_on               the same
        learner, phases         the same
        begin_phase, trainable  for each phase; nothing takes a gradient yet. What ``trainable`` yields and ``tune``
                                does not hold takes gradients from then until the next phase, or the end of the task
        encode, loss, penalty,  in each step; features of ``clip`` are in fp32, whatever the towers' precision
        after_step
        features, scores, drop  low-rank updates are folded into the weights; the memory chooses
        end_task                the memory has chosen; parameters of the last phase may still take gradients
        classifier              after a task, and when a saved model predicts: nothing takes a gradient
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    passes: Passes = Passes()
    """What the method asks of the towers, for estimates of time and memory."""
    capabilities: Capabilities = Capabilities()
    """What the engine has to know of it; ``can`` changes it where an instance's options decide."""

    @property
    def seeded(self) -> bool:
        """Whether the run's seed can change its results, the tasks being the same."""
        return self.capabilities.trains or self.capabilities.uses_memory

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__()
        self.config = config
        self.prompts = prompts

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if misplaced := Capabilities.__dataclass_fields__.keys() & vars(cls).keys():
            name = min(misplaced)
            raise TypeError(f"{cls.__name__}.{name}: use capabilities = Capabilities({name}=...)")

    def can(self, **changes: Any) -> None:
        """Change this instance's capabilities."""
        self.capabilities = replace(self.capabilities, **changes)

    @classmethod
    def create(cls, config: MethodConfig, prompts: Prompts) -> Method:
        """Return the method for a config; a plug-in that wraps another method returns that one."""
        return cls(config, prompts)

    # Structure and stages ---------------------------------------------------------------------------------------

    def learner(self, task: Task) -> Method:
        """Return the method whose phases and steps train in a task: this one, unless it delegates to another."""
        return self

    def phases(self, task: Task) -> list[Phase]:
        """Return the training stages of a task; an empty list trains nothing."""
        return [Phase()]

    def grow(self, clip: Clip, task: Task) -> None:
        """Add the structure (heads, towers) that a task needs. A resume replays it and then loads the state."""

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Prepare before the phases of a task, with its new and memory images.

        A run resumed within a task calls it again, on the model and state of the start of the task, and then loads the
        state in which it stopped. So what it makes (teachers, counts) need not be in the state, but what steps change
        must be.
        """

    def trains_on(self, images: ImageSet) -> NDArray[np.bool_]:
        """Return which new and memory images the task's phases may see: all by default. Called after ``begin_task``."""
        return np.ones(len(images), dtype=bool)

    def begin_phase(self, clip: Clip, phase: Phase) -> None:
        """Prepare a phase, before ``trainable`` is called; a resumed run calls it again, as with ``begin_task``."""

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        """Yield parameters to train in a phase: both towers and the logit scale, unless the method says otherwise."""
        yield from (parameter for _, parameter in clip.image_parameters())
        yield from (parameter for _, parameter in clip.text_parameters())
        yield clip.logit_scale

    # Training ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        """Return the features the loss needs; the only place that calls a tower."""

    @abstractmethod
    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        """Return the scalar terms; their sum is what backward is called on."""

    def penalty(self, clip: Clip) -> dict[str, Tensor]:
        """Return the scalar terms on the parameters, added to the loss."""
        return {}

    def after_step(self, clip: Clip) -> None:
        """Act after each optimizer step."""

    def diagnostics(self) -> dict[str, float]:
        """Return numbers of the last step worth a line in the log."""
        return {}

    def class_weights(self) -> dict[int, float]:
        """Return label -> weight of its loss at the last step, for methods that reweight classes."""
        return {}

    def class_losses(self) -> dict[int, float]:
        """Return label -> mean loss of its images since the last call, for classes met since; empty if unknown."""
        return {}

    def features(self, clip: Clip, images: Images) -> Float[Tensor, "b d"]:
        """Return unit-length features of images, for memory policies that choose by them."""
        return clip.encode_image(images)

    def scores(self, clip: Clip, batches: Iterable[Batch]) -> dict[int, float]:
        """Return id -> score of plain images of a finished task and of the memory, for memory policies that read it."""
        return {sample: 1.0 for batch in batches for sample in batch.ids.tolist()}

    # Between tasks ----------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, SampleTable]:
        """Return per-sample and per-group state by name; saved with the method."""
        return {}

    def drop(self, ids: NDArray[Any]) -> None:
        """Forget per-sample state of images that left the memory."""

    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Finish a task after its phases, with plain batches of its images and of the memory, already updated."""

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        """Return a map from images to scores ``[b, len(labels)]``; built once per evaluation."""
        return TextClassifier(clip, self.embed(clip, labels))

    def embed(self, clip: Clip, labels: Iterable[int]) -> Float[Tensor, "c d"]:
        """Return the unit-length embeddings of classes, over the data set's templates."""
        return clip.class_embeddings([self.prompts.names[label] for label in labels], self.prompts.templates)

    def encoder(self, clip: Clip) -> Clip:
        """Return the model whose features are searched, for data with captions."""
        return clip

    # State ------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of the tables, so that ``state_dict`` holds all that the method keeps."""
        return {name: table.state_dict() for name, table in self.tables().items()}

    def set_extra_state(self, state: Any) -> None:
        """Restore the tables."""
        for name, table in self.tables().items():
            table.load_state_dict(state[name])

    def state_bytes(self) -> int:
        """Return bytes of everything kept beside the model."""
        tensors = sum(p.nbytes for p in self.parameters()) + sum(b.nbytes for b in self.buffers())
        return tensors + sum(table.nbytes for table in self.tables().values())


class Untrained(Method):
    """A method without phases of its own."""

    def phases(self, task: Task) -> list[Phase]:
        return []

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no phase to encode for")

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no phase with a loss")


def captions(clip: Clip, prompts: Prompts, batch: Batch) -> Float[Tensor, "b d"]:
    """Return an embedding per image, of its own caption or one for its class; equal captions are encoded once."""
    if batch.texts is not None:
        return clip.encode_text(batch.texts)
    return clip.encode_text(prompts.caption(batch.labels.tolist(), batch.rng("captions")))


def pairs(clip: Clip, prompts: Prompts, batch: Batch) -> dict[str, Tensor]:
    """Return ``image`` and ``text`` features ``[b, d]`` of a batch of (image, caption) pairs."""
    image, text = clip.encode_image(batch.images), captions(clip, prompts, batch)
    return {"image": image, "text": text, "scale": clip.logit_scale.exp()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its labels on ``device``.

    Pictures move later, when they are normalised, as uint8. Kept activations move in the type they are kept in and
    become fp32 here: under bf16 autocast a CPU cannot concatenate fp16 tensors.
    """
    labels, domains, current = (part.to(device) for part in (batch.labels, batch.domains, batch.current))
    which = None if batch.which is None else batch.which.to(device)
    batch = replace(batch, labels=labels, domains=domains, current=current, which=which)
    if batch.images.dtype == torch.uint8:
        return batch
    second = None if batch.second is None else batch.second.to(device).float()
    return replace(batch, images=batch.images.to(device).float(), second=second)
