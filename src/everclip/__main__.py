"""``python -m everclip``, which torchrun starts too."""

import sys

from everclip.cli.app import main

sys.exit(main())
