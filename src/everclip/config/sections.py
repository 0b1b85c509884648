"""Define the sections of a config that are the same for every method."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from everclip.config.fields import kinds

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # numpy's legacy generator takes 32 bits
PLUG_IN = r"^([A-Za-z_]\w*(\.[A-Za-z_]\w*)*|[^\x00-\x1f\x7f:]+\.py)$"
"""A plug-in's name, a module or a file."""
TUNE = PLUG_IN.removesuffix("$") + r"(:[^\x00-\x1f\x7f]+)?$"
"""A plug-in's name, and a value after a colon."""
SCENARIO = PLUG_IN.replace(r"[A-Za-z_]\w*(", r"[A-Za-z_][\w-]*(", 1)
CODE = "a module such as my_package.my_plug_in or a file such as ./my_plug_in.py"
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]


class Section(BaseModel):
    """Values of exact types, without unknown keys.

    For a field that may be None the text ``none`` means None, and ``auto`` means as if it had not been given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none_and_auto(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        optional = {name for name, field in cls.model_fields.items() if NoneType in kinds(field)}
        return {
            name: None if name in optional and value == "none" else value
            for name, value in values.items()
            if not (name in optional and value == "auto")
        }


class Choice(Section):
    """A section with the options of a plug-in, which it names itself or another key does.

    They are taken as given; ``runs.resolve`` checks them against the plug-in's ``Config`` and fills in the rest.
    """

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The plug-in's options that were given, unchecked."""
        return dict(self.model_extra or {})


class Scenario(Choice):
    """How the data set is cut into tasks."""

    kind: str = Field(
        default="class-incremental",
        description="each task brings new classes, the same classes in a new domain, or more images, such as those with"
        " captions; or a scenario of your own; scenario.OPTION sets its options",
        pattern=SCENARIO,
        json_schema_extra={"allowed": f"a scenario's name, {CODE}"},
    )
    tasks: Count | list[Count] = Field(
        default=10,
        description="number of tasks, or the number of classes of each; domains are always one task each",
    )
    order: Seed | Literal["given", "icarl", "seed"] | list[Text] = Field(
        default=1993,
        description="order of the classes: seed of numpy's legacy permutation, as given by the data set, iCaRL's of"
        " CIFAR-100, by the run's own seed, or all names in order; of domains: by the run's seed or all names in order,"
        " else as given by the data set",
    )

    validation: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="for tuning: the first two tasks alone, tested on this fraction of their training images; the"
        " test set is never read",
    )

    @field_validator("tasks", "order")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("the list is empty: write at least one entry, or leave the key out")
        return value


class Memory(Choice):
    """Which images of earlier tasks are kept."""

    budget: Annotated[int, Field(ge=0)] | Literal["all"] | None = Field(
        default=200,
        description="images kept in all, over all classes seen",
        json_schema_extra={"allowed": 'a whole number from 0 or "all"'},
    )
    per_class: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="in place of budget: images kept of each class seen"
    )
    policy: str = Field(
        default="method",
        description="how they are chosen: as the method does; at random or by herding, equally per class; by shares"
        " of the tasks, halved with each step into the past or equal; all of them; none; or a policy of your own;"
        " memory.OPTION sets its options",
        pattern=PLUG_IN,
        json_schema_extra={"allowed": f'"method", a policy\'s name, {CODE}'},
    )

    @model_validator(mode="before")
    @classmethod
    def _in_place_of_budget(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("per_class") not in (None, "none", "auto"):
            return {"budget": None, **values}
        return values

    @model_validator(mode="after")
    def _one_size(self) -> Memory:
        if self.budget is not None and self.per_class is not None:
            raise ValueError("budget and per_class are both given: write one of them")
        if self.budget is None and self.per_class is None:
            raise ValueError("budget is none and per_class is not given: write one of them")
        return self

    def size(self, classes: int) -> int | Literal["all"]:
        """Number of images kept once that number of classes is seen."""
        return self.budget if self.budget is not None else (self.per_class or 0) * classes

    @property
    def tag(self) -> str:
        """The size in a folder's name: ``m200``, or ``k10`` for ten per class."""
        return f"m{self.budget}" if self.per_class is None else f"k{self.per_class}"

    @property
    def words(self) -> str:
        """The size in words."""
        return str(self.budget) if self.per_class is None else f"{self.per_class} per class"


class Train(Section):
    """Optimisation of one task. What is None here is filled in by ``resolve``."""

    epochs: Count | None = Field(default=None, description="passes over a task's images and the memory")
    steps: Count | None = Field(
        default=None,
        description="optimizer steps per task, in place of epochs; new images are then seen less often the larger the"
        " memory is",
    )
    batch_size: Count = Field(default=32, description="images per step")
    lr: float | None = Field(
        default=None, gt=0, description="peak learning rate of the image tower and the rest"
    )
    lr_text: float | None = Field(default=None, ge=0, description="of the text tower; 0 freezes it")
    lr_head: float | None = Field(default=None, gt=0, description="learning rate of newly initialised heads")
    weight_decay: float | None = Field(default=None, ge=0, description="of AdamW, on matrices only")
    warmup: float = Field(default=0.1, ge=0, le=1, description="fraction of steps used for warm-up")
    clip_norm: float | None = Field(default=1.0, gt=0, description="largest gradient norm; none is no limit")
    precision: Literal["fp32", "bf16", "bf16_text", "auto"] = Field(
        default="fp32",
        description="of the towers while they train; losses are always fp32. bf16_text: bf16 in the text tower alone."
        " auto: the fastest of them in a short measurement at the run's first step; the run keeps to what it found",
    )
    accumulate: Count = Field(
        default=1,
        description="pieces in which a batch goes through the towers, to save memory for one more forward pass; the"
        " loss compares the whole batch all the same",
    )
    checkpointing: bool = Field(
        default=False,
        description="compute the blocks of the towers again in the backward pass in place of keeping what is in them",
    )
    patch_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="fraction of the patches that a vision transformer leaves out of each training image, drawn each"
        " time",
    )
    compile: bool = Field(
        default=False, description="compile the blocks of the towers with torch.compile; on a GPU only"
    )
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="what a step with features, a loss or a gradient of nan or inf does: end the run, or be left out,"
        " up to ten in a row",
    )
    augment: Literal["none", "shift_flip", "crop_colour"] = Field(
        default="shift_flip",
        description="training views of an image: itself, shifted and mirrored, or cropped and recoloured (SimCLR's)",
    )
    captions: Literal["fixed", "random"] = Field(
        default="fixed",
        description='training caption of an image: "a photo of a {}.", or one of the templates drawn a step',
    )

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given: write one of them")
        return self


class Evaluate(Section):
    """Options for testing."""

    ahead: bool = Field(
        default=True,
        description="whether each stage is also tested on the task that comes next, for forward transfer",
    )


class Loader(Section):
    """Options for reading images."""

    workers: int = Field(
        default=2, ge=0, le=256, description="decoding threads; 0 decodes in the main thread"
    )
    cache_mb: int = Field(
        default=2048, ge=0, description="sets whose decoded pixels fit are kept in memory, in MB"
    )


class Cache(Section):
    """Keeping what the frozen part of the image tower gives, so that it runs once for each image."""

    trunk: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="whether what the frozen part of the image tower gives is kept. auto: wherever training then sees"
        " the pictures asked for, as nothing trains, or tune freezes a part and train.augment=none or cache.views is"
        " above 1; on says why where it cannot",
    )
    views: int = Field(
        default=1,
        ge=1,
        le=64,
        description="most fixed augmented views kept of a training image, one after another epoch by epoch: no more"
        " than are seen, and with trunk=auto none where hardly one would be seen again; 1 keeps the plain picture",
    )
    ram_mb: int = Field(
        default=4096, ge=0, description="above it, or where less memory is free, a file keeps it, in MB"
    )
    shared: bool = Field(
        default=False,
        description="whether it stays in a file under EVERCLIP_CACHE, for other runs of the same model and images",
    )


class Checkpoint(Section):
    """Options for the checkpoints that a stopped run continues from."""

    every: str = Field(
        default="task",
        description="when a run is saved: after each task and between its phases; or also after each N steps, or once N"
        " minutes have passed; a signal to stop saves it at the next step in any case",
        pattern=r"^(task|(steps|minutes):[1-9]\d{0,8})$",
        json_schema_extra={"allowed": '"task", "steps:N" or "minutes:N"'},
    )
    keep: Count = Field(
        default=2,
        description="checkpoints kept between tasks, and as many within the present one; older ones are deleted, and"
        " with one alone there is none to fall back to",
    )


class Distributed(Section):
    """Several processes under torchrun."""

    gather: Literal["gradient", "light"] = Field(
        default="gradient",
        description="whether each process computes the loss of the whole batch, or that of its own images and exchanges"
        " numbers per sample (FastCLIP), the same for less work in large batches; of gcl and gdro alone",
    )
    shard: bool = Field(
        default=False,
        description="whether each process keeps its part alone of the weights, gradients and moments of the towers that"
        " train (FSDP2), for towers that do not fit on a device; not of ewc",
    )
