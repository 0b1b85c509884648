"""Find data sets, one file per source, and export what a source of your own needs.

The contract is imported from here: ``from everclip.data.sources import Source, SourceConfig``.
"""

from everclip.data.sources._base import TASKS, Official, Source, SourceConfig

__all__ = ["TASKS", "Official", "Source", "SourceConfig"]
