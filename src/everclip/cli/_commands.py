"""Describe each command and show its examples before the command itself is loaded."""

from __future__ import annotations

from typing import NamedTuple

from cyclopts import Group

_RUN = Group("Run", sort_key=1)
_LOOK = Group("Look up", sort_key=2)


class Command(NamedTuple):
    """The help for a command that is not loaded yet.

    Args:
        line: what it does; further paragraphs are shown by its own ``--help`` alone.
        code: whether it may run code that a file names.
    """

    group: Group
    line: str
    examples: str
    code: bool = False


def _listing(command: str, name: str, line: str) -> Command:
    """Describe a command that lists one kind of plug-in, or explains one such as ``name``."""
    return Command(_LOOK, line, f"  everclip {command}\n  everclip {command} {name}\n")


CATALOGUES = ("methods", "policies", "scenarios", "trackers", "tunings")
"""Commands that share the module catalogue.py; every other command has its own."""

COMMANDS = {
    "init": Command(
        _RUN,
        "Write a commented config for a folder of pictures, and say how it was read.",
        """\
  everclip init photos                     # writes photos.toml
  everclip init photos -o pets.toml
  everclip train photos.toml --dry-run     # what it would do
""",
    ),
    "train": Command(
        _RUN,
        "Learn the tasks of a scenario one after another; write results and a report into a run directory.",
        """\
  everclip train                           # the offline default
  everclip train method=gdro method.margin=0.5 memory.budget=500 seed=1
  everclip train cifar100/gdro-m500        # the paper's: see everclip configs
  everclip train my.toml train.epochs=10   # a file, then what to change
  everclip train data=domainfolder:/pacs scenario.kind=domain-incremental
  everclip train my.toml --dry-run         # show the plan only
  everclip train my.toml --smoke           # a trial run within a minute
""",
        code=True,
    ),
    "tune": Command(
        _RUN,
        "Choose settings on held-out training images of the first tasks; the test set is never read.",
        """\
  everclip tune method=gdro                  # the learning rates
  everclip tune method=gcl train.lr=3e-5,1e-4 method.tau=0.02,0.05 out=runs/T
  everclip train runs/T/tuned.toml seed=1    # with the settings it chose
""",
        code=True,
    ),
    "resume": Command(
        _RUN,
        "Continue a stopped run from its last checkpoint.",
        "  everclip resume runs/20260131-101500_emoji_gdro_m200_s0\n",
        code=True,
    ),
    "sweep": Command(
        _RUN,
        "Train a grid of methods, memory sizes and seeds; skip finished runs, continue stopped ones.",
        """\
  everclip sweep method=gcl,gdro memory.budget=0,200 seed=0..4 out=runs/S
  everclip sweep my.toml method=gdro,ewc method.ewc.strength=10,100
  everclip sweep method=gcl,gdro --tune train.lr=3e-5,1e-4,3e-4
  everclip sweep my.toml seed=0..4 --print   # one command per run
""",
        code=True,
    ),
    "compare": Command(
        _RUN,
        "Compare finished runs: means, intervals over seeds, paired tests.",
        """\
  everclip compare runs/S --by memory.budget --against gcl
  everclip compare runs/* --equal bytes
  everclip compare runs/* --fail-if "gdro<gcl" --json
""",
    ),
    "report": Command(
        _RUN,
        "Write one offline HTML page about a run, many runs, or a sweep still in progress.",
        """\
  everclip report runs/X -o x.html
  everclip report runs/* -o figure1.html
  everclip report runs/S --figures figures/   # SVG, PDF, PNG, CSV
""",
    ),
    "reproduce": Command(
        _RUN,
        "Train with published settings, and check that the published accuracy is reproduced.",
        """\
  everclip reproduce                             # what can be checked
  everclip reproduce zero-shot-cifar100-openai   # exit code 3: not as published
  everclip reproduce ridge-cifar100-laion400m data=cifar100:/data
""",
    ),
    "evaluate": Command(
        _RUN,
        """\
Test a model: a run on its own tasks, or any model on a data set.

For images with captions, retrieval is measured: how well the model finds
captions by image and images by caption.""",
        """\
  everclip evaluate runs/X
  everclip evaluate runs/X --data photos --json
  everclip evaluate runs/X --retention others
  everclip evaluate v2 --data holdout --unknown others
""",
        code=True,
    ),
    "predict": Command(
        _RUN,
        "Classify pictures, with calibrated probabilities, or say that no class fits.",
        """\
  everclip predict runs/X photo.jpg photos/
  everclip predict runs/X - --json < paths.txt
  everclip predict runs/X --calibrate validation
  everclip predict v2 photos/ --unknown-at 5%
  everclip predict lite photos/ --classes pets.txt
""",
        code=True,
    ),
    "merge": Command(
        _RUN,
        "Average a learned model's weights with its initial weights or another run's.",
        """\
  everclip merge runs/X --with zero-shot --alpha 0.5 -o merged/
  everclip merge runs/X --with zero-shot --validate validation -o m/
""",
        code=True,
    ),
    "export": Command(
        _RUN,
        "Export a model for open_clip, transformers or onnxruntime, checked against torch.",
        """\
  everclip export runs/X -o birds/
  everclip export runs/X --format hf -o birds-hf/
  everclip export runs/X --format onnx --encoders separate -o birds-onnx/
  everclip export v1 --format onnx --int8 -o small/   # 8 bits, measured
""",
        code=True,
    ),
    "embed": Command(
        _RUN,
        "Write embeddings of pictures or texts, ready to search.",
        "  everclip embed v1 photos/ -o vectors/\n  everclip embed v1 --text captions.txt -o texts/\n",
        code=True,
    ),
    "search": Command(
        _RUN,
        "Find the embeddings nearest to a text or a picture.",
        '  everclip search vectors/ "a red bicycle"\n  everclip search vectors/ p.jpg -k 20 --json\n',
        code=True,
    ),
    "serve": Command(
        _RUN,
        """\
Serve a model over HTTP, and switch to the next version when its folder changes.

Answers POST /predict, /embed and /search, GET /health and /model. A new
version in the folder MODEL, or where the link MODEL points, is opened, checked
and used within seconds, without losing a request; so is the previous one after
a rollback. SIGHUP opens MODEL again. SIGTERM and Ctrl-C answer the requests
that have arrived, then end the server. There is no authentication.""",
        """\
  everclip serve v2                        # http://127.0.0.1:8000
  everclip serve current --port 9000       # a link to a version
  everclip serve v2 --vectors vectors/     # also POST /search
""",
        code=True,
    ),
    "update": Command(
        _RUN,
        "Teach a deployed model new classes or domains, unless old classes suffer.",
        """\
  everclip update lite --add photos --test photos -o v1
  everclip update v1 --add new --test holdout -o v2
  everclip update v1 --add new --dry-run
""",
        code=True,
    ),
    "classes": Command(
        _RUN,
        "Rename, merge or remove classes of a version, without training.",
        """\
  everclip classes v2                              # what it knows
  everclip classes v2 rename "lorry=truck" -o v3
  everclip classes v2 merge cab taxi --into taxi -o v3
  everclip classes v2 remove yellow --test holdout -o v3
""",
    ),
    "rollback": Command(_RUN, "Undo an update: restore the previous version.", "  everclip rollback v2\n"),
    "forget": Command(
        _RUN,
        "Remove classes or images from a version; weights are not unlearned.",
        """\
  everclip forget v2 --class "sports car" -o v3
  everclip forget v2 --images /photos/7.jpg -o v3
""",
        code=True,
    ),
    "methods": Command(
        _LOOK,
        "List the methods, or explain one with its options.",
        "  everclip methods\n  everclip methods gdro\n  everclip methods gdro --json\n",
    ),
    "datasets": _listing(
        "datasets", "imagefolder", "List the data sources, explain one, or check a data set."
    ),
    "data": Command(
        _LOOK,
        """\
Find duplicate pictures, suspect labels, and broken or tiny pictures.

Exits with 1 if a test picture is an exact copy of a training picture, or a
picture is broken; else with 0.""",
        """\
  everclip data check photos
  everclip data check photos -o check.html   # with small pictures
  everclip data check photos --exact         # exact copies, without a model
""",
        code=True,
    ),
    "models": Command(
        _LOOK,
        "List models to start from, explain one, or find models by part of a name.",
        """\
  everclip models
  everclip models --here                   # weights on this machine
  everclip models ViT-B                    # all with ViT-B in their names
  everclip models ViT-B-16:laion400m_e32
""",
    ),
    "policies": _listing("policies", "herding", "List the memory policies, or explain one with its options."),
    "scenarios": _listing("scenarios", "domain-incremental", "List the scenarios, or explain one."),
    "tunings": _listing(
        "tunings", "lora", "List the ways of tuning (which part of a model trains), or explain one."
    ),
    "trackers": _listing("trackers", "wandb", "List the trackers that a run can log to, or explain one."),
    "configs": _listing(
        "configs", "cifar100/gdro-m500", "List the configs that come with the package, or show one."
    ),
    "doctor": Command(
        _LOOK,
        "Check the installation and the machine, for the offline default or for a config.",
        "  everclip doctor\n  everclip doctor --config cifar100\n  everclip doctor --config my.toml"
        " device=cpu\n",
        code=True,
    ),
}
