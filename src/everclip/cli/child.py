"""Run the command ``everclip WORDS``, which stops when its sweep is no more: ``python -P -m everclip.cli.child WORDS``.

The sweep holds the other end of the standard input. When that closes, however the sweep ended, the command gets SIGTERM
as if a scheduler had sent it, so that it saves where it stands; if it is still there after ``GRACE`` seconds, it is
killed. A run directory left so is continued like any other.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from everclip.sweep.pool import GRACE


def _watch(end: int) -> None:
    while os.read(end, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Run the command in this process."""
    from everclip.cli.app import main as everclip
    from everclip.system.machine import collect_rarely

    collect_rarely()
    threading.Thread(target=_watch, args=(sys.stdin.fileno(),), daemon=True).start()
    return everclip(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
