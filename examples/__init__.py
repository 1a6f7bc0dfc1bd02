"""Examples, run from the repository's folder: `python -m examples.digits --help`."""

import os
import runpy
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# By its path, because programs that serve a model do without the package.
runpy.run_path(str(Path(__file__).parents[1] / "lc_keras/internals/startup.py"))["import_quietly"]()
