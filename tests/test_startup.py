"""The package quiets TensorFlow when run as a program, and leaves it alone when imported."""

import importlib
import os
import sys

import keras
import pytest

import lc_keras
from lc_keras.internals import startup


def test_only_the_command_line_is_one(monkeypatch):
    for argv, original, expected in (
        (["-m"], ["python", "-m", "lc_keras", "report"], True),
        (["/usr/bin/lc-keras", "report"], ["python", "/usr/bin/lc-keras"], True),
        (["-m"], ["python", "-m", "trainer"], False),
        (["train.py"], ["python", "train.py"], False),
        ([""], ["python"], False),
    ):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", original)
        assert startup.is_command_line() == expected


def test_a_process_without_an_error_stream_has_nothing_to_silence(monkeypatch):
    def closed(descriptor):
        raise OSError(f"no stream {descriptor}")

    monkeypatch.setattr(os, "dup", closed)
    startup.import_quietly()


def test_another_backend_is_an_error(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="TensorFlow backend of Keras. Received: 'jax'"):
        importlib.reload(lc_keras)
