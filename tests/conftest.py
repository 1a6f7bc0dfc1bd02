"""What every test file shares: a quiet TensorFlow, seeds, and MNIST where it is at hand."""

import os
import re
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import keras
import pytest


@pytest.fixture(autouse=True)
def seed():
    """The same random weights and data in each run, whatever ran before."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def mnist_dir():
    """The folder that holds MNIST prepared for TFDS; nothing is downloaded in a test."""
    return _prepared("mnist")


@pytest.fixture(scope="session")
def cifar10_dir():
    """As `mnist_dir`, of CIFAR-10."""
    return _prepared("cifar10")


def _prepared(name):
    folder = Path(os.environ.get("TFDS_DATA_DIR", ""))
    if not (folder / name).is_dir():
        pytest.skip(f"TFDS_DATA_DIR holds no {name}")
    return str(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    """Takes the addresses out of tests' names, which processes run in parallel compare."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        name = mark.kwargs.get("ids")
        if callable(name):
            mark.kwargs["ids"] = lambda value, name=name: _without_addresses(name(value))


def _without_addresses(name):
    return re.sub(r" at 0x[0-9a-f]+", "", name) if isinstance(name, str) else name
