"""Benchmarks, run from the repository's folder: `python -m benchmarks.training.error --help`."""

import os
import runpy
from pathlib import Path

# Before any of them imports Keras.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

runpy.run_path(str(Path(__file__).parents[1] / "lc_keras/internals/startup.py"))["import_quietly"]()
