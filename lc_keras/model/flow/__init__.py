"""Keep the table of layer kinds, and follow units through a graph of layers.

One entry for each kind of layer belongs here, a subclass of `Flow` in `kinds`: its kernels, and how units
pass through it. Nothing else in the library checks the kind of a layer to find these out.
"""

# Each of these modules registers entries.
from lc_keras.model.flow import attention, elementwise, linear, norms, operations, recurrent, shapes  # noqa: F401
from lc_keras.model.flow.graph import Graph

__all__ = ["Graph"]
