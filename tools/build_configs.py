"""Write the configs of the paper's experiments.

    python tools/build_configs.py            # write src/everclip/configs
    python tools/build_configs.py --check    # say which files differ, and exit with 1 if any does

One file is the base of each data set; a file for each experiment extends it. The tables below say what there is; hours
are computed from the model's operations (everclip.training.estimate), and numbers to expect are published ones. A
test compares the files with what is written here, so change this script and run it, not the files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from dataclasses import dataclass
from typing import Any

from everclip.config import Config
from everclip.config.sources import SHIPPED, Layer, merge
from everclip.models.catalogue import costs
from everclip.runs.resolve import resolve
from everclip.training import estimate

PAPER = "Memory-Efficient Continual Learning with CLIP Models, https://arxiv.org/abs/2605.03866"
CURVE = "not published as a number; the paper shows a curve in Figure 1"

SIZED = ("gcl", "gdro", "ewc", "der_expand", "memo", "icarl", "co2l", "foster")
"""Methods that are run at every size of the memory."""


@dataclass(frozen=True)
class Base:
    """The base of a data set.

    Args:
        title, tasks: in words.
        section: of the paper.
        sizes: of the memory; the last one is the base's.
        chosen: where they come from.
        epochs: passes over a task; ``slow`` those of Co2L.
        scenario, loader: sections of the config.
        others: file name -> (title, method and its options) of experiments without sizes.
    """

    title: str
    tasks: str
    section: str
    sizes: tuple[int, ...]
    chosen: str
    epochs: int
    slow: int
    scenario: str
    loader: str
    sized: tuple[str, ...]
    others: dict[str, tuple[str, Layer]]


ZERO_SHOT = ("The pretrained model as it is (Continual-CLIP)", {"name": "zero_shot"})
EWC_ALONE = ("EWC without a memory, as published", {"name": "ewc", "head": "linear", "classes": "present"})
BASES = {
    "cifar100": Base(
        title="CIFAR-100",
        tasks="ten tasks of ten classes",
        section="section 4.4 (CIFAR-100 data)",
        sizes=(0, 100, 200, 500, 1000, 2000),
        chosen="2,000 is the literature's; the paper varies the size and gives no numbers",
        epochs=5,
        slow=10,
        scenario='kind = "class-incremental"\ntasks = 10\norder = 1993',
        loader="workers = 8\ncache_mb = 8700  # all 60,000 pictures at 224 x 224 pixels stay decoded",
        sized=SIZED,
        others={
            "zero_shot": ZERO_SHOT,
            "finetune": (
                "Fine-tuning with cross-entropy alone at each new task",
                {"name": "finetune", "head": "linear"},
            ),
        },
    ),
    "imagenet": Base(
        title="ImageNet-1k",
        tasks="ten tasks of 100 classes",
        section="section 4.4 (ImageNet1k data)",
        sizes=(1000, 2000, 5000, 10000, 20000),
        chosen="20,000 is the literature's; the paper says larger than for CIFAR-100 and gives no numbers",
        epochs=2,
        slow=5,
        scenario='kind = "class-incremental"\ntasks = 10\norder = 1993',
        loader="workers = 16",
        sized=SIZED,
        others={
            "zero_shot": ZERO_SHOT,
            "ewc": EWC_ALONE,
            "joint-gcl": (
                "All data at once with the loss of GCL",
                {"name": "joint", "loss": "gcl"},
            ),
            "joint-finetune": (
                "All data at once with cross-entropy",
                {"name": "joint", "loss": "finetune"},
            ),
        },
    ),
    "domainnet": Base(
        title="DomainNet",
        tasks="six domains, from real to clipart",
        section="section 4.5",
        sizes=(345, 1725, 3450, 6900),
        chosen="1, 5, 10 and 20 images a class; the paper gives no numbers",
        epochs=2,
        slow=5,
        scenario='kind = "domain-incremental"\norder = "given"  # from real to clipart',
        loader="workers = 16",
        sized=("gcl", "gdro"),
        others={
            "zero_shot": ZERO_SHOT,
            "cassle": (
                "CaSSLe with its supervised contrastive objective, no memory",
                {"name": "cassle"},
            ),
            "cassle-mixed": (
                "CaSSLe with its supervised contrastive objective, its probe learned on exemplars too",
                {"name": "cassle", "probe": "mixed"},
            ),
        },
    ),
}

TITLES = {
    "gcl": "Global contrastive loss (GCL)",
    "gdro": "Group distributionally robust optimisation (GDRO)",
    "ewc": "Elastic weight consolidation (EWC)",
    "der_expand": "Dynamically expandable representation (DER, Yan 2021)",
    "memo": "MEMO (Zhou 2022), which the paper's list of baselines cites where it says DER",
    "icarl": "iCaRL",
    "co2l": "Co2L",
    "foster": "FOSTER",
}
OPTIONS: dict[str, Layer] = {"ewc": {"head": "linear", "classes": "present"}}
"""Where a method's own defaults are not what the paper says of its baselines: their heads are linear."""
NEED_EXEMPLARS = ("der_expand", "memo", "foster", "icarl")
"""Methods without a defined form at memory 0 where new classes come."""
NOTES = {
    "ewc": "published without a memory; with one, its images count as those of the task",
    "memo": "the shared blocks are frozen after the first task, as in LAMDA-PILOT",
    "finetune": "the paper does not say whether this baseline has a memory or a linear head; it has here none, and one",
    "cassle": "the linear probe learns on the current domain alone, which is fair to a method without a memory",
    "cassle-mixed": "exemplars are for the linear probe alone, which then knows the domains before",
    "joint-gcl": "the paper does not name the loss of its curve for all data; five times the epochs of a task",
    "joint-finetune": "the paper does not name the loss of its curve for all data; five times the epochs of a task",
}
EXPECTED = {
    "cifar100/zero_shot": "last 71.38 %, average 81.81 % published for these weights (Continual-CLIP; prompts may"
    " differ); with OpenAI's weights 66.7 and 75.2 %",
    "imagenet/zero_shot": "last 67.05 % published for these weights (open_clip); with OpenAI's 68.34 %",
    "domainnet/zero_shot": "mean of the six domains 56.6 % published, weights not said",
}


def wrapped(word: str, text: str) -> list[str]:
    """A paragraph of the header: its word, then lines of at most 116 characters."""
    lines, line = [], f"# {word}:".ljust(12)
    for part in text.split():
        if len(line) + len(part) > 116:
            lines.append(line.rstrip())
            line = "#".ljust(12)
        line += f"{part} "
    return [*lines, line.rstrip()]


def hours(config: Config) -> str:
    """The time that a config takes, in words."""
    sizes, model = estimate.published(config), costs(config.model)
    assert sizes is not None
    assert model is not None
    work = estimate.work(config, sizes)
    operations = work.operations(model, config)
    card = {name: estimate.duration(estimate.seconds(operations, name)) for name in ("H100", "A100")}
    four = estimate.duration(estimate.seconds(operations, "A5000", cards=4))
    views = f" for {work.trained:,.0f} views of images trained on" if work.trained else ""
    return (
        f"{card['H100']} on one H100, {card['A100']} on one A100, {four} on four A5000 (the paper's machine;"
        f" with torchrun): {estimate.amount(operations)}{views}, at {estimate.UTILISATION:.0%} of the"
        " cards' dense bf16 peaks, if the processor's cores decode as fast (about 260 pictures a second each)"
    )


def header(title: str, name: str, base: Base, config: Config, notes: list[str]) -> str:
    """The comment that a file begins with."""
    lines = [f"# {title}: {base.title}, {base.tasks}.", "#"]
    lines += wrapped("Paper", f"{base.section} and Figure 1 of {PAPER}")
    lines += wrapped("Command", f"everclip train {name}")
    lines += wrapped("Time", hours(config))
    lines += wrapped("Expected", EXPECTED.get(name, CURVE))
    for note in notes:
        lines += wrapped("Note", note)
    return "\n".join(lines) + "\n\n"


def base_text(name: str, base: Base) -> str:
    """The values of a base."""
    return f"""\
data = "{name}"
model = "ViT-B-16:laion400m_e32"

[method]
name = "gdro"

[scenario]
{base.scenario}

[memory]
budget = {base.sizes[-1]}

[train]
epochs = {base.epochs}
batch_size = 256
lr = 1e-5
lr_text = 1e-5
lr_head = 1e-3
weight_decay = 0.1
precision = "bf16"

[loader]
{base.loader}
"""


def experiment_text(name: str, method: Layer, budget: int, train: Layer) -> str:
    """The values of an experiment."""
    lines = [f'extends = "{name}"', "", "[method]"]
    lines += [f'{key} = "{value}"' for key, value in method.items()]
    lines += ["", "[memory]", f"budget = {budget}"]
    if train:
        lines += ["", "[train]", *(f"{key} = {json.dumps(value)}" for key, value in train.items())]
    return "\n".join(lines) + "\n"


def loaded(*texts: str) -> Config:
    """The resolved config of TOML texts, the later over the earlier."""
    layer: Layer = {"model": Config().model, "method": {"name": Config().method.name}}
    for text in texts:
        values: dict[str, Any] = tomllib.loads(text)
        values.pop("extends", None)
        layer = merge(layer, values)
    return resolve(Config.model_validate(layer))


def files() -> dict[str, str]:
    """Name of each config -> its text."""
    found: dict[str, str] = {}
    for name, base in BASES.items():
        text = base_text(name, base)
        silent = (
            "the paper gives no weights (LAION's are meant), learning rates, epochs, batch size, class order,"
            f" captions or augmentation: those here are of FLYP and related work. Sizes of the memory: {base.chosen}"
        )
        found[name] = header(TITLES["gdro"], name, base, loaded(text), [silent]) + text
        for method in base.sized:
            for size in base.sizes:
                if size == 0 and method in NEED_EXEMPLARS:
                    continue
                values = {"name": method, **OPTIONS.get(method, {})}
                title = f"{TITLES[method]}, a memory of {size:,} images"
                add(found, base, (name, f"{method}-m{size}"), title, values, size)
        for other, (title, values) in base.others.items():
            size = base.sizes[-1] if values.get("probe") == "mixed" else 0
            add(found, base, (name, other), title, values, size)
    return found


def add(
    found: dict[str, str], base: Base, place: tuple[str, str], title: str, values: Layer, size: int
) -> None:
    """Put one experiment of a data set among the files."""
    name, own = place
    train: Layer = {}
    if values["name"] in ("co2l", "cassle"):  # with the views of their sources
        train = {"epochs": base.slow, "augment": "crop_colour"}
    elif values["name"] == "joint":  # which sees each image in its own epochs alone
        train = {"epochs": 5 * base.epochs}
    text = experiment_text(name, values, size, train)
    notes = [NOTES[key] for key in (own, values["name"]) if key in NOTES][:1]
    if values["name"] != "zero_shot":
        notes.append(f"what the paper leaves open stands in {name}.toml")
    path = f"{name}/{own}"
    config = loaded(base_text(name, base), text)
    found[path] = header(title, path, base, config, notes) + text


def main() -> int:
    """Write or compare; 1 where a comparison fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    wanted = {SHIPPED / f"{name}.toml": text for name, text in files().items()}
    there = {path for name in BASES for path in [SHIPPED / f"{name}.toml", *(SHIPPED / name).glob("*.toml")]}
    wrong = [path for path in there if path not in wanted]
    for path, text in wanted.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        wrong.append(path)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if not check:
        for path in there - {*wanted}:
            path.unlink()
    print(f"{len(wanted)} configs, {len(wrong)} {'differ' if check else 'changed'}")
    return int(check and bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
