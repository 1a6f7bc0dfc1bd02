"""Prune with the methods that LC is compared with.

What users would use instead of LC belongs here: direct compression, and pruning by magnitude during `fit`.
"""

from lc_keras.algorithm.direct import compress_directly
from lc_keras.baselines.direct import DirectCompression
from lc_keras.baselines.pruning import GradualPruning, MagnitudePruning

__all__ = ["DirectCompression", "GradualPruning", "MagnitudePruning", "compress_directly"]
