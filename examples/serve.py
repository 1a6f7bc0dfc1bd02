"""Runs a SavedModel with TensorFlow alone: serve.py MODEL INPUTS.npy OUTPUTS.npy"""

import sys

# From here on, importing either of them fails: neither is needed to serve.
sys.modules["keras"] = sys.modules["lc_keras"] = None

import numpy as np
import tensorflow as tf

path, inputs, outputs = sys.argv[1:]
model = tf.saved_model.load(path)
np.save(outputs, model.serve(np.load(inputs)))
