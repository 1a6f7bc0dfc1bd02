"""Examples, run from the repository's folder: `python -m examples.digits --help`."""

import os
import runpy
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# By its path: what serves a model does without the package.
runpy.run_path(str(Path(__file__).parents[1] / "lc_keras/internals/startup.py"))["import_quietly"]()
