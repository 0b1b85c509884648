"""Fill in what a config leaves open, from its plug-ins and its model."""

from __future__ import annotations

from typing import Any

from everclip import data
from everclip.config.fields import before, own_options
from everclip.config.models import Config, MethodChoice, MethodConfig, Section, Train
from everclip.config.sections import Choice
from everclip.config.sources import one_length
from everclip.config.values import written
from everclip.data.paths import spec_of
from everclip.data.scenarios import build
from everclip.errors import UserError
from everclip.methods import memory_policy, method_of
from everclip.methods.base.method import Method
from everclip.methods.base.registry import method_class, method_config
from everclip.models.catalogue import FEATURES, LITE, recommended
from everclip.models.tunings import tuning_of

_GLOBAL: dict[str, Any] = {"epochs": 5, "lr_head": 1e-3}


def resolve(config: Config) -> Config:
    """Return the config with all train values and options of plug-ins filled in. Idempotent.

    A train value is the user's, else the method's recommendation, else the model's, else a global default
    (5 epochs; heads learn at 1e-3). ``image_size`` stays None for the model's own.

    Defaults are those of the generation ``config.defaults``: a resolved config keeps its values in later versions.

    Raises:
        UserError: an option is wrong, or the data are features and something else in the config needs images.
    """
    if config.data != (spec := spec_of(config.data)):  # a run keeps the source that a plain path means today
        config = config.model_copy(update={"data": spec})
    options = method_config(config)
    method = method_of(config)
    if config.data.startswith(FEATURES):
        config = _of_features(config, method)
    scenario = build(config.scenario)
    policy = memory_policy(config, method)
    tuning = tuning_of(config.tune, config.tuning.options)
    fields = {name: getattr(config.train, name) for name in config.train.model_fields_set}
    given = {name: value for name, value in fields.items() if value is not None or name == "clip_norm"}
    first = config.defaults == 1
    usual = {**_GLOBAL, "lr_head": None} if first else _GLOBAL
    values = one_length(usual, recommended(config.model, before=first))
    advice = _advice(options)
    if first and options.recommended_before is not None:
        advice = options.recommended_before
    values = one_length(one_length(one_length(values, advice), scenario.recommends), given)
    if values["lr_head"] is None:  # as it was: tied to another rate
        values["lr_head"] = float(f"{10 * values['lr']:.6g}")
    earlier = before(Config, config.defaults)
    return config.model_copy(
        update={name: value for name, value in earlier.items() if name not in config.model_fields_set}
        | {
            "train": Train(**(Train().model_dump() | values)),
            "method": MethodChoice.model_validate({"name": config.method.name} | written(options)),
            "scenario": _filled(config.scenario, scenario.config),
            "memory": _filled(config.memory, policy.config),
            "source": _source(config),
            "tune": tuning.text,
            "tuning": Choice.model_validate(tuning.options),
        }
    )


def _advice(options: MethodConfig) -> dict[str, Any]:
    """Return the ``[train]`` values that a method recommends, over those of a method that it wraps."""
    if options.wraps is None or (inner := getattr(options, options.wraps[0])) == "none":
        return options.recommends
    return one_length(method_class(inner).Config.recommends, options.recommends)


def _of_features(config: Config, method: Method) -> Config:
    """Return the config of data that are features, with their model. Raises UserError for what needs images."""
    given = "holds features alone"
    depths = method.capabilities.depths
    blocks_alone = depths is not None and depths.raw
    if method.capabilities.trains or blocks_alone:
        adapt = config.method.options.get("adapt", "none")
        what = config.method.name + ("" if adapt == "none" else f" with method.adapt={adapt}")
        others = "ncm, ridge, ranpac, slda, fecam, multilayer_lda or, with text_features, rail or zero_shot"
        raise UserError(f"{what} needs images: {config.data} {given}; use {others}")
    if config.model not in (LITE, config.data):
        raise UserError(f"model={config.model} needs images: {config.data} {given}; leave model out")
    for key in ("classnames", "templates"):
        if getattr(config, key) is not None:
            raise UserError(
                f"{key}={getattr(config, key)} is for a text tower: {config.data} {given}; leave it out,"
                f" and put classnames and text_features into the file"
            )
    return config.model_copy(update={"model": config.data, "image_size": None})


def _filled(section: Choice, options: Section) -> Choice:
    """Return a section with all options of its plug-in, in place of those given."""
    own = {name: getattr(section, name) for name in type(section).model_fields}
    return type(section).model_validate(written(options) | own)


def _source(config: Config) -> Choice:
    """Return all options of the data source; as given if it cannot be loaded, which loading the data reports."""
    try:
        cls, _ = data.source_class(config.data)
    except UserError:  # a model or run that is only read may name code that is missing or not trusted
        return config.source
    return Choice(**written(own_options(cls.Config, config.source.options, None, "source.")))
