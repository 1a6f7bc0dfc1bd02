"""Write files that serve a model without Keras.

How a model is stored and served belongs here. How a weight is packed belongs in `measuring`.
"""

from lc_keras.export.exported import ExportedWeight, LiteRTExport, SavedModelExport
from lc_keras.export.litert import export_litert
from lc_keras.export.saved_model import export_saved_model

__all__ = ["ExportedWeight", "LiteRTExport", "SavedModelExport", "export_litert", "export_saved_model"]
