"""Make directories that appear complete or not at all."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

# What TensorFlow, Keras and this library write into the directory of a SavedModel.
_OF_SAVED_MODELS = {
    *("saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra", "debug"),
    *("keras_metadata.pb", "model.tflite"),
}


@contextlib.contextmanager
def appearing(path: str, overwrite: bool) -> Iterator[str]:
    """Yield a new directory beside `path`, which takes that name at the end, unless the block raises.

    With `overwrite`, a directory of that name is moved aside first, and moved back if the new one cannot take
    its place. Without it, a directory there that is not empty is an error, even if another process wrote it
    in the meantime.
    """
    unfinished, replaced = (f"{path}.{state}-{uuid.uuid4().hex}" for state in ("unfinished", "replaced"))
    missing = list(_missing(os.path.dirname(path)))
    try:
        tf.io.gfile.makedirs(unfinished)
        yield unfinished
        if overwrite and _is_there(path):
            tf.io.gfile.rename(path, replaced)
        try:
            # For a directory, `overwrite` means: if the one there is empty.
            tf.io.gfile.rename(unfinished, path, overwrite=True)
        except BaseException:
            if _is_there(replaced):
                tf.io.gfile.rename(replaced, path)
            raise
    except BaseException:
        _remove(unfinished)
        for parent in missing:
            # Somebody else may have put something there meanwhile.
            if tf.io.gfile.exists(parent) and not tf.io.gfile.listdir(parent):
                tf.io.gfile.rmtree(parent)
        raise
    _remove(replaced)


def version_directory(path: str, version: int | str | None) -> str:
    """Return the directory to write a model to, for a given path and version.

    An int is a version of the model whose base directory is `path`; `"next"` is one above the highest there,
    or 1. `None` means `"next"` if `path` already holds versions, and `path` itself if not.
    """
    if isinstance(version, np.integer):
        version = int(version)
    # A bool is an int.
    if version is not None and version != "next" and type(version) is not int:
        raise TypeError(
            'Expected `version` to be None, "next" or an int. '
            f"Received: {version!r} (of type {type(version).__name__})"
        )
    if isinstance(version, int) and version < 0:
        raise ValueError(f"Expected `version` to be at least 0. Received: {version}")
    if version is not None and tf.saved_model.contains_saved_model(path):
        raise ValueError(
            f"Expected a model's base directory for version={json.dumps(version)}. Received: '{path}', a "
            "SavedModel itself"
        )
    if isinstance(version, int):
        return os.path.join(path, str(version))
    versions = _versions(path)
    if versions or version == "next":
        return os.path.join(path, str(max(versions, default=0) + 1))
    return path


def check_free(path: str, overwrite: bool) -> None:
    """Check that a SavedModel may be written to `path`, and that one there is replaced only with `overwrite`.

    Raises:
        ValueError: If `path` does not end in a name, has a name that TensorFlow could not load or that of a
            Keras or LiteRT file, is a file or lies in one, or holds anything that may not be replaced.
    """
    # The directory appears beside `path` first, and beside ".." is somewhere else.
    if os.path.basename(path) in ("", os.curdir, os.pardir):
        raise ValueError(f"Expected `path` to end in the name of a directory. Received: '{path}'")
    if patterns := set(path) & set("[]\\"):
        raise ValueError(
            f"Expected `path` without {' and '.join(sorted(patterns))}, which TensorFlow takes for a pattern "
            f"when it loads a SavedModel. Received: '{path}'"
        )
    check_name(path)
    if path.lower().endswith(".tflite"):
        raise ValueError(
            f"Expected `path` to be a directory. Received: '{path}', the name of a LiteRT file, which "
            "`lc_keras.export_litert` writes."
        )
    parent = check_parents(path)
    if os.path.islink(path) and not overwrite:
        raise ValueError(
            f"Expected `path` to be new or empty. Received: '{path}', a symbolic link; pass overwrite=True "
            "to replace it, or the path that it leads to."
        )
    found = sorted(tf.io.gfile.listdir(path)) if parent == path else []
    if not found:
        return
    held = f"'{path}', which holds {', '.join(found[:5])}"
    if not overwrite:
        raise ValueError(
            f"Expected `path` to be new or empty. Received: {held}; pass overwrite=True to "
            "replace a SavedModel."
        )
    if "saved_model.pb" not in found:
        raise ValueError(f"Expected `path` to hold a SavedModel to replace. Received: {held}.")
    if others := [name for name in found if name.rstrip("/") not in _OF_SAVED_MODELS]:
        raise ValueError(
            f"Expected `path` to hold nothing but a SavedModel to replace. Received: '{path}', which also "
            f"holds {', '.join(others[:5])}."
        )


def check_name(path: str) -> None:
    """Check that a path does not have the name of a Keras file, since such files are read by their names."""
    if path.lower().endswith((".keras", ".h5", ".hdf5")):
        raise ValueError(
            "Expected a `path` that does not end as the files of Keras do, which `model.save` writes. "
            f"Received: '{path}'"
        )


def check_parents(path: str) -> str:
    """Check that a directory may be made, and return the part of its path that exists; `""` if none does."""
    parent = path
    while parent and not tf.io.gfile.exists(parent):
        parent = os.path.dirname(parent)
    if parent and not tf.io.gfile.isdir(parent):
        raise ValueError(f"Expected `path` to be a directory. Received: '{path}'; '{parent}' is a file.")
    return parent


def _is_there(path: str) -> bool:
    """Return whether a path exists, if only as a link that leads nowhere."""
    return os.path.islink(path) or tf.io.gfile.exists(path)


def _remove(path: str) -> None:
    """Remove a directory if it exists, but nothing that links in it point to."""
    if os.path.islink(path):
        os.unlink(path)
    elif os.path.isdir(path):
        # TensorFlow's own `rmtree` would follow the links.
        shutil.rmtree(path)
    elif tf.io.gfile.exists(path):
        tf.io.gfile.rmtree(path)


def _versions(path: str) -> list[int]:
    found = tf.io.gfile.listdir(path) if path and tf.io.gfile.isdir(path) else []
    return [int(name) for name in (name.rstrip("/") for name in found) if name.isdecimal()]


def _missing(path: str) -> Iterator[str]:
    """Yield the directories of a path that do not exist, the innermost first."""
    while path and not tf.io.gfile.exists(path):
        yield path
        path = os.path.dirname(path)
