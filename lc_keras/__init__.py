"""Learning-Compression pruning for Keras 3: an exact budget, inside `fit`."""

from lc_keras.internals import startup

if startup.is_command_line():
    startup.import_quietly()

from lc_keras import baselines
from lc_keras.algorithm import Alternation, Exponential, Geometric, LCPenalty, Task
from lc_keras.costs import (
    Binary,
    Blocks,
    Codebook,
    Grid,
    L0Constraint,
    L0Penalty,
    L1Constraint,
    L1Penalty,
    L2Constraint,
    L2Penalty,
    LowRank,
    Neurons,
    NMConstraint,
    RankSelection,
    Sum,
    Ternary,
    Weights,
)
from lc_keras.export import export_litert, export_saved_model
from lc_keras.fit import LearningCompression
from lc_keras.measuring import PruningReport, report
from lc_keras.model import Latency, estimate_statistics
from lc_keras.search import Sensitivity, Smallest, sensitivity, smallest
from lc_keras.shrinking import ShrinkReport, latency, shrink, shrink_report

__all__ = [
    "Alternation",
    "Binary",
    "Blocks",
    "Codebook",
    "Exponential",
    "Geometric",
    "Grid",
    "L0Constraint",
    "L0Penalty",
    "L1Constraint",
    "L1Penalty",
    "L2Constraint",
    "L2Penalty",
    "LCPenalty",
    "Latency",
    "LearningCompression",
    "LowRank",
    "NMConstraint",
    "Neurons",
    "PruningReport",
    "RankSelection",
    "Sensitivity",
    "ShrinkReport",
    "Smallest",
    "Sum",
    "Task",
    "Ternary",
    "Weights",
    "baselines",
    "estimate_statistics",
    "export_litert",
    "export_saved_model",
    "latency",
    "report",
    "sensitivity",
    "shrink",
    "shrink_report",
    "smallest",
]

startup.check_backend()
