"""What every benchmark writes: its rows, and where they were measured."""

import json
import os
import platform
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf


def environment():
    """Returns the machine and the versions as a dict of strings and numbers."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def write(path, rows):
    """Writes rows of figures as json, with the environment beside them.

    Args:
        path: Path or `None`, which writes nothing.
        rows: List of dicts.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


def read(path):
    """Returns the rows that `write` wrote; none if there is no file."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
