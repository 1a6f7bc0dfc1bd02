"""Several devices and several workers: where things are, and that the result is the same as on one device."""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels

from examples import multi_worker
from lc_keras import (
    Blocks,
    Exponential,
    L0Constraint,
    L0Penalty,
    L1Constraint,
    L1Penalty,
    L2Constraint,
    L2Penalty,
    LearningCompression,
    Neurons,
    baselines,
)
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.reaching import ReachingLagrangian
from lc_keras.algorithm.tasks import Task, bind_tasks

ROOT = Path(__file__).parents[2]
COSTS = [
    L0Constraint(0.1),
    L0Penalty(1e-4),
    L1Constraint(20.0),
    L1Penalty(1e-3),
    L2Constraint(5.0),
    L2Penalty(0.1),
    L0Constraint(0.5, Neurons()),
    L0Constraint(0.5, Neurons(), measure="macs"),
    L0Constraint(0.2, measure="macs"),
    L1Penalty(1e-2, Blocks((4, 4))),
]

rng = np.random.default_rng(0)
X = rng.normal(size=(128, 16)).astype("float32")
Y = X[:, :4].argmax(axis=1)


@pytest.fixture(params=["CPU", "GPU"])
def replicas(request):
    """The devices of a `MirroredStrategy`, none of them the host's own."""
    return ["CPU:1", "CPU:2"] if request.param == "CPU" else request.getfixturevalue("gpus")


@pytest.fixture(params=["CPU:1", "GPU:0"])
def device(request):
    if request.param.startswith("GPU"):
        request.getfixturevalue("gpus")
    return request.param


def net(optimizer=None, **options):
    keras.utils.set_random_seed(1)
    layers = [keras.Input((16,)), keras.layers.Dense(24, "tanh"), keras.layers.Dense(4)]
    model = keras.Sequential(layers)
    model.compile(
        optimizer or keras.optimizers.SGD(0.1, momentum=0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return model


def fit(model, *callbacks, epochs=3):
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    return model.fit(
        batches, validation_data=batches, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks
    ).history


def replicated(replicas, **options):
    with tf.distribute.MirroredStrategy(replicas).scope():
        return net(**options)


# Several devices in one process


@pytest.mark.parametrize(
    "options, compress",
    [
        ({"optimizer": "adam"}, lambda: LearningCompression(L0Constraint(0.2))),
        # Operations of the same kind decide which units go.
        pytest.param({}, lambda: LearningCompression(L0Constraint(0.5, Neurons())), marks=pytest.mark.slow),
        pytest.param(
            {},
            lambda: LearningCompression(L1Penalty(0.05), mu=Exponential(0.5, 1.3), multipliers=False),
            marks=pytest.mark.slow,
        ),
        pytest.param({}, lambda: baselines.GradualPruning(L0Constraint(0.2)), marks=pytest.mark.slow),
    ],
    ids=["weights", "neurons", "penalty", "baseline"],
)
def test_replicas_end_where_one_device_does(replicas, options, compress):
    one, several = net(**options), replicated(replicas, **options)
    expected, received = fit(one, compress()), fit(several, compress())
    for a, b in zip(one.get_weights(), several.get_weights(), strict=True):
        np.testing.assert_array_equal(a != 0, b != 0)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert expected.keys() == received.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(values, received[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert any(not np.all(w) for w in one.get_weights() if w.ndim == 2)


def test_theta_and_multipliers_are_mirrored(replicas, lagrangians):
    model = replicated(replicas)
    compress, seen = (
        LearningCompression(L0Constraint(0.2), mu=[0.1 * 2**i for i in range(4)], epochs_per_step=0.25),
        [],
    )

    def look(batch, logs):
        lagrangian = lagrangians[-1]
        for held in [*lagrangian.thetas, *lagrangian.targets, lagrangian.slots[0].pull.mu]:
            copies = model.distribute_strategy.experimental_local_results(held)
            assert [name(copy.device) for copy in copies] == replicas
            values = [copy.numpy() for copy in copies]
            assert all(value.tobytes() == values[0].tobytes() for value in values)
        assert all(np.any(value) for value in lagrangian.multipliers) == (batch > 1)
        seen.append(batch)

    fit(model, compress, keras.callbacks.LambdaCallback(on_train_batch_end=look), epochs=1)
    assert seen == list(range(8))


@pytest.mark.slow
def test_a_run_on_several_devices_goes_on_from_its_checkpoint(replicas, tmp_path):
    whole = replicated(replicas)
    fit(whole, LearningCompression(L0Constraint(0.2)))

    class CutOff(LearningCompression):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt
            super().on_epoch_begin(epoch, logs)

    with pytest.raises(KeyboardInterrupt):
        fit(replicated(replicas), CutOff(L0Constraint(0.2), checkpoint_dir=tmp_path))
    resumed = replicated(replicas)
    history = fit(resumed, LearningCompression(L0Constraint(0.2), checkpoint_dir=tmp_path))
    assert len(history["loss"]) == 1
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# Where the C step runs

ASSIGNING = "AssignVariableOp", "StatefulPartitionedCall"
# Operations that pass a value, a branch or an order of events from one device to another.
PLUMBING = {"_Arg", "_Retval", "_DeviceArg", "_DeviceRetval", "_Send", "_Recv", "_HostSend", "_HostRecv"}
PLUMBING |= {"Identity", "NoOp", "Const", "Switch", "Merge", "VariableV2", "VarHandleOp"}


def name(device):
    return re.search(r"[A-Z]+:\d+$", device)[0]


def lagrangian_of(cost, scope, units=(40, 30)):
    with scope:
        layers = [keras.layers.Dense(n) for n in units]
        return Lagrangian(bind_tasks([Task(cost)], keras.Sequential([keras.Input((50,)), *layers])))


def compiled(function):
    """The nodes by device, as TensorFlow placed and split the graph of the function first called here."""
    context.context().enable_graph_collection()
    try:
        function()
        metadata = context.context().export_run_metadata()
    finally:
        context.context().disable_graph_collection()
    parts = max(metadata.function_graphs, key=lambda g: sum(len(p.node) for p in g.partition_graphs))
    placed = collections.defaultdict(list)
    for part in parts.partition_graphs:
        for node in part.node:
            placed[name(node.device)].append(node)
    return placed


def operations(nodes):
    return {node.op for node in nodes}


def sources(nodes):
    """The operations whose results leave a device, except those that merely say that something is done."""
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        inputs = [i for i in node.input if not i.startswith("^")]
        if node.op in ("_Send", "_HostSend"):
            source = by_name[inputs[0].split(":")[0]]
            while source.op in ("Identity", "Switch"):
                source = by_name[source.input[0].split(":")[0]]
            yield source


def c_step(lagrangian):
    return lambda: lagrangian.c_step(1.0, 2.0)


@pytest.mark.parametrize(
    "cost",
    [pytest.param(cost, marks=[pytest.mark.slow] * (i in (1, 3, 4))) for i, cost in enumerate(COSTS)],
    ids=repr,
)
def test_the_c_step_runs_where_the_weights_are(device, cost):
    lagrangian = lagrangian_of(cost, tf.device(device))
    assert {name(v.device) for v in [*lagrangian.thetas, *lagrangian.targets]} == {device}
    placed = compiled(c_step(lagrangian))
    assert {"ReadVariableOp", "AssignVariableOp", "IsFinite"} <= operations(placed[device])
    others = [node for where in placed if where != device for node in placed[where]]
    if device.startswith("CPU"):
        assert operations(others) <= PLUMBING
    assert not {"ReadVariableOp", "AssignVariableOp"} & operations(others)
    # What the host is told: what is finite, and which branch was taken.
    assert {node.op for node in sources(placed[device])} <= {"All", "Pack", "Merge", "Const", "Cast"}


def test_replicas_are_given_the_result_and_asked_for_nothing(replicas):
    if len(replicas) == 1:
        pytest.skip("one GPU")
    lagrangian = lagrangian_of(L0Constraint(0.1), tf.distribute.MirroredStrategy(replicas).scope())
    first, *others = replicas
    placed = compiled(c_step(lagrangian))
    assert {"ReadVariableOp", "AssignVariableOp", "DenseBincount"} <= operations(placed[first])
    for other in others:
        # The others are told the threshold, and decide by themselves.
        assert not {"DenseBincount", "IsFinite"} & operations(placed[other])
        # For each of two kernels, v, and θ with the target, by calls of functions traced once; and μ.
        assigning = [node.op for node in placed[other] if node.op in ASSIGNING]
        assert sorted(assigning) == ["AssignVariableOp"] + 4 * ["StatefulPartitionedCall"]
        assert not {node.op for node in sources(placed[other])} - {*ASSIGNING, "Const", "NoOp"}
    assert operations(placed["CPU:0"]) <= PLUMBING


LARGE = 100_000
# Branches for weights that are subnormal, huge or tied at the threshold.
RARE = re.compile(r"crowded(_\d+)?_true|normal(_\d+)?_false")
CALLS = {"If", "StatelessIf", "While", "StatelessWhile", "Placeholder"}
CALLS |= {"PartitionedCall", "StatefulPartitionedCall"}


def graphs(graph, seen):
    """Yield a graph and the graphs of the functions in it."""
    yield graph
    for op in graph.get_operations():
        for attribute in op.node_def.attr.values():
            for called in [attribute.func, *attribute.list.func]:
                if called.name and called.name not in seen and not RARE.search(called.name):
                    seen.add(called.name)
                    function = graph._get_function(called.name)
                    # A function that XLA compiles is one kernel.
                    if "_XlaMustCompile" not in function.cached_definition.attr:
                        yield from graphs(function.graph, seen)


def kernels_of(op):
    """Yield all kernels that TensorFlow has registered for an operation of these types on a GPU."""
    for kernel in kernels.get_registered_kernels_for_op(op.type).kernel:
        types = {c.name: c.allowed_values.list.type for c in kernel.constraint}
        given = {n: op.get_attr(n).as_datatype_enum for n in types if n in op.node_def.attr}
        if kernel.device_type in ("GPU", "DEFAULT") and all(given[n] in types[n] for n in given):
            yield kernel


def taken_to_the_host(graph):
    """Operations that would have a GPU send tensors of the weights' size to the host."""
    for inside in graphs(graph, set()):
        for op in inside.get_operations():
            names = []
            for a in op.op_def.input_arg:
                names += [a.name] * (op.get_attr(a.number_attr) if a.number_attr else 1)
            # Not strict: lists of several types are not spelt out.
            for argument, tensor in zip(names, op.inputs, strict=False):
                size = tensor.shape.num_elements()
                large = tensor.dtype != tf.resource and (size is None or size >= LARGE)
                if op.type in CALLS or not large:
                    continue
                if all(argument in kernel.host_memory_arg for kernel in kernels_of(op)):
                    yield f"{op.type} of {tensor.dtype.name} {tensor.shape}"


@pytest.mark.parametrize(
    "cost, dtype",
    [
        *((cost, "float32") for cost in COSTS),
        # The others differ from these only in the types of operations that these have, too.
        *(
            pytest.param(cost, "float64", marks=[pytest.mark.slow] * (i not in (0, 2, 6)))
            for i, cost in enumerate(COSTS)
        ),
    ],
    ids=repr,
)
def test_the_c_step_has_kernels_in_the_memory_of_a_gpu(cost, dtype):
    """TensorFlow says what each kernel reads from the memory of the host, even without a GPU."""
    keras.config.set_dtype_policy(dtype)
    try:
        lagrangian = lagrangian_of(cost, tf.device("CPU:0"), units=(4000, 100))
    finally:
        keras.config.set_dtype_policy("float32")
    single, double, flag = (tf.TensorSpec([], kind) for kind in (tf.float32, tf.float64, tf.bool))
    traced = [tf.function(lagrangian._measure).get_concrete_function()]
    if cost.can_loosen:
        # This has the operations of a fixed budget, and those that loosen it.
        reaching = ReachingLagrangian(lagrangian.shared)
        call, arguments = reaching._reaching, (double, single, single, *4 * [flag])
    else:
        call, arguments = lagrangian._c_step, (single, double, single)
    traced.append(tf.function(call, autograph=False).get_concrete_function(*arguments))
    for function in traced:
        assert list(taken_to_the_host(function.graph)) == []


def test_what_would_be_taken_to_the_host_is_seen():
    function = tf.function(lambda x: tf.reduce_max(tf.bitcast(x, tf.int32)))
    graph = function.get_concrete_function(tf.TensorSpec([LARGE])).graph
    assert list(taken_to_the_host(graph)) == [f"Max of int32 ({LARGE},)"]


# Several workers


@pytest.mark.slow  # two processes, twice; what replicas of one process do is tested above
def test_workers_agree_and_go_on_after_one_was_killed(monkeypatch, tmp_path):
    command = [sys.executable, "-m", "examples.multi_worker", "--epochs", "3", "--output", tmp_path]
    # Unbuffered, a line and its end are two writes, and another worker's writes come between them.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    killed, epochs = False, collections.defaultdict(list)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as watcher:
        processes = {}
        for line in watcher.stdout:
            if found := re.match(r"worker (\d) is process (\d+)", line):
                processes[found[1]] = int(found[2])
            elif found := re.match(r"worker (\d), epoch (\d)/3: density 0.100", line):
                epochs[found[1]].append(int(found[2]))
                if not killed and epochs["1"] == [1, 2]:
                    os.kill(processes["1"], 9)
                    killed = True
    assert watcher.returncode == 0 and killed
    for worker in "01":
        # The third epoch is not over before all workers have seen it, and the first is not run again.
        assert epochs[worker].count(1) == 1 and epochs[worker][-1] == 3

    monkeypatch.setattr(multi_worker, "AcrossWorkers", keras.Sequential)
    args = argparse.Namespace(keep=0.1, epochs=3, output=tmp_path / "alone")
    alone, _ = multi_worker.train(args, tf.distribute.get_strategy())
    first, second = (list(np.load(tmp_path / f"worker-{i}.npz").values()) for i in (0, 1))
    for weight, one, two in zip(alone.get_weights(), first, second, strict=True):
        assert one.tobytes() == two.tobytes()
        np.testing.assert_allclose(one, weight, rtol=1e-3, atol=1e-4)
    assert sum(np.count_nonzero(w) for w in first if w.ndim == 2) == 740


@pytest.mark.slow
def test_where_keras_alone_stops(tmp_path):
    """If this succeeds, a plain model will do in examples/multi_worker.py and docs/devices.md."""
    program = f"""
import argparse, pathlib, keras, tensorflow
from examples import multi_worker

class Built(multi_worker.AcrossWorkers):
    train_step = keras.Sequential.train_step

strategy = tensorflow.distribute.MultiWorkerMirroredStrategy()
args = argparse.Namespace(keep=0.1, epochs=1, output=pathlib.Path("{tmp_path}"))
for multi_worker.AcrossWorkers in (keras.Sequential, Built):
    try:
        multi_worker.train(args, strategy)
    except ValueError as error:
        print(repr(error).replace("\\n", " "))
"""
    workers = [f"localhost:{port}" for port in multi_worker.free_ports(2)]
    running = []
    for index in (0, 1):
        config = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        environment = {
            **os.environ,
            "TF_CONFIG": config,
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        command = [sys.executable, "-c", program]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    for process in running:
        first, second = process.communicate()[0].splitlines()
        assert "Attempt to convert a value (PerReplica" in first
        assert "Invalid reduction dimension 0 for input with 0 dimensions" in second
