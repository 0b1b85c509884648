"""Start the process for ``everclip`` and ``python -m everclip``, also under torchrun."""

import _thread
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any


def _again() -> None:
    """Send Ctrl-C to the main thread a moment later. Called in a thread of its own."""
    time.sleep(0.01)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _unraised(lost: Any) -> None:
    """Send Ctrl-C again where Python could only print it: in a destructor, or in a callback from a C library."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        # threading.Thread takes a lock, which this hook may have interrupted
        _thread.start_new_thread(_again, ())
    else:
        sys.__unraisablehook__(lost)


def _interrupt(number: int, frame: Any) -> None:
    """Raise KeyboardInterrupt; end the process at once while torch is being imported, whose C++ code would abort it."""
    above = frame
    while above is not None:
        if above.f_code is _unraised.__code__:  # what is raised in that hook is lost as well
            _thread.start_new_thread(_again, ())
            return
        above = above.f_back
    if getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    signal.default_int_handler(number, frame)


def main() -> int:
    """Run the command line. Ctrl-C leaves no traceback, however early or late it comes."""
    if os.name != "posix":  # the imports below need modules that only POSIX has
        print(
            "error: everclip needs Linux or macOS: on Windows use it in WSL (wsl --install)", file=sys.stderr
        )
        return 2
    sys.unraisablehook = _unraised
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    code = 130
    try:
        from everclip.cli.app import main as command
        from everclip.system.machine import collect_rarely

        collect_rarely()
        code = command()
    except KeyboardInterrupt:
        pass
    except SystemExit as ended:
        if isinstance(ended.code, str):  # raised by a plug-in, with a message
            print(ended.code, file=sys.stderr)
        code = 1 if isinstance(ended.code, str) else int(ended.code or 0)
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    _leave_others(code)
    return code


def _leave_others(code: int) -> None:
    """End at once where an error or a signal has left torch's threads waiting for the run's other processes.

    A thread that is still in a collective when Python ends can abort the process (exit code -6 in place of ``code``).
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
