"""Learning-Compression pruning for Keras 3: an exact budget, inside `fit`."""

from lc_keras import baselines
from lc_keras.alternation import Alternation
from lc_keras.callback import LearningCompression
from lc_keras.costs import (
    L0Constraint,
    L0Penalty,
    L1Constraint,
    L1Penalty,
    L2Constraint,
    L2Penalty,
    NMConstraint,
)
from lc_keras.export import export_litert, export_saved_model
from lc_keras.groups import Blocks, Neurons, Weights
from lc_keras.measuring import report
from lc_keras.penalty import LCPenalty
from lc_keras.reports import PruningReport
from lc_keras.schedules import Exponential, Geometric
from lc_keras.shrink import shrink
from lc_keras.shrink_report import ShrinkReport, shrink_report
from lc_keras.tasks import Task

__all__ = [
    "Alternation",
    "Blocks",
    "Exponential",
    "Geometric",
    "L0Constraint",
    "L0Penalty",
    "L1Constraint",
    "L1Penalty",
    "L2Constraint",
    "L2Penalty",
    "LCPenalty",
    "LearningCompression",
    "NMConstraint",
    "Neurons",
    "PruningReport",
    "ShrinkReport",
    "Task",
    "Weights",
    "baselines",
    "export_litert",
    "export_saved_model",
    "report",
    "shrink",
    "shrink_report",
]
