"""What can be set: the pydantic models behind a config, each field with its default, range and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from everclip.config.fields import kinds, shown

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # numpy's legacy generator takes 32 bits
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


class MethodConfig(Section):
    """Base of a method's ``Config``: its hyper-parameters, every field with a description.

    Fields are int, float, bool, str, Literal, lists or flat tables (dict) of these, or None; no tuples, which
    TOML does not have.
    """

    recommends: ClassVar[dict[str, Any]] = {}
    """Values of ``[train]`` for this method where the user gave none, such as ``{"epochs": 1}``."""


class MethodChoice(Section):
    """A method's name, and its options as given; ``method_config`` checks them against the method."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        default="gdro",
        description="a method of the package, or a module of your own; method.OPTION sets its options",
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        json_schema_extra={"allowed": "a method's name, or a module such as my_package.my_method"},
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, values: Any) -> Any:
        return {"name": values} if isinstance(values, str) else values

    @property
    def options(self) -> dict[str, Any]:
        """The options given, unchecked."""
        return dict(self.model_extra or {})


class Scenario(Section):
    """How the data set is cut into tasks."""

    kind: Literal["class-incremental", "domain-incremental"] = Field(
        default="class-incremental",
        description="each task brings new classes, or the same classes in a new domain",
    )
    tasks: Count | list[Count] = Field(
        default=10,
        description="number of tasks, or the number of classes of each; domains are always one task each",
    )
    order: Seed | Literal["given", "icarl"] | list[Text] = Field(
        default=1993,
        description="order of the classes: seed of numpy's legacy permutation, as given by the data set, iCaRL's of"
        " CIFAR-100, or all names in order; of domains: all names in order, else as given by the data set",
    )

    validation: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="for tuning: the first two tasks alone, tested on this share of their training images; the test"
        " set is never read",
    )

    @field_validator("tasks", "order")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("the list is empty: write at least one entry, or leave the key out")
        return value


class Memory(Section):
    """Which images of earlier tasks are kept."""

    budget: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        default=200, description="images kept in all, over all classes seen"
    )
    policy: Literal["method", "random", "herding", "exp", "equal_task", "all", "none"] = Field(
        default="method",
        description="how they are chosen: as the method does; at random or by herding, equally many a class; by shares"
        " of the tasks, halved with each step into the past or equal; all of them; none",
    )


class Train(Section):
    """Optimisation of one task. What is None here is filled in by ``resolve``."""

    epochs: Count | None = Field(default=None, description="passes over a task's images and the memory")
    steps: Count | None = Field(default=None, description="optimizer steps a task, in place of epochs")
    batch_size: Count = Field(default=32, description="images a step")
    lr: float | None = Field(
        default=None, gt=0, description="peak learning rate of the image tower and the rest"
    )
    lr_text: float | None = Field(default=None, ge=0, description="of the text tower; 0 freezes it")
    lr_head: float | None = Field(default=None, gt=0, description="of heads that start from nothing")
    weight_decay: float | None = Field(default=None, ge=0, description="of AdamW, on matrices only")
    warmup: float = Field(
        default=0.1, ge=0, le=1, description="share of a task's steps with a rising learning rate"
    )
    clip_norm: float | None = Field(default=1.0, gt=0, description="largest gradient norm; none is no limit")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        default="fp32",
        description="of the towers while they train; losses are always fp32. auto: bf16 where a short measurement at"
        " the run's first step finds it faster; the run keeps to what it found",
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
        description="share of the patches that a vision transformer leaves out of each training image, drawn each time",
    )
    compile: bool = Field(
        default=False, description="compile the blocks of the towers with torch.compile; on a GPU only"
    )
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="what a step with features, a loss or a gradient of nan or inf does: end the run, or be left out,"
        " up to ten in a row",
    )
    augment: Literal["none", "shift_flip"] = Field(
        default="shift_flip", description="training views of an image"
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


class Loader(Section):
    """How images are read."""

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
        description="fixed augmented views kept of a training image, one drawn at each step; 1 keeps the plain picture",
    )
    ram_mb: int = Field(
        default=4096, ge=0, description="above it, or where less memory is free, a file keeps it, in MB"
    )
    shared: bool = Field(
        default=False,
        description="whether it stays in a file under EVERCLIP_CACHE, for other runs of the same model and images",
    )


class Checkpoint(Section):
    """What a stopped run continues from."""

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
        " numbers a sample (FastCLIP), the same for less work in large batches; of gcl and gdro alone",
    )


class Config(Section):
    """Everything that decides what a run computes. Immutable."""

    data: Text = Field(
        default="emoji", description="data set: SOURCE or SOURCE:ARGUMENT, such as imagefolder:/path"
    )
    model: Text = Field(
        default="lite",
        description="lite, an open_clip NAME:TAG, hf-hub:ORG/REPO, local-dir:/path or a run directory",
    )
    image_size: int | None = Field(
        default=None, ge=16, le=4096, description="pixels a side; none is the model's own"
    )
    templates: Text | list[Text] | None = Field(
        default=None,
        description="prompts with {} for the class name: a list, a file, or one that is shipped (cifar100, imagenet,"
        " simple); none: the data set's",
    )
    classnames: Text | None = Field(
        default=None, description="file with the classes' readable names; none: the data set's"
    )
    center: bool = Field(
        default=False,
        description="subtract from image features their mean over the first task's training images, and make them"
        " unit length again",
    )
    tune: str = Field(
        default="full",
        description="what of the model trains: both towers, one, the last K blocks of each, low-rank updates of rank R,"
        " or only what the method adds",
        pattern=r"^(full|image|text|head|(top|lora):[1-9]\d{0,3})$",
        json_schema_extra={"allowed": '"full", "image", "text", "top:K", "lora:R" or "head"'},
    )
    device: str = Field(
        default="auto",
        description="where to compute; auto is the GPU if there is one",
        pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d{1,3})?)$",
        json_schema_extra={"allowed": '"auto", "cpu", "cuda", "cuda:1", "xpu" or "mps"'},
    )
    seed: Seed = Field(
        default=0, description="of memory, data order, views and initialisation (not of the class order)"
    )
    smoke: bool = Field(
        default=False,
        description="a trial run: the first two tasks, 32 images of each part, two steps a phase",
    )
    tuned_on: Text | None = Field(
        default=None, description="for the record: what the settings were chosen on; everclip tune writes it"
    )
    fork: str | None = Field(
        default=None,
        description="begin as a finished run stood after its first K tasks: the one of RUNS (a run directory, a folder"
        " of them or a pattern) that has the same model, data, tasks, method and seed",
        pattern=r"^[^\x00-\x1f\x7f]+@[1-9]\d{0,8}$",
        json_schema_extra={"allowed": '"RUNS@K" or none'},
    )
    trackers: list[Text] = Field(
        default=[],
        description="where the log goes beside metrics.jsonl; each is an extra of the package",
        json_schema_extra={"allowed": '"tensorboard", "wandb" or "mlflow", or a list of them'},
    )
    out: Text | None = Field(default=None, description="the run directory; none: runs/DATE_data_method_mM_sS")
    method: MethodChoice = Field(default=MethodChoice(), description="the method and its options")
    scenario: Scenario = Field(default=Scenario(), description="the tasks")
    memory: Memory = Field(default=Memory(), description="exemplars")
    train: Train = Field(default=Train(), description="optimisation")
    loader: Loader = Field(default=Loader(), description="reading images")
    cache: Cache = Field(default=Cache(), description="keeping the frozen part's activations")
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="continuing")
    distributed: Distributed = Field(default=Distributed(), description="several processes")

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("templates")
    @classmethod
    def _templates(cls, value: Any) -> Any:
        if isinstance(value, list):
            if not value:
                raise ValueError("the list is empty: write at least one template, or leave the key out")
            bad = [template for template in value if template.count("{}") != 1]
            if bad:
                raise ValueError(f'{shown(bad[0])} must contain "{{}}" once, where the class name goes')
        return value
