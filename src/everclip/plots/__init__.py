"""Draw charts of runs on matplotlib Axes: functions take run directories and return the Axes for restyling.

    from everclip import plots
    ax = plots.accuracy_against_memory("runs/*")
    ax.figure.savefig("memory.pdf")

Every function takes ``runs`` (run directories, folders of them, patterns, rows or a data frame of
``everclip.load_runs``) or one ``run``, then ``ax`` (None: a new figure), and returns the Axes. Those that draw lines
take ``memory``, ``legend`` and ``styles`` too (``panels.How``). ``matplotlib.rc_context(plots.STYLE)`` around a call
gives the look of the report page (docs/plots.md).
"""

from everclip.plots.accuracy import accuracy_against_memory, after_each_task
from everclip.plots.class_maps import class_losses, class_weights
from everclip.plots.confidence import confidence, reliability
from everclip.plots.matrix import accuracy_matrix, task_heatmap
from everclip.plots.panels import label_ends
from everclip.plots.per_class import old_classes, per_class
from everclip.plots.style import STYLE
from everclip.plots.training import estimators, gradient_norm, learning_rate, loss_terms, weight_entropy

__all__ = [
    "STYLE",
    "accuracy_against_memory",
    "accuracy_matrix",
    "after_each_task",
    "class_losses",
    "class_weights",
    "confidence",
    "estimators",
    "gradient_norm",
    "label_ends",
    "learning_rate",
    "loss_terms",
    "old_classes",
    "per_class",
    "reliability",
    "task_heatmap",
    "weight_entropy",
]
