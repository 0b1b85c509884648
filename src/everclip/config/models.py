"""Define what can be set: the pydantic models behind a config, each field with its default, range and meaning."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from everclip.config.sections import (
    CODE,
    PLUG_IN,
    TUNE,
    Cache,
    Checkpoint,
    Choice,
    Distributed,
    Evaluate,
    Loader,
    Memory,
    Scenario,
    Section,
    Seed,
    Text,
    Train,
)
from everclip.errors import shown

NEWEST = 3
"""The current generation of defaults. An option whose default changed keeps the earlier one in its ``before``."""


class MethodConfig(Section):
    """Base of a method's ``Config``: its hyper-parameters, every field with a description.

    Fields are int, float, bool, str, Literal, lists or flat tables (dict) of these, or None; no tuples, which
    TOML does not have.
    """

    search: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """This method's own options to tune, besides rates and epochs: for each the values to try, in order, including
    the default."""
    search_first: ClassVar[tuple[str, ...]] = ()
    """Those of ``search`` to tune before rates and epochs, since the best rates depend on them."""
    search_only: ClassVar[dict[str, tuple[str, Any]]] = {}
    """Those of ``search`` that are read only where another option has a value: no trial is spent on them elsewhere."""
    recommends: ClassVar[dict[str, Any]] = {}
    """Values of ``[train]`` for this method where the user gave none, for example ``{"epochs": 1}``."""
    recommended_before: ClassVar[dict[str, Any] | None] = None
    """The same under ``defaults = 1``; None if it has not changed."""
    rates: ClassVar[tuple[str, ...] | None] = None
    """The rates of ``[train]`` that this method has parameters for, such as ``("lr_head",)``; None: those of what
    ``tune`` trains, and of a head where there is one."""
    wraps: ClassVar[tuple[str, str] | None] = None
    """For a method that trains with another's loss: the two fields with that method's name and options."""


class MethodChoice(Choice):
    """A method's name and its options."""

    name: str = Field(
        default="gdro",
        description="a shipped method, or a module or file of your own; method.OPTION sets its options",
        pattern=PLUG_IN,
        json_schema_extra={"allowed": f"a method's name, {CODE}"},
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, values: Any) -> Any:
        return {"name": values} if isinstance(values, str) else values


class Config(Section):
    """Everything that decides what a run computes. Immutable."""

    data: Text = Field(
        default="emoji",
        description="data set: a folder of class folders, or SOURCE:ARGUMENT, such as imagefolder:/path",
    )
    model: Text = Field(
        default="lite",
        description="lite, an open_clip NAME:TAG, hf-hub:ORG/REPO, local-dir:/path or a run directory",
    )
    image_size: int | None = Field(
        default=None, ge=16, le=4096, description="side of the input images in pixels; none: the model's own"
    )
    templates: Text | list[Text] | None = Field(
        default=None,
        description="prompts with {} for the class name: a list, a file, or a shipped list (cifar100,"
        " imagenet, simple); none: the data set's own",
    )
    classnames: Text | None = Field(
        default=None, description="file with readable class names; none: the data set's own"
    )
    center: bool = Field(
        default=False,
        description="subtract the mean image feature of the first task's training images from all image"
        " features, then normalise them again; refused where a method reads other features",
    )
    tune: str = Field(
        default="full",
        description="which part of the model trains, such as image, top:2 (the last two blocks of each"
        " tower) or a plug-in of your own; everclip tunings lists them; tuning.OPTION sets further options",
        pattern=TUNE,
        json_schema_extra={"allowed": f"NAME or NAME:VALUE, where NAME is a way of tuning, {CODE}"},
    )
    device: str = Field(
        default="auto",
        description="device to compute on; auto: the GPU if there is one",
        pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d{1,3})?)$",
        json_schema_extra={"allowed": '"auto", "cpu", "cuda", "cuda:1", "xpu" or "mps"'},
    )
    seed: Seed = Field(
        default=0,
        description="seed of the memory, data order, augmented views and initialisation; of the class order"
        " only with scenario.order=seed",
    )
    smoke: bool = Field(
        default=False,
        description="trial run: the first two tasks, 32 training and 32 test images, two steps per phase",
    )
    defaults: Literal[1, 2, 3] = Field(
        default=NEWEST,
        description="generation of defaults that fills in what is not given: 3 (current), or 1 or 2 (earlier); a"
        " run directory without the key has 1",
    )
    references: Literal["auto", "none", "all"] = Field(
        default="auto",
        description="whether to measure the best of ncm, ridge and slda on the frozen features, in addition to"
        " zero-shot. auto: if the method trains, unless one pass over the training images costs more than"
        " 20 % of the planned passes (training on an image counts as three)",
        json_schema_extra={"before": "none"},
    )
    tuned_on: Text | None = Field(
        default=None,
        description="for the record: the data that the settings were chosen on; written by everclip tune",
    )
    fork: str | None = Field(
        default=None,
        description="start from the state of a finished run after its first K tasks: the run in RUNS (a run"
        " directory, a folder of them or a pattern) with the same model, data, tasks, method and seed",
        pattern=r"^[^\x00-\x1f\x7f]+@[1-9]\d{0,8}$",
        json_schema_extra={"allowed": '"RUNS@K" or none'},
    )
    trackers: list[Text] = Field(
        default=[],
        description="trackers that receive the log besides metrics.jsonl: shipped ones, each installed as"
        " an extra, or your own; tracker.NAME.OPTION sets a tracker's options",
        json_schema_extra={"allowed": f"a tracker's name, {CODE}, or a list of them"},
    )
    out: Text | None = Field(default=None, description="the run directory; none: runs/DATE_data_method_mM_sS")
    method: MethodChoice = Field(default=MethodChoice(), description="the method and its options")
    source: Choice = Field(default=Choice(), description="options of the data source")
    tuning: Choice = Field(
        default=Choice(), description="options of the way of tuning, besides the value after its colon"
    )
    tracker: Choice = Field(default=Choice(), description="a table of options per tracker")
    scenario: Scenario = Field(default=Scenario(), description="the tasks")
    memory: Memory = Field(default=Memory(), description="exemplars")
    train: Train = Field(default=Train(), description="optimisation")
    evaluate: Evaluate = Field(default=Evaluate(), description="testing")
    loader: Loader = Field(default=Loader(), description="reading images")
    cache: Cache = Field(default=Cache(), description="keeping activations of the frozen part")
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
                raise ValueError("the list is empty: give at least one template, or leave the key out")
            bad = [template for template in value if template.count("{}") != 1]
            if bad:
                raise ValueError(f'{shown(bad[0])} must contain "{{}}" once, where the class name goes')
        return value
