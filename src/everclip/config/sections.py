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
"""Matches a plug-in's name, a module or a file."""
TUNE = PLUG_IN.removesuffix("$") + r"(:[^\x00-\x1f\x7f]+)?$"
"""Matches a plug-in's name, with an optional value after a colon."""
SCENARIO = PLUG_IN.replace(r"[A-Za-z_]\w*(", r"[A-Za-z_][\w-]*(", 1)
CODE = "a module such as my_package.my_plug_in or a file such as ./my_plug_in.py"
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]


class Section(BaseModel):
    """Values of exact types, without unknown keys.

    For a field that may be None the text ``none`` means None, and ``auto`` resets it as if it had not been given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none_and_auto(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        optional = {name for name, field in cls.model_fields.items() if NoneType in kinds(field.annotation)}
        return {
            name: None if name in optional and value == "none" else value
            for name, value in values.items()
            if not (name in optional and value == "auto")
        }


class Choice(Section):
    """A section with the options of a plug-in, which the section itself or another key names.

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
        description="what each task brings: new classes, the same classes in a new domain, or more images, such as"
        " images with captions; or a scenario of your own; scenario.OPTION sets its options",
        pattern=SCENARIO,
        json_schema_extra={"allowed": f"a scenario's name, {CODE}"},
    )
    tasks: Count | list[Count] = Field(
        default=10,
        description="number of tasks, or a list with the number of classes per task; a domain is always one"
        " task",
    )
    order: Seed | Literal["given", "icarl", "seed"] | list[Text] = Field(
        default=1993,
        description="class order: the seed of a numpy (legacy) permutation, the data set's own, iCaRL's"
        " order of CIFAR-100, the run's seed, or a list of all names; for domains the run's seed or a list"
        " of all names, else the data set's own",
    )
    validation: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="for tuning: use only the first tasks (validation_tasks) and test on this held-out fraction"
        " of their training images; the test set is never read",
    )
    validation_tasks: Count = Field(default=2, description="for tuning: how many of the first tasks are used")

    @field_validator("tasks", "order")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("the list is empty: give at least one entry, or leave the key out")
        return value


class Memory(Choice):
    """Which images of earlier tasks are kept."""

    budget: Annotated[int, Field(ge=0)] | Literal["all"] | None = Field(
        default=200,
        description="exemplars in total, over all classes seen so far",
        json_schema_extra={"allowed": 'a whole number from 0 or "all"'},
    )
    per_class: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="exemplars per class seen so far, instead of budget"
    )
    policy: str = Field(
        default="method",
        description="how exemplars are chosen: the method's own way (method); equally many per class (random,"
        " herding, score); a share per task, halving with age or equal (exp, equal_task); all; none; or a policy of"
        " your own; memory.OPTION sets its options",
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
            raise ValueError("budget and per_class are both given: use one of them")
        if self.budget is None and self.per_class is None:
            raise ValueError("budget is none and per_class is not given: use one of them")
        return self

    def size(self, classes: int) -> int | Literal["all"]:
        """Return the number of exemplars once this number of classes has been seen."""
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
        description="optimizer steps per task, instead of epochs; the larger the memory, the less often new"
        " images are then seen",
    )
    batch_size: Count = Field(default=32, description="images per step")
    lr: float | None = Field(
        default=None, gt=0, description="peak learning rate of everything except the text tower and new heads"
    )
    lr_text: float | None = Field(
        default=None, ge=0, description="peak learning rate of the text tower; 0 freezes it"
    )
    lr_head: float | None = Field(default=None, gt=0, description="learning rate of newly initialised heads")
    weight_decay: float | None = Field(
        default=None, ge=0, description="weight decay of AdamW, on matrices only"
    )
    warmup: float = Field(
        default=0.1, ge=0, le=1, description="fraction of steps used for warm-up, at most 500"
    )
    clip_norm: float | None = Field(
        default=1.0, gt=0, description="gradients are clipped to this norm; none: no clipping"
    )
    precision: Literal["fp32", "bf16", "bf16_text", "auto"] = Field(
        default="fp32",
        description="precision of the towers in training; losses are always fp32. bf16_text: bf16 in the"
        " text tower only. auto: the fastest in a short measurement at the first step, kept for the whole"
        " run",
    )
    accumulate: Count = Field(
        default=1,
        description="number of chunks in which a batch passes through the towers, which saves memory at"
        " the cost of one more forward pass; the loss still covers the whole batch",
    )
    checkpointing: bool = Field(
        default=False,
        description="recompute the towers' blocks in the backward pass instead of keeping their activations",
    )
    patch_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="fraction of patches that a vision transformer drops from each training image, drawn"
        " anew each time",
    )
    compile: bool = Field(
        default=False, description="compile the towers' blocks with torch.compile; GPU only"
    )
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="what to do when features, loss or gradient of a step are nan or inf: stop the run, or"
        " skip up to ten steps in a row",
    )
    augment: Literal["none", "shift_flip", "crop_colour"] = Field(
        default="shift_flip",
        description="training views of an image: unchanged, shifted and mirrored, or cropped with colour"
        " changes (SimCLR)",
    )
    captions: Literal["fixed", "random"] = Field(
        default="fixed",
        description='training caption of an image: "a photo of a {}.", or a template drawn at random in'
        " each step",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given: use one of them")
        return self


class Evaluate(Section):
    """Options for testing."""

    ahead: bool = Field(
        default=True,
        description="whether to also test on the next task after each task, for forward transfer",
    )


class Loader(Section):
    """Options for reading images."""

    workers: int = Field(
        default=2, ge=0, le=256, description="decoding threads; 0 decodes in the main thread"
    )
    cache_mb: int = Field(
        default=2048,
        ge=0,
        description="memory for decoded images in MB; a data set that fits is decoded once",
    )


class Cache(Section):
    """Keeping the output of the image tower's frozen part, so that it runs once per image."""

    trunk: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="whether to keep the output of the image tower's frozen part. auto: wherever training"
        " still sees the requested views, that is if nothing trains, or if tune freezes a part and"
        " train.augment=none or cache.views is above 1; on: always; if impossible, refuse and say why",
    )
    views: int = Field(
        default=1,
        ge=1,
        le=64,
        description="largest number of fixed augmented views kept per training image, one per epoch in"
        " turn: never more than the epochs see, and with trunk=auto none if hardly any would be seen again;"
        " 1 keeps the unchanged image",
    )
    ram_mb: int = Field(
        default=4096,
        ge=0,
        description="largest size of the output in memory, in MB; above it, or with less memory free, a file is used",
    )
    shared: bool = Field(
        default=False,
        description="whether to keep the output in a file under EVERCLIP_CACHE for other runs with the same model"
        " and images",
    )


class Checkpoint(Section):
    """Options for the checkpoints that a stopped run continues from."""

    every: str = Field(
        default="task",
        description="when to save a run: after each task and between its phases; or also every N steps or N"
        " minutes; a signal to stop always saves it at the next step",
        pattern=r"^(task|(steps|minutes):[1-9]\d{0,8})$",
        json_schema_extra={"allowed": '"task", "steps:N" or "minutes:N"'},
    )
    keep: Count = Field(
        default=2,
        description="number of checkpoints kept between tasks, and as many within the current task; older"
        " ones are deleted; with 1 there is none to fall back to",
    )


class Distributed(Section):
    """Several processes under torchrun."""

    gather: Literal["gradient", "light"] = Field(
        default="gradient",
        description="whether each process computes the loss of the whole batch (gradient), or only of its own"
        " images and exchanges per-sample numbers as FastCLIP does (light): the same result with less work"
        " for large batches, gcl and gdro only",
    )
    shard: bool = Field(
        default=False,
        description="whether each process keeps only its part of the trained towers' weights, gradients and"
        " moments (FSDP2), for towers that do not fit on one device; not with ewc",
    )
