"""How units flow through the layers of a Keras graph."""

# Each module registers the kinds of layers that it describes.
from lc_keras.model.flow import attention, elementwise, linear, norms, recurrent, shapes  # noqa: F401
from lc_keras.model.flow.graph import Graph

__all__ = ["Graph"]
