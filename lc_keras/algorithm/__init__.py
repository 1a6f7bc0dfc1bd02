"""Run the Learning-Compression algorithm: tasks, the augmented Lagrangian, schedules of μ, your own loop.

What LC is without `fit` belongs here. Nothing here knows about callbacks, epochs, optimizers or checkpoints.
"""

from lc_keras.algorithm.alternation import Alternation
from lc_keras.algorithm.direct import compress_directly
from lc_keras.algorithm.penalty import LCPenalty
from lc_keras.algorithm.schedules import Exponential, Geometric
from lc_keras.algorithm.tasks import Task

__all__ = ["Alternation", "Exponential", "Geometric", "LCPenalty", "Task", "compress_directly"]
