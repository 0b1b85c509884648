"""Enter the process: ``everclip``, and ``python -m everclip``, which torchrun starts too."""

import signal
import sys


def main() -> int:
    """Run the command line. Ctrl-C leaves no traceback, however early or late it comes."""
    try:
        from everclip.cli.app import main as command

        return command()
    except KeyboardInterrupt:
        return 130
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
