"""Several data sets one after another, each with its own classes; all are tested after each.

One task per data set, in the order given or that scenario.order lists. After each task all data sets are tested, also
those that are still to come, which shows what the model keeps of its zero-shot accuracy. With scenario.task_id=known a
test image comes with its data set and is classified among that one's classes (MTIL of ZSCL); with unknown it is
classified among the classes of all data sets (X-TAIL of RAIL). results.json has, of the accuracy a[i][j] on task j
after task i,

    Transfer  mean over j > 1 of the mean of a[i][j] over i < j     before it is learned
    Average   mean over j of the mean of a[i][j] over all i
    Last      mean over j of a[T][j]

Methods that cannot recognise classes before they have learned them pass images on to the model's text tower in its
current state: if the data set is known, all images of data sets still to come; if not, as in RAIL, the images that the
text tower assigns to a class not learned.

    everclip train data=joined:caltech50+photos scenario.kind=cross-domain
    everclip train data=joined:caltech50+photos scenario.kind=cross-domain scenario.task_id=unknown method=ridge

Protocol: https://arxiv.org/abs/2303.06628 (ZSCL: MTIL and its three numbers);
https://arxiv.org/abs/2406.18868 (RAIL: X-TAIL)
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from everclip.config import Config as RunConfig
from everclip.data.images import Dataset
from everclip.data.scenario import Task
from everclip.data.scenarios import ScenarioConfig
from everclip.data.scenarios.domain_incremental import DomainIncremental, domain_order
from everclip.errors import UserError


class CrossDomain(DomainIncremental):
    """A task per data set, with classes of its own."""

    domains = False
    every_class = False

    class Config(ScenarioConfig):
        """Options of cross-domain."""

        task_id: Literal["known", "unknown"] = Field(
            default="known",
            description="whether a test image's data set is known; else it is classified among all classes",
        )

    config: Config

    @property
    def task_id(self) -> Literal["known", "unknown"]:
        return self.config.task_id

    def lacking(self, config: RunConfig, one_task: bool, text: bool) -> str:
        if one_task:
            return f"{config.method.name} learns all tasks at once, unlike cross-domain: use another method"
        if not text:
            return "scenario.kind=cross-domain tests classes to come by their names: use data with text"
        if config.scenario.validation is not None:
            return "everclip tune knows no scenario.kind=cross-domain: tune on one of the data sets alone"
        return ""

    def cut(self, data: Dataset, seed: int) -> list[Task]:
        few = "is one data set, and scenario.kind=cross-domain learns several: use data=joined:A+B"
        tasks: list[Task] = []
        owner: dict[int, str] = {}
        for index, domain in enumerate(domain_order(data, self.settings.order, seed, few)):
            name = data.domain_names[domain]
            train, test = data.train.of_domain(domain), data.test.of_domain(domain)
            classes = np.unique(train.labels).tolist()
            shared = next((label for label in classes if owner.setdefault(label, name) != name), None)
            if shared is not None:
                raise UserError(
                    f"{owner[shared]} and {name} both have {data.class_names[shared]}: use data=joined:A+B,"
                    f" or scenario.kind=domain-incremental"
                )
            tasks.append(Task(index, name, tuple(classes), train, test))
        return tasks
