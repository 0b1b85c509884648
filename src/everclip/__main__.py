"""Start the process for ``everclip`` and ``python -m everclip``, also under torchrun."""

import signal
import sys
import threading
from typing import Any


def _unraised(lost: Any) -> None:
    """Give Ctrl-C again where Python could only print it: in a destructor, or in a callback of a library in C."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        main_thread = threading.main_thread().ident or 0
        threading.Timer(0.01, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def main() -> int:
    """Run the command line. Ctrl-C leaves no traceback, however early or late it comes."""
    sys.unraisablehook = _unraised
    try:
        from everclip.cli.app import main as command
        from everclip.system.machine import collect_rarely

        collect_rarely()
        return command()
    except KeyboardInterrupt:
        return 130
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
