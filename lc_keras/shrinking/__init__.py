"""Take dead units out of a model, and report on that.

How a model is made again at a smaller size belongs here. How units pass through layers belongs in
`model.flow`.
"""

from lc_keras.shrinking.rebuilding import shrink
from lc_keras.shrinking.sizes import LayerSize, ShrinkReport, shrink_report
from lc_keras.shrinking.timing import latency

__all__ = ["LayerSize", "ShrinkReport", "latency", "shrink", "shrink_report"]
