"""Benchmarks, run from the repository's folder: `python -m benchmarks.training.error --help`."""

import os

# Before any of them imports Keras.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
