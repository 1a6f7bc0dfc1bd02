"""Read any Keras model: its kernels, its inputs and outputs, its multiply-adds, its units.

What a kind of layer says of itself belongs here. Nothing here knows of costs, of LC or of training.
"""

from lc_keras.model.flow import Graph
from lc_keras.model.kernels import default_kernels, frozen_kernels
from lc_keras.model.latency import Latency
from lc_keras.model.macs import count_uses, macs
from lc_keras.model.statistics import estimate_statistics

__all__ = [
    "Graph",
    "Latency",
    "count_uses",
    "default_kernels",
    "estimate_statistics",
    "frozen_kernels",
    "macs",
]
