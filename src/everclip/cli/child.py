"""Run ``everclip WORDS`` and stop it when its sweep ends: ``python -P -m everclip.cli.child WORDS``.

The sweep holds the other end of standard input. When it closes, however the sweep ended, the command gets SIGTERM as
if from a scheduler and saves its progress; if it is still running after ``GRACE`` seconds, it is killed. Its run
directory is resumed like any other.
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
