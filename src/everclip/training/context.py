"""Hold everything one training run needs."""

from __future__ import annotations

from dataclasses import dataclass

from everclip.data.loader import Loader
from everclip.data.memory import Memory
from everclip.methods.base.method import Method
from everclip.models.clip import Clip
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.training.plan import Plan
from everclip.training.recorder import Recorder


@dataclass(eq=False)
class Context:
    """A plan with its model: what the loop works with."""

    plan: Plan
    clip: Clip
    method: Method
    memory: Memory
    loader: Loader
    record: Recorder
    run: Run
    progress: Progress
