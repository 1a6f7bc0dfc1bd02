"""Costs of compression C(θ) and their C steps.

Given the weights $v = w - \\lambda/\\mu$ of a task, the C step of the Learning-Compression algorithm
(Carreira-Perpiñán & Idelbayev, CVPR 2018) solves

$$\\min_\\theta \\tfrac{\\mu}{2} \\lVert v - \\theta \\rVert^2 + C(\\theta).$$

For most costs the solution is one scalar, or a few, found from all tensors of the task together, and one map
applied tensor by tensor.

This package deals with numbers only. Nothing here knows of models, layers or training.
"""

from lc_keras.costs.codebook import Codebook
from lc_keras.costs.compression import Compression
from lc_keras.costs.grid import Grid
from lc_keras.costs.groups import Blocks, Neurons, Weights
from lc_keras.costs.l0 import L0Constraint, L0Penalty
from lc_keras.costs.l1 import L1Constraint, L1Penalty
from lc_keras.costs.l2 import L2Constraint, L2Penalty
from lc_keras.costs.low_rank import LowRank, RankSelection
from lc_keras.costs.nm import NMConstraint
from lc_keras.costs.signs import Binary, Ternary
from lc_keras.costs.sums import Sum

__all__ = [
    "Binary",
    "Blocks",
    "Codebook",
    "Compression",
    "Grid",
    "L0Constraint",
    "L0Penalty",
    "L1Constraint",
    "L1Penalty",
    "L2Constraint",
    "L2Penalty",
    "LowRank",
    "NMConstraint",
    "Neurons",
    "RankSelection",
    "Sum",
    "Ternary",
    "Weights",
]
