"""Run LC inside `keras.Model.fit`.

Everything that knows about `fit` belongs here: callbacks, epochs, optimizers, checkpoints, and what Keras
does not offer its callbacks. The algorithm itself belongs in `algorithm`.
"""

from lc_keras.fit.callback import LearningCompression

__all__ = ["LearningCompression"]
