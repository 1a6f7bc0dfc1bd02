"""Other libraries, each in an environment of its own, on the same reference and the same batches."""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import keras
import numpy as np

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def interpreter(name):
    """Returns the Python of a peer's environment, which is made at the first call."""
    folder = Path("outputs/peers") / name
    python, installed = folder / "bin" / "python", folder / "installed"
    if not installed.exists():
        print(f"Installing the packages of {name} into {folder}, once.", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        packages = FOLDER / f"{name}.txt"
        subprocess.run([python, "-m", "pip", "install", "-qq", "-r", packages], check=True)
        installed.touch()
    return python


def run(name, reference, **options):
    """Prunes a copy of `reference` with another library.

    Args:
        name: String, the script beside this one.
        reference: `keras.Model`.
        **options: The options of the script.

    Returns:
        Dict with `kept`, `error` in %, `density_by_layer` and the library's `version`.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        np.savez(weights, *map(keras.ops.convert_to_numpy, reference.weights))
        command = [interpreter(name), "-m", f"benchmarks.peers.{name}", weights]
        for option, value in options.items():
            if value is not False:
                command += [f"--{option}"] if value is True else [f"--{option}", str(value)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
