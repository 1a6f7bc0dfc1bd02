"""Measure what is left of a model: weights, bits and multiply-adds.

What counts and shows belongs here, and so does how a weight with zeros is packed. Nothing here changes a
model.
"""

from lc_keras.measuring.counting import report
from lc_keras.measuring.table import PruningReport, VariableReport

__all__ = ["PruningReport", "VariableReport", "report"]
