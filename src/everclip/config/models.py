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

NEWEST = 2
"""The present generation of defaults. A changed default of an option keeps the earlier one in its ``before``."""


class MethodConfig(Section):
    """Base of a method's ``Config``: its hyper-parameters, every field with a description.

    Fields are int, float, bool, str, Literal, lists or flat tables (dict) of these, or None; no tuples, which
    TOML does not have.
    """

    search: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Options that are this method's own to tune, beside rates and epochs, each with the values to try in order, the
    default among them."""
    recommends: ClassVar[dict[str, Any]] = {}
    """Values of ``[train]`` for this method where the user gave none, such as ``{"epochs": 1}``."""
    recommended_before: ClassVar[dict[str, Any] | None] = None
    """The same under ``defaults = 1``; None: no other."""
    wraps: ClassVar[tuple[str, str] | None] = None
    """The two fields that hold another method's name and its options, for a method that trains with another's loss."""


class MethodChoice(Choice):
    """A method's name and its options."""

    name: str = Field(
        default="gdro",
        description="a method of the package, or a module or a file of your own; method.OPTION sets its options",
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
        description="what of the model trains, such as image, top:2 (the last two blocks of each tower) or a way of"
        " your own; everclip tunings lists them; tuning.OPTION sets further options",
        pattern=TUNE,
        json_schema_extra={"allowed": f"NAME or NAME:VALUE, where NAME is a way's name, {CODE}"},
    )
    device: str = Field(
        default="auto",
        description="where to compute; auto is the GPU if there is one",
        pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d{1,3})?)$",
        json_schema_extra={"allowed": '"auto", "cpu", "cuda", "cuda:1", "xpu" or "mps"'},
    )
    seed: Seed = Field(
        default=0,
        description="of memory, data order, views and initialisation (of the class order with scenario.order=seed"
        " alone)",
    )
    smoke: bool = Field(
        default=False,
        description="a trial run: the first two tasks, 32 images of each part, two steps per phase",
    )
    defaults: Literal[1, 2] = Field(
        default=NEWEST,
        description="which defaults fill in what is not given: 2, or 1 for those before them; a run directory without"
        " the key is of 1",
    )
    references: Literal["auto", "none", "all"] = Field(
        default="auto",
        description="whether the strongest closed form on the frozen features is measured beside zero-shot. auto: where"
        " the method trains, unless one pass over the training images is above 20 % of those planned (an image trained"
        " on counts three)",
        json_schema_extra={"before": "none"},
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
        description="where the log goes beside metrics.jsonl: trackers of the package, each an extra of it, or your"
        " own; tracker.NAME.OPTION sets the options of one",
        json_schema_extra={"allowed": f"a tracker's name, {CODE}, or a list of them"},
    )
    out: Text | None = Field(default=None, description="the run directory; none: runs/DATE_data_method_mM_sS")
    method: MethodChoice = Field(default=MethodChoice(), description="the method and its options")
    source: Choice = Field(default=Choice(), description="options of the data source")
    tuning: Choice = Field(
        default=Choice(), description="options of what ``tune`` names, beside the one after its colon"
    )
    tracker: Choice = Field(default=Choice(), description="a table of options for each of the trackers")
    scenario: Scenario = Field(default=Scenario(), description="the tasks")
    memory: Memory = Field(default=Memory(), description="exemplars")
    train: Train = Field(default=Train(), description="optimisation")
    evaluate: Evaluate = Field(default=Evaluate(), description="testing")
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
