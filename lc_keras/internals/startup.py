"""Start on TensorFlow, and programs of this package without what TensorFlow prints before it can be told.

While it is imported, TensorFlow writes lines about processors and devices to the error stream, whatever
`TF_CPP_MIN_LOG_LEVEL` says. Users who import `lc_keras` in programs of their own still see these lines.
"""

import os
import sys


def is_command_line() -> bool:
    """Return whether the program that runs is `lc-keras` or `python -m lc_keras`."""
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    return program == "lc-keras" or (program == "-m" and "lc_keras" in sys.orig_argv)


def import_quietly() -> None:
    """Import TensorFlow with the error stream of the process silenced; Python's exceptions are not.

    Without an error stream there is nothing to silence, and TensorFlow is imported where it is needed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        stderr = os.dup(2)
    except OSError:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(nowhere)
        os.close(stderr)


def check_backend() -> None:
    """Check that Keras runs on TensorFlow.

    Raises:
        ImportError: If it runs on another backend.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            "lc_keras needs the TensorFlow backend of Keras. Received: "
            f"'{keras.backend.backend()}'. Set KERAS_BACKEND=tensorflow in the environment before Keras is "
            "imported."
        )
