"""Run LC inside of `keras.Model.fit`.

Here belongs all that knows of `fit`: callbacks, epochs, optimizers, checkpoints, and what Keras does not
offer its callbacks. The algorithm itself belongs in `algorithm`.
"""

from lc_keras.fit.callback import LearningCompression

__all__ = ["LearningCompression"]
