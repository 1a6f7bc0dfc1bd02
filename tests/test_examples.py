"""Each example, run once with little of everything."""

import contextlib
import importlib
import io
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples import data, lenet300_mnist, mnist, progress, tradeoff
from examples import resnet_cifar10 as resnet

ROOT = Path(__file__).parent.parent


def run(script, output, *options):
    """Runs an example in this process and returns its points by method and what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(printed):
        patched.setattr(sys, "argv", [script, "--output", str(output), *options])
        importlib.import_module(f"examples.{script}").main()
    assert (output / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    points = json.loads((output / "tradeoff.json").read_text())["points"]
    return points, printed.getvalue()


def methods(points):
    return [point["method"] for point in points]


def test_digits(tmp_path):
    options = ("--keep", "0.1", "--epochs", "8", "--reference-epochs", "4")
    points, printed = run("digits", tmp_path, *options)
    assert methods(points) == ["reference", "direct compression", "LC"]
    assert [point["kept"] for point in points] == [50_200, 5_020, 5_020]
    assert points[0]["error"] < 15
    assert points[2]["kilobytes"] < points[0]["kilobytes"] / 5
    assert "Served by TensorFlow alone" in printed and "5,020" in printed
    served, images = np.load(tmp_path / "outputs.npy"), np.load(tmp_path / "inputs.npy")
    assert images.shape == (500, 64) and served.shape == (500, 10)


COSTS = ["l0-constraint", "l1-constraint", "l0-penalty", "l1-penalty"]


@pytest.mark.parametrize("costs", [COSTS[:1], pytest.param(COSTS, marks=pytest.mark.slow)], ids=len)
def test_lenet300_at_each_cost(tmp_path, mnist_dir, costs):
    options = ("--epochs", "1", "--reference-epochs", "1", "--samples", "600")
    budgets = ("--keep", "0.05", "--alpha", "1e-6", "--mu", "1e-3:1e-1")
    points, _ = run("lenet300_mnist", tmp_path, "--costs", *costs, *options, *budgets)
    assert methods(points) == ["reference", "direct compression", *(f"LC {c}" for c in costs)]
    assert [point["kept"] for point in points[:3]] == [266_200, 13_310, 13_310]
    assert all(0 < point["kept"] < 266_200 for point in points[3:])
    if (Path(os.environ.get("LC_KERAS_ANCHORS", "")) / "lenet300_classic.npz").exists():
        assert points[0]["error"] == pytest.approx(2.13, abs=0.005)
        assert points[1]["error"] > 20


@pytest.mark.slow
def test_lenet5_on_validation_images(tmp_path, mnist_dir):
    options = ("--keep", "0.01", "--epochs", "1", "--reference-epochs", "1", "--samples", "600")
    points, printed = run("lenet5_mnist", tmp_path, *options, "--validation")
    assert [point["kept"] for point in points] == [430_500, 4_305, 4_305]
    assert "validation error" in printed and "test error" not in printed
    assert len(list(tmp_path.glob("reference-*.weights.h5"))) == 1


@pytest.mark.parametrize(
    "depth, weights", [(32, 461_872), (56, 848_944), pytest.param(110, 1_719_856, marks=pytest.mark.slow)]
)
def test_resnets_have_the_weights_of_the_paper(depth, weights):
    model = resnet.build(depth)
    kernels = [w for w in model.trainable_weights if w.path.endswith("kernel")]
    assert sum(math.prod(kernel.shape) for kernel in kernels) == weights == resnet.PRUNABLE[depth]
    scales = [w for w in model.trainable_weights if w.path.endswith("gamma")]
    assert len(kernels) == depth and len(scales) == depth - 1
    assert all(abs(w.regularizer.l2 - 1e-4) < 1e-9 for w in kernels + scales)


def test_means_of_the_seeds_of_a_resnet():
    settings = {**dict.fromkeys(resnet.SETTINGS, 8), "keep": 0.1, "weights": 74_800}

    def rows(epochs, errors):
        return [
            {**settings, "epochs": epochs, "seed": seed, "contender": method, "error": error}
            | {"reference_error": 30.0 + seed}
            for seed, error in enumerate(errors)
            for method in resnet.METHODS
        ]

    one, three = resnet.table(rows(8, [40.0]) + rows(24, [31.0, 35.0, 33.0])).split("\n\n")
    assert "seed 0\nreference 30.00 %" in one and "after 8 more" in one and "40.00" in one
    assert "mean (largest) of seeds 0, 1, 2\nreference 31.00 (32.00) %" in three
    assert three.count("33.00 (35.00)") == len(resnet.METHODS)


def test_rates_of_a_resnet_fall():
    cosine, steps = (resnet.falling(name, 0.1, 100) for name in ("cosine", "steps"))
    assert [round(float(cosine(i)), 4) for i in (0, 50, 100)] == [0.1, 0.05, 0.0]
    assert [round(float(steps(i)), 4) for i in (0, 49, 50, 74, 75)] == [0.1, 0.1, 0.01, 0.01, 0.001]


def test_queued_runs_take_turns(tmp_path, monkeypatch):
    waits, turns = threading.Event(), []
    monkeypatch.setattr(resnet, "print", lambda *_, **__: waits.set(), raising=False)
    first, second = (resnet.options(["--queue", "--output", str(tmp_path / name)]) for name in "ab")

    def take_turn():
        with resnet.prepared(second):
            turns.append("second")

    other = threading.Thread(target=take_turn)
    with resnet.prepared(first):
        other.start()
        assert waits.wait(10) and not turns
    other.join(10)
    assert turns == ["second"]


def test_a_resnet_that_was_trained_elsewhere_is_read(tmp_path):
    path = tmp_path / "trained.weights.h5"
    resnet.build(8).save_weights(path)
    options = resnet.options(
        ["--reduced", "--seed", "1", "--reference", str(path), "--output", str(tmp_path)]
    )
    restored = resnet.trained(None, options)
    expected = resnet.build(8)
    expected.load_weights(path)
    for own, other in zip(restored.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(own, other)


def test_a_resnet_of_another_depth():
    with pytest.raises(ValueError, match="depth=10"):
        resnet.build(10)


@pytest.mark.slow
def test_a_resnet_loads_without_lc_keras(tmp_path):
    model = resnet.build(8)
    model.save(tmp_path / "resnet.keras")
    np.save(tmp_path / "images.npy", np.random.normal(size=(2, 32, 32, 3)).astype("float32"))
    script = (
        "import keras, numpy as np, sys\n"
        "model = keras.saving.load_model('resnet.keras')\n"
        "np.save('logits.npy', model(np.load('images.npy')))\n"
        "assert 'lc_keras' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=environment)
    np.testing.assert_allclose(
        np.load(tmp_path / "logits.npy"), model(np.load(tmp_path / "images.npy")), rtol=1e-4, atol=1e-4
    )


def test_a_resnet_goes_on_from_its_own_reference(monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(resnet, "fit", lambda *args: trained.append(args[2:4]))
    args = resnet.options(["--reduced", "--output", str(tmp_path)])
    weights = [resnet.trained(None, args).get_weights() for _ in range(2)]
    assert trained == [(20, "reference")]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)
    for name, value in (("seed", 1), ("samples", 20), ("reference_epochs", 3), ("learning_rate", 0.2)):
        begun = resnet._begun("reference", args)
        setattr(args, name, value)
        resnet.trained(None, args)
        assert resnet._begun("reference", args) != begun
    assert len(trained) == 5


def test_each_channel_is_standardised_whatever_the_number_of_images(monkeypatch):
    one = np.random.default_rng(0).uniform(0, [1, 0.5, 0.1], (1, 32, 32, 3)).astype("float32")
    # More than single precision can count.
    images, labels = np.broadcast_to(one, (2**24 // 32**2 * 2, 32, 32, 3)), np.zeros(2**15, "int32")
    monkeypatch.setattr(resnet.data, "cifar10", lambda: ((images, labels), (1 - one, labels[:1])))
    (train, _), (test, _) = resnet.load(samples=2)
    assert train.shape == (2, 32, 32, 3) and train.dtype == test.dtype == "float32"
    np.testing.assert_allclose(train.mean(axis=(0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(train.std(axis=(0, 1, 2)), 1, atol=1e-3)
    np.testing.assert_allclose(test, (1 - one - one.mean((0, 1, 2))) / one.std((0, 1, 2)), atol=1e-2)


def test_errors_of_a_resnet_after_as_many_epochs_stand_together():
    case = dict.fromkeys(resnet.SETTINGS, 0) | {"weights": 74_800, "reference_error": 32.4, "keep": 0.1}
    rows = [
        {**case, "epochs": epochs, "contender": method, "error": epochs + place}
        for epochs in (8, 24)
        for place, method in enumerate(resnet.METHODS)
    ]
    tables = resnet.table(rows).split("\n\n")
    assert ["after 8 more" in table for table in tables] == [True, False]
    means = [line.split()[-1] for table in tables for line in table.splitlines()[-3:]]
    assert means == ["8.00", "9.00", "10.00", "24.00", "25.00", "26.00"]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_fused_normalisation_is_that_of_keras(policy):
    images = np.random.default_rng(0).normal(1, 3, (64, 8, 8, 4)).astype("float32")
    outputs, gradients, statistics = [], [], []
    for kind in (resnet.FusedNormalization, keras.layers.BatchNormalization):
        layer = kind(momentum=0.9, dtype=policy)
        layer.build(images.shape)
        layer.gamma.assign([1.0, 2.0, 0.5, -1.0])
        x = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(tf.sin(tf.cast(y, "float32")))
        gradients.append(tape.gradient(loss, [x, layer.gamma.value]))
        outputs.append([tf.cast(v, "float32") for v in (y, layer(x, training=False))])
        statistics.append([v.numpy() for v in layer.non_trainable_variables])
    tolerance = 1e-3 if policy == "float32" else 3e-2
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=10 * tolerance, atol=tolerance * np.abs(other).max())
    for one, other in zip(*statistics, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance)


def test_shortcuts_take_every_other_pixel_and_add_channels_of_zeros():
    inputs = keras.Input((8, 8, 6))
    shortcut = keras.Model(inputs, resnet._shortcut(inputs, 3))
    images = np.random.normal(size=(2, 8, 8, 6)).astype("float32")
    narrowed = shortcut(images).numpy()
    assert not shortcut.weights
    np.testing.assert_array_equal(narrowed[..., 3:9], images[:, ::2, ::2])
    assert narrowed.shape == (2, 4, 4, 12) and not narrowed[..., :3].any() and not narrowed[..., 9:].any()


def test_augmented_images_are_shifted_and_flipped_anew_in_each_epoch():
    images = np.arange(1, 16 * 32 * 32 * 3 + 1, dtype="float32").reshape(16, 32, 32, 3)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    shifts = [(i, j, step) for i in range(9) for j in range(9) for step in (1, -1)]
    batches = resnet.augmented((images, np.arange(16)), 8, seed=0)
    drawn = []
    for _ in range(2):
        found = {}
        for part, labels in batches:
            for image, label in zip(part.numpy(), labels.numpy(), strict=True):
                (found[int(label)],) = [
                    (i, j, step)
                    for i, j, step in shifts
                    if np.array_equal(image, padded[label, i : i + 32, j : j + 32][:, ::step])
                ]
        drawn.append(found)
    assert sorted(drawn[0]) == list(range(16)) and drawn[0] != drawn[1]
    assert {step for _, _, step in drawn[0].values()} == {1, -1}
    assert len({i for i, _, _ in drawn[0].values()}) > 3 and len({j for _, j, _ in drawn[0].values()}) > 3


@pytest.mark.slow
def test_neuron_budget(tmp_path, mnist_dir):
    options = ("--keep", "0.25", "--epochs", "2", "--tuning-epochs", "1", "--reference-epochs", "1")
    options += ("--samples", "300", "--rounds", "2")
    subprocess.run(
        [sys.executable, "-m", "examples.neuron_budget", "--output", tmp_path, *options],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    points = json.loads((tmp_path / "lenet5/points.json").read_text())
    pruned = "direct compression", "magnitude in 2 rounds", "LC"
    assert methods(points) == ["reference", *(f"{method} 0.25" for method in pruned)]
    assert all(0.2 < point["macs_fraction"] <= 0.25 for point in points[1:])
    assert all(p["ms_per_batch_of_32"] > 0 and p["ms_of_reference"] > 0 for p in points)
    assert (tmp_path / "lenet5/filters-0.25.png").stat().st_size > 1000


def test_a_trained_reference_is_kept(tmp_path, capsys):
    args = SimpleNamespace(
        output=tmp_path / "new",
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=32,
        reference_epochs=1,
        seed=0,
        jit_compile=False,
    )
    train = np.random.normal(size=(64, 784)).astype("float32"), np.zeros(64, "int32")
    first = mnist.trained(lenet300_mnist.build, train, args)
    assert "reference" in capsys.readouterr().out
    second = mnist.trained(lenet300_mnist.build, train, args)
    assert capsys.readouterr().out == ""
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    args.seed = 1
    mnist.trained(lenet300_mnist.build, train, args)
    assert "reference" in capsys.readouterr().out


def test_digits_are_always_split_alike():
    first, second = data.digits(), data.digits()
    assert [len(labels) for _, labels in first] == [1000, 297, 500]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    images = [images.tobytes() for part, _ in first for images in part]
    assert len(set(images)) == len(images) == 1797


def test_batches_cover_the_data_in_a_new_order_each_epoch():
    batches = data.batches((np.arange(100), 2 * np.arange(100)), 32, seed=0)
    epochs = [[(x.numpy(), y.numpy()) for x, y in batches] for _ in range(2)]
    assert [len(x) for x, _ in epochs[0]] == [32, 32, 32, 4]
    orders = [np.concatenate([x for x, _ in epoch]) for epoch in epochs]
    for epoch, order in zip(epochs, orders, strict=True):
        assert sorted(order) == list(range(100))
        np.testing.assert_array_equal(np.concatenate([y for _, y in epoch]), 2 * order)
    assert not np.array_equal(*orders)
    still = data.batches((np.arange(10),), 4)
    assert [x.numpy().tolist() for (x,) in still] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("shape", [(6, 6, 1), (36,)])
def test_images_are_shifted_anew_in_each_epoch(shape):
    images = np.random.default_rng(0).normal(size=(400, 6, 6)).astype("float32")
    sides = [images, *(np.roll(images, by, axis) for axis in (1, 2) for by in (1, -1))]
    plain = data.batches((images.reshape(-1, *shape), np.arange(400)), 32)
    shifted = data.shifted(plain, 0.4, seed=1)
    assert shifted.cardinality() == plain.cardinality() == 13
    assert shifted.element_spec[0].shape[1:] == shape

    def sides_of(batches):
        chosen = []
        for shown, numbers in batches:
            for image, number in zip(shown.numpy().reshape(-1, 6, 6), numbers.numpy(), strict=True):
                chosen += [i for i, side in enumerate(sides) if np.array_equal(side[number], image)]
        return chosen

    first, second = sides_of(shifted), sides_of(shifted)
    assert len(first) == len(second) == 400 and first != second
    assert sides_of(data.shifted(plain, 0.4, seed=1)) == first
    counts = np.bincount(first)
    assert abs(counts[0] - 240) < 40 and all(abs(count - 40) < 20 for count in counts[1:])


def test_inputs_are_dropped_anew_in_each_epoch():
    plain = data.batches((np.ones((400, 6, 6), "float32"), np.arange(400)), 32)
    dropped = data.dropped(plain, 0.2, seed=1)
    assert dropped.cardinality() == 13 and dropped.element_spec == plain.element_spec

    def inputs_of(batches):
        return np.concatenate([x for x, _ in batches.as_numpy_iterator()])

    first, second = inputs_of(dropped), inputs_of(dropped)
    np.testing.assert_allclose(np.unique(first), [0, 1.25])
    assert abs(np.mean(first == 0) - 0.2) < 0.02 and np.any(first != second)
    np.testing.assert_array_equal(inputs_of(data.dropped(plain, 0.2, seed=1)), first)


def test_table_and_plot(tmp_path):
    points = [
        tradeoff.Point("reference", 1.0, 1000, 4.0, 2.0),
        tradeoff.Point("LC", 0.02, 20, 0.1, 3.25),
        tradeoff.Point("LC", 0.05, 50, 0.2, 0.0),
    ]
    lines = tradeoff.table(points).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1
    assert "2.00 %" in lines[2] and "3.25 %" in lines[2]
    # An error of 0 has no place on a logarithmic axis.
    tradeoff.plot(points, tmp_path / "tradeoff.png")
    assert (tmp_path / "tradeoff.png").stat().st_size > 5000


def test_one_line_of_progress(capsys):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    bar = progress.OneLine("net")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=8, verbose=0, callbacks=[bar])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("net ") and "epoch 8/8" in line and "loss" in line
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=0, verbose=0, callbacks=[bar])
    assert "epoch 0/0" in capsys.readouterr().out


@pytest.mark.slow
def test_what_to_keep_is_sought_in_three_ways(tmp_path):
    options = ("--trials", "2", "--epochs", "1", "--reference-epochs", "2", "--output", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "examples.search_keep", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "of the weights" in line] == [
        "smallest",
        "keras-tuner",
        "scikit-learn",
    ]
