"""Fit or compress a model many times: the smallest budget for a score, the sensitivity of each layer.

Code that asks for a score again and again belongs here. How a single run compresses belongs in the rooms
below; how a model is served, in `export`.
"""

from lc_keras.search.bisection import smallest
from lc_keras.search.by_layer import LayerSensitivity, Sensitivity, sensitivity
from lc_keras.search.curve import Point, Smallest

__all__ = ["LayerSensitivity", "Point", "Sensitivity", "Smallest", "sensitivity", "smallest"]
