"""What every test file shares: a quiet TensorFlow, several devices, seeds, and MNIST where available."""

import gc
import os
import re
import weakref
from pathlib import Path
from types import SimpleNamespace

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import examples  # noqa: F401, I001  # first: it imports TensorFlow quietly
import keras
import pytest
import tensorflow as tf
from tensorflow.python import pywrap_tfe

from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.export import converter

# One device that the machine has, and two that stand in for accelerators.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)
# Graphs this small run a few times each: optimizing them takes longer than it saves. Programs that tests
# start in processes of their own have TensorFlow as it is.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
# A new seed makes TensorFlow forget all kernels, so that random kernels with a state begin anew. Making the
# kernels again took a quarter of the time of all tests. Keras' random numbers, which tests use, have no such
# state.
pywrap_tfe.TFE_ContextClearCaches = lambda context: None


@pytest.fixture
def gpus():
    """The names of the GPUs; tests that are marked `gpu` and do not ask for them run there by themselves."""
    names = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("GPU")]
    return names or pytest.skip("no GPU")


@pytest.fixture(autouse=True)
def seed():
    """The same random weights and data in each run, whatever ran before."""
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def collective_keys():
    """Keys of its own for each test's replicas: under a key TensorFlow expects the same shapes ever after."""
    tf.distribute.MirroredStrategy._collective_key_base += 1000


class ConverterHere:
    """A converter in this process, which need not import TensorFlow again."""

    returncode = 0

    def __init__(self, command, **_):
        self.folder = command[-1]

    def communicate(self, sent=None):
        if sent is not None:
            converter.converting.convert(self.folder)

    def kill(self):
        pass


@pytest.fixture
def child():
    """Has a test convert in a process of its own, as users do."""


@pytest.fixture(autouse=True)
def converter_here(request, monkeypatch):
    """Has all other tests convert to LiteRT in this process."""
    if "child" not in request.fixturenames:
        here = SimpleNamespace(**vars(converter.subprocess) | {"Popen": ConverterHere})
        monkeypatch.setattr(converter, "subprocess", here)


@pytest.fixture
def lagrangians(monkeypatch):
    """A list to which each `Lagrangian` of the test adds itself when it is made, without being kept alive."""
    made, init = [], Lagrangian.__init__

    def recorded(self, *args, **options):
        init(self, *args, **options)
        made.append(weakref.proxy(self))

    monkeypatch.setattr(Lagrangian, "__init__", recorded)
    return made


@pytest.fixture(scope="session")
def mnist_dir():
    """The folder that holds MNIST prepared for TFDS; nothing is downloaded in a test."""
    return _prepared("mnist")


@pytest.fixture(scope="session")
def cifar10_dir():
    """Like `mnist_dir`, for CIFAR-10."""
    return _prepared("cifar10")


def _prepared(name):
    folder = Path(os.environ.get("TFDS_DATA_DIR", ""))
    if not (folder / name).is_dir():
        pytest.skip(f"TFDS_DATA_DIR holds no {name}")
    return str(folder)


HERE = Path(__file__).parent
# The rooms whose tests compute with TensorFlow alone, on a GPU where there is one.
ON_GPU = {"algorithm", "baselines", "costs", "fit"}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name in ON_GPU:
            item.add_marker("gpu")
    # Tests outside any room are the longest; started last, one of them would keep a single processor busy.
    items.sort(key=lambda item: item.path.parent != HERE)


def pytest_collection_finish():
    _free_garbage()
    gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    _free_garbage()


def _free_garbage():
    """Frees what nothing uses any more; what is in use is not searched again.

    TensorFlow takes disproportionately long to free the graphs of many tests at once: when this was left to
    Python, tests stalled for a minute now and then, a third of their total time.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    """Removes the addresses from test names, which processes that run in parallel compare."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        name = mark.kwargs.get("ids")
        if callable(name):
            mark.kwargs["ids"] = lambda value, name=name: _without_addresses(name(value))


def _without_addresses(name):
    return re.sub(r" at 0x[0-9a-f]+", "", name) if isinstance(name, str) else name
