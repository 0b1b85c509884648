"""Run the command ``everclip``: commands are loaded when they run, so that ``--help`` imports no torch.

Exit codes: 0 done, 1 failed, 2 usage or bad input (one line, no traceback), 75 preempted, 130 interrupted: a run
that was is saved, and the same command continues it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.exceptions import (
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from everclip import plugins
from everclip._version import __version__
from everclip.cli.streams import Unwritable, prepare
from everclip.errors import RunError, UserError, causes, memory_words, suggest
from everclip.system import trust
from everclip.system.signals import INTERRUPTED, PREEMPTED, Stopped
from everclip.system.text import printable

_EXAMPLES = """\
Examples:
  everclip train demo                              # see it work, in minutes
  everclip sweep method=gcl,ridge seed=0..2 out=runs/S  # compare methods
  everclip compare runs/S                          # means, intervals, tests
  everclip update lite --add imagefolder:photos -o v1   # teach a classifier
  everclip update v1 --add imagefolder:new -o v2   # more, and keep the old
  everclip predict v2 pictures/                    # what is on them
  everclip doctor                                  # is everything there?
"""

_INTERRUPTED = 'interrupted; "everclip resume RUN" continues a stopped run'

_RUN = Group("Run", sort_key=1)
_LOOK = Group("Look up", sort_key=2)


class Command(NamedTuple):
    """The help on a command before it is loaded; ``code``: whether it may run what a file names."""

    group: Group
    line: str
    examples: str
    code: bool = False


def _listing(command: str, name: str, line: str) -> Command:
    """A command that lists what there is of a kind, or explains one such as ``name``."""
    return Command(_LOOK, line, f"  everclip {command}\n  everclip {command} {name}\n")


_CATALOGUES = ("methods", "policies", "scenarios", "trackers", "tunings")
"""Commands of one module, catalogue.py; every other has its own."""

COMMANDS = {
    "train": Command(
        _RUN,
        "Learn a scenario's tasks one after another; write a run directory with results and a report.",
        """\
  everclip train                           # the offline default
  everclip train method=gdro method.margin=0.5 memory.budget=500 seed=1
  everclip train cifar100/gdro-m500        # the paper's: see everclip configs
  everclip train my.toml train.epochs=10   # a file, then what to change
  everclip train data=domainfolder:/pacs scenario.kind=domain-incremental
  everclip train my.toml --dry-run         # show what would be done
  everclip train my.toml --smoke           # a trial run within a minute
""",
        code=True,
    ),
    "tune": Command(
        _RUN,
        "Choose settings on a validation share of the first two tasks; the test set is never read.",
        """\
  everclip tune method=gdro                  # the learning rates
  everclip tune method=gcl train.lr=3e-5,1e-4 method.tau=0.02,0.05 out=runs/T
  everclip train runs/T/tuned.toml seed=1    # with what it chose
""",
        code=True,
    ),
    "resume": Command(
        _RUN,
        "Continue a stopped run from where it was saved last.",
        "  everclip resume runs/20260131-101500_emoji_gdro_m200_s0\n",
        code=True,
    ),
    "sweep": Command(
        _RUN,
        "Train a grid of methods, memories, seeds; go on where it stopped, skip what is done.",
        """\
  everclip sweep method=gcl,gdro memory.budget=0,200 seed=0..4 out=runs/S
  everclip sweep my.toml method=gdro,ewc method.ewc.strength=10,100
  everclip sweep method=gcl,gdro --tune train.lr=3e-5,1e-4,3e-4
  everclip sweep my.toml seed=0..4 --print   # a command each, for a scheduler
""",
        code=True,
    ),
    "compare": Command(
        _RUN,
        "Set finished runs beside each other: means, intervals over seeds, paired tests.",
        """\
  everclip compare runs/S --by memory.budget --against gcl
  everclip compare runs/* --equal bytes
  everclip compare runs/* --fail-if "gdro<gcl" --json
""",
    ),
    "report": Command(
        _RUN,
        "Write one offline HTML page of a run, of many runs, or of a sweep still running.",
        """\
  everclip report runs/X -o x.html
  everclip report runs/* -o figure1.html
  everclip report runs/S --figures figures/   # SVG, PDF, CSV of each figure
""",
    ),
    "evaluate": Command(
        _RUN,
        "Test a run's model, on its own tasks or on another data set.",
        """\
  everclip evaluate runs/X
  everclip evaluate runs/X --data imagefolder:/photos --json
  everclip evaluate runs/X --retention imagefolder:/other
""",
        code=True,
    ),
    "predict": Command(
        _RUN,
        "Say what is on pictures, with calibrated probabilities, or that no class fits.",
        """\
  everclip predict runs/X photo.jpg photos/
  everclip predict runs/X - --json < paths.txt
  everclip predict runs/X --calibrate imagefolder:/validation
  everclip predict lite photos/ --classes pets.txt
""",
        code=True,
    ),
    "merge": Command(
        _RUN,
        "Mix a learned model's weights with those it began with, or with another run's.",
        """\
  everclip merge runs/X --with zero-shot --alpha 0.5 -o merged/
  everclip merge runs/X --with zero-shot --validate imagefolder:/val -o m/
""",
        code=True,
    ),
    "export": Command(
        _RUN,
        "Write a learned model for open_clip or for onnxruntime, checked against torch.",
        """\
  everclip export runs/X -o birds/
  everclip export runs/X --format onnx -o birds-onnx/
""",
        code=True,
    ),
    "embed": Command(
        _RUN,
        "Write embeddings of pictures or texts, to search in.",
        "  everclip embed v1 photos/ -o vectors/\n  everclip embed v1 --text captions.txt -o texts/\n",
        code=True,
    ),
    "search": Command(
        _RUN,
        "Find the nearest of what was embedded to a text or a picture.",
        '  everclip search vectors/ "a red bicycle"\n  everclip search vectors/ p.jpg -k 20 --json\n',
        code=True,
    ),
    "update": Command(
        _RUN,
        "Teach a deployed model new classes or domains, if the old ones keep up.",
        """\
  everclip update lite --add imagefolder:/a --test imagefolder:/a -o v1
  everclip update v1 --add imagefolder:/new --test imagefolder:/holdout -o v2
  everclip update v1 --add imagefolder:/new --dry-run
""",
        code=True,
    ),
    "rollback": Command(_RUN, "Put the version before an update in its place.", "  everclip rollback v2\n"),
    "forget": Command(
        _RUN,
        "Take classes or images out of a version; weights are not unlearned.",
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
    "datasets": _listing("datasets", "imagefolder", "List the data sources, or explain one."),
    "models": _listing("models", "ViT-B-16:laion400m_e32", "List models to start from, or explain one."),
    "policies": _listing("policies", "herding", "List the memory policies, or explain one with its options."),
    "scenarios": _listing("scenarios", "domain-incremental", "List the scenarios, or explain one."),
    "tunings": _listing("tunings", "lora", "List what of a model can train, or explain one way."),
    "trackers": _listing("trackers", "wandb", "List where a run's log can go, or explain one."),
    "configs": _listing(
        "configs", "cifar100/gdro-m500", "List the configs that come with the package, or show one."
    ),
    "doctor": Command(
        _LOOK,
        "Check the installation, the machine and the offline default, or what a config needs.",
        "  everclip doctor\n  everclip doctor --config cifar100\n  everclip doctor --config my.toml device=cpu\n",
        code=True,
    ),
}


def build() -> App:
    """The application with its lazily loaded commands."""
    app = App(
        name="everclip",
        help="Teach a CLIP model new classes and new domains without forgetting the old ones.",
        help_prologue=_EXAMPLES,
        help_format="plaintext",
        version=__version__,
        default_parameter=Parameter(negative=()),
        suppress_keyboard_interrupt=False,
    )
    for name, command in COMMANDS.items():
        app.command(
            f"everclip.cli.{'catalogue' if name in _CATALOGUES else name}:{name}",
            name=name,
            help=command.line,
            group=command.group,
            help_prologue="Examples:\n" + command.examples,
            help_epilogue=trust.HELP if command.code else "",
            help_format="plaintext",
            version_flags=(),
        )
    return app


def main(tokens: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; ``tokens`` default to the process's arguments."""
    prepare()
    _show_warnings()
    try:
        words, folders = trust.taken(sys.argv[1:] if tokens is None else list(tokens))
        with trust.session(folders):
            result = build()(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        return _fail(_usage(error))
    except Stopped as error:
        return _fail(str(error) or error.cause, error.code)
    except KeyboardInterrupt as error:
        return _fail(str(error) or _INTERRUPTED, INTERRUPTED)
    except Unwritable as error:
        return 1 if error.left else _fail(str(error), 1)
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """Say why a command has failed, and return its exit code."""
    short = memory_words(error)
    if short:
        return _fail(short, 1)
    if isinstance(error, UserError | RunError):
        return _fail(str(error), 2 if isinstance(error, UserError) else 1)
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):
        return _fail(_INTERRUPTED, INTERRUPTED)  # a library has made something else of Ctrl-C
    traceback.print_exc()
    if place := plugins.fault(error):
        return _fail(f"{place}: {type(error).__name__}: {error}", 1)
    return _fail(f"internal error ({type(error).__name__}): please report it with the lines above", 1)


class _Talk(logging.Handler):
    """A handler of warnings on whatever stderr is now: a live progress bar puts its own in place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {printable(record.getMessage())}", file=sys.stderr)


def _show_warnings() -> None:
    log = logging.getLogger("everclip")
    if not any(isinstance(handler, _Talk) for handler in log.handlers):
        log.addHandler(_Talk(logging.WARNING))


def _fail(message: str, code: int = 2) -> int:
    line = printable(" ".join(message.split()))
    print(line if code in (PREEMPTED, INTERRUPTED) else f"error: {line}", file=sys.stderr)
    return code


def _usage(error: CycloptsError) -> str:
    """Say a usage mistake as one line, with what to write."""
    from everclip.config import known_keys
    from everclip.errors import shown

    chain = list(error.command_chain or ())
    command = " ".join(["everclip", *chain])
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        return f"unknown command {shown(error.unused_tokens[0])}{suggest(error.unused_tokens[0], COMMANDS)}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{command} does not take {shown(error.unused_tokens[0])}: see {command} --help"
    if isinstance(error, MissingArgumentError) and error.argument is not None and not error.argument.tokens:
        name = error.argument.name.lstrip("-").upper()
        return f"{command} needs {name}: see {command} --help"
    text = str(error)
    if isinstance(error, UnknownOptionError) and chain == ["train"] and "Did you mean" not in text:
        option = error.token.keyword or error.token.value or ""
        key = option.lstrip("-").partition("=")[0].replace("-", "_")
        key = next((known for known in known_keys() if known.rsplit(".", 1)[-1] == key), key)
        return f"unknown option {shown(option)}: settings have no dashes, write {key}=VALUE"
    return f"{text} See {command} --help"
