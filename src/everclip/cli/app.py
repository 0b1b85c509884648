"""Run the command ``everclip``; each command is loaded when it runs, so that ``--help`` imports no torch.

Exit codes: 0 done, 1 failed, 2 usage or bad input (one line, no traceback), 3 a gate was not met, 75 preempted, 130
interrupted; a run that was stopped is saved, and the same command continues it.
"""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import (
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from cyclopts.help import DefaultFormatter, InlineText

from everclip import plugins
from everclip._version import __version__
from everclip.cli._commands import CATALOGUES, COMMANDS
from everclip.cli.streams import Unwritable, prepare
from everclip.errors import RunError, UserError, causes, memory_words, suggest
from everclip.system import trust
from everclip.system.signals import INTERRUPTED, PREEMPTED, Stopped
from everclip.system.text import printable

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

_EXAMPLES = """\
Examples:
  everclip train demo                              # see it work, in minutes
  everclip sweep method=gcl,ridge seed=0..2 out=runs/S  # compare methods
  everclip compare runs/S                          # means, intervals, tests
  everclip init photos                             # a config for your pictures
  everclip update lite --add photos --test photos -o v1  # teach a classifier
  everclip update v1 --add new --test holdout -o v2  # more, keeping the old
  everclip predict v2 pictures/                    # what they show
  everclip doctor                                  # is everything there?
"""

_INTERRUPTED = 'interrupted; "everclip resume RUN" continues a stopped run'

_CLOSED = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
"""Error numbers of paths that Path.is_file and its like raise, as they are not those of a missing file."""


class _Help(DefaultFormatter):
    """Shows a description that a docstring breaks into lines as one paragraph."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        from rich.text import Text

        for entry in panel.entries:
            said = entry.description
            if isinstance(said, InlineText) and isinstance(said.primary_renderable, Text):
                said.primary_renderable.plain = " ".join(said.primary_renderable.plain.split())
        super().__call__(console, options, panel)


def build() -> App:
    """Build the application with its lazily loaded commands."""
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
            f"everclip.cli.{'catalogue' if name in CATALOGUES else name}:{name}",
            name=name,
            help=command.line,
            group=command.group,
            help_prologue="Examples:\n" + command.examples,
            help_epilogue=trust.HELP if command.code else "",
            help_format="plaintext",
            help_formatter=_Help(),
            version_flags=(),
        )
    return app


def main(tokens: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; ``tokens`` default to the process's arguments."""
    prepare()
    log = logging.getLogger("everclip")
    if not any(isinstance(handler, _Talk) for handler in log.handlers):
        log.addHandler(_Talk(logging.WARNING))
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
    if any(_of_ctrl_c(cause) for cause in causes(error)):
        return _fail(_INTERRUPTED, INTERRUPTED)  # a library has made something else of Ctrl-C
    place = plugins.fault(error)
    if not place and (line := _lost(error)):
        return _fail(line)
    traceback.print_exc()
    if place:
        return _fail(f"{place}: {type(error).__name__}: {error}", 1)
    return _fail(f"internal error ({type(error).__name__}): please report it with the lines above", 1)


def _of_ctrl_c(cause: BaseException) -> bool:
    """Return whether this is Ctrl-C, or pydantic's error for one that came while it built a model."""
    built = type(cause).__name__ == "SchemaError" and "KeyboardInterrupt" in str(cause)
    return built or isinstance(cause, KeyboardInterrupt)


def _lost(error: Exception) -> str:
    """Return the message about a path of the user's that cannot be looked at; empty for any other error."""
    if isinstance(error, OSError) and error.filename is not None and error.errno in _CLOSED:
        return f"{str(error.filename)[:200]} cannot be used ({error.strerror}): give another path"
    if isinstance(error, RuntimeError) and "determine home directory" in str(error):  # of Path.expanduser
        return 'a path begins with "~" and a user who has no home folder here: write the path in full'
    return ""


class _Talk(logging.Handler):
    """Log handler that writes to the current stderr, which a live progress bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {printable(record.getMessage())}", file=sys.stderr)


def _fail(message: str, code: int = 2) -> int:
    line = printable(" ".join(message.split()))
    print(line if code in (PREEMPTED, INTERRUPTED) else f"error: {line}", file=sys.stderr)
    return code


def _usage(error: CycloptsError) -> str:
    """Report a usage mistake in one line, with a correction."""
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
        return f"unknown option {shown(option)}: settings have no dashes, use {key}=VALUE"
    return f"{text} See {command} --help"
