"""Each task brings the same classes in another style or place.

One task per domain, in the order that the data set gives or that scenario.order lists; with scenario.order=seed it
varies with the run's seed. After each task the model is tested on all domains seen so far. The memory is shared equally
among the domains. It needs a data set with domains: emoji has six styles; your own pictures go into DOMAIN/CLASS
folders.

    everclip train scenario.kind=domain-incremental
    everclip train data=domainfolder:/pacs scenario.kind=domain-incremental
    everclip train my.toml scenario.kind=domain-incremental 'scenario.order=["photo", "sketch"]'

Protocol: https://arxiv.org/abs/1904.07734
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from everclip.data.images import Dataset
from everclip.data.scenario import Task, positions
from everclip.data.scenarios import Scenario
from everclip.errors import UserError


def domain_order(
    data: Dataset, order: int | str | list[str], seed: int, few: str, what: str = "domain"
) -> list[int]:
    """Return domains in the order learned: as ``scenario.order`` lists them or by the run's seed, else as they are.

    Any other order, such as the seed 1993, is one of classes. Raises UserError where a list is not a permutation of the
    names, which ``what`` describes, and where there are fewer than two: ``few`` says so, and what to do.
    """
    names = data.domain_names
    if len(names) < 2:
        raise UserError(f"{data.name} {few}")
    if isinstance(order, list):
        return positions(order, names, what)
    if order == "seed":
        return np.random.RandomState(seed).permutation(len(names)).tolist()
    return list(range(len(names)))


def of_domains(data: Dataset, order: Sequence[int]) -> list[Task]:
    """Return a task for each domain, in this order, all of which have every class."""
    classes = tuple(range(len(data.class_names)))
    tasks = []
    for index, domain in enumerate(order):
        train, test = data.train.of_domain(domain), data.test.of_domain(domain)
        tasks.append(Task(index, data.domain_names[domain], classes, train, test))
    return tasks


class DomainIncremental(Scenario):
    """A task per domain."""

    domains = True
    every_class = True

    def cut(self, data: Dataset, seed: int) -> list[Task]:
        few = "has one domain: use scenario.kind=class-incremental, or domainfolder:PATH"
        return of_domains(data, domain_order(data, self.settings.order, seed, few))

    def sizes(self, images: int, classes: int, domains: list[int]) -> tuple[list[int], list[int]]:
        return domains, [classes] * len(domains)
