"""Prune by the methods that LC is compared with.

Here belongs what users would take instead of LC: direct compression, and pruning by magnitude during `fit`.
"""

from lc_keras.algorithm.direct import compress_directly
from lc_keras.baselines.direct import DirectCompression
from lc_keras.baselines.pruning import GradualPruning, MagnitudePruning

__all__ = ["DirectCompression", "GradualPruning", "MagnitudePruning", "compress_directly"]
