"""Logs, validation and saved files while LC runs."""

import re
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import lc_keras
from helpers import (
    KEPT,
    RANGE,
    WEIGHTS,
    X,
    Y,
    fit,
    lc,
    loss,
    net,
    nonzeros,
    same,
    spy,
)

# A fit that runs to its end has nothing to warn about.
pytestmark = pytest.mark.filterwarnings(
    "error:Training (stopped|was interrupted)", "error:An L step of", "error:.* L steps need"
)


@pytest.mark.parametrize("first", [True, False])
def test_logs(tmp_path, first):
    csv, compress = keras.callbacks.CSVLogger(tmp_path / "log.csv"), lc(epochs_per_step=1)
    callbacks = [compress, csv] if first else [csv, compress]
    logs = fit(net(), callbacks, epochs=3, validation_data=(X, Y)).history
    np.testing.assert_allclose(logs["mu"], RANGE.over(3), rtol=1e-6)
    np.testing.assert_allclose(logs["density"], 3 * [KEPT / WEIGHTS], rtol=1e-6)
    assert logs["l_step"] == [1, 2, 3] and logs["l_steps"] == [3, 3, 3]
    assert all(0 < gap < 1 for gap in logs["gap"]) and len(set(logs["gap"])) == 3
    assert (compress.gap, compress.density) == (logs["gap"][-1], logs["density"][-1])
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    table = np.array([[float(value) for value in row.split(",")] for row in rows])
    for name in ("mu", "density", "gap", "l_step", "l_steps"):
        np.testing.assert_allclose(table[:, header.split(",").index(name)], logs[name])


def test_a_picture_of_the_run(tmp_path):
    compress = lc(epochs_per_step=1)
    with pytest.raises(ValueError, match="completed an epoch"):
        compress.plot()
    logs = fit(net(), [compress], epochs=3, validation_data=(X, Y)).history
    drawn = {axes.get_title(): axes for axes in compress.plot(tmp_path / "run.png").axes}
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    titles = {
        "μ": "mu",
        "density: the fraction kept": "density",
        "gap ‖w − θ‖ / ‖w‖": "gap",
        "val_loss": "val_loss",
    }
    assert drawn.keys() == titles.keys()
    for title, name in titles.items():
        (line,) = drawn[title].lines
        assert line.get_xdata().tolist() == [1, 2, 3]
        np.testing.assert_allclose(line.get_ydata(), logs[name])
    fit(net(), [compress], epochs=1)
    assert [line.get_xdata().tolist() for axes in compress.plot().axes for line in axes.lines] == 4 * [[1]]


def test_it_says_its_task_its_mu_and_its_steps():
    compress = lc_keras.LearningCompression(
        lc_keras.L0Constraint(0.05), mu=lc_keras.Geometric(0.1, 1.0), steps=8
    )
    assert repr(compress) == (
        "LearningCompression(Task(L0Constraint(keep=0.05)), mu=Geometric(first=0.1, last=1.0), steps=8)"
    )
    assert "mu='auto', steps=None" in repr(lc_keras.LearningCompression([lc_keras.L0Constraint(5)] * 2))


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_tensorboard(tmp_path, first):
    pytest.importorskip("tensorboard")
    board, model = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1), net()
    logs = fit(model, [lc(), board] if first else [board, lc()], validation_data=(X, Y)).history
    written = {}
    for path in tmp_path.glob("*/events*"):
        for event in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            for value in tf.compat.v1.Event.FromString(event).summary.value:
                name = f"{path.parent.name}/{value.tag}"
                written.setdefault(name, []).append(tf.make_ndarray(value.tensor))
    for name in ("loss", "mu", "gap", "density"):
        np.testing.assert_allclose(written[f"train/epoch_{name}"], logs[name], rtol=1e-6)
    np.testing.assert_allclose(written["validation/epoch_loss"], logs["val_loss"], rtol=1e-6)
    kernel = model.layers[0].kernel
    # Buckets of a lower end, an upper end and a count.
    buckets = written[f"train/{kernel.path}/histogram"][-1]
    assert sum(count for low, high, count in buckets if low <= 0 <= high) >= np.sum(kernel.numpy() == 0)


def test_progress_bar_shows_the_l_step(capsys):
    fit(net(), [lc()], verbose=1)
    out = capsys.readouterr().out
    steps = [float(number) for number in re.findall(r"l_step: ([\d.]+)", out)]
    assert steps == sorted(steps) and steps[-1] == 8 and 4 in steps
    assert {float(number) for number in re.findall(r"l_steps: ([\d.]+)", out)} == {8}


def test_validation_is_of_the_compressed_model_and_disturbs_nothing():
    model, plain, seen = net(), net(), []
    look = spy(on_epoch_end=lambda epoch, logs: seen.append((model.get_weights(), logs["val_loss"])))
    logs = fit(model, [lc(), look], epochs=3, validation_data=(X, Y)).history
    fit(plain, [lc()], epochs=3)
    same(model, plain)
    assert model.evaluate(X, Y, verbose=0) == logs["val_loss"][-1]
    for weights, validated in seen:
        plain.set_weights(weights)
        assert nonzeros(plain) == KEPT
        np.testing.assert_allclose(validated, loss(plain), rtol=1e-6)
    assert len(seen) == 3


def test_validation_split_and_freq():
    model, seen = net(), []
    look = spy(on_epoch_end=lambda epoch, logs: seen.append(nonzeros(model)))
    logs = fit(model, [lc(), look], epochs=4, validation_split=0.25, validation_freq=2).history
    assert seen == 4 * [KEPT]
    assert len(logs["val_loss"]) == 2
    assert logs["l_step"] == [4, 8, 12, 16]
    np.testing.assert_allclose(model.evaluate(X[48:], Y[48:], verbose=0), logs["val_loss"][-1], rtol=1e-6)


@pytest.mark.parametrize("monitor, first", [("loss", True), ("val_loss", False)])
def test_checkpoints_are_compressed(tmp_path, first, monitor):
    path = tmp_path / "best.keras"
    save = keras.callbacks.ModelCheckpoint(path, monitor, save_best_only=True)
    model = net(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)))
    data = {"validation_data": (X, Y)} if monitor == "val_loss" else {}
    logs = fit(model, [lc(), save] if first else [save, lc()], **data).history
    best = keras.models.load_model(path)
    assert nonzeros(best) == KEPT
    if data:
        np.testing.assert_allclose(loss(best), min(logs["val_loss"]), rtol=1e-6)
    with zipfile.ZipFile(path) as archive:
        assert b"lc_keras" not in archive.read("config.json")


def test_the_loss_in_the_logs_is_that_of_the_user():
    plain = fit(net(keras.optimizers.SGD(0.0)), epochs=1).history
    logs = fit(net(keras.optimizers.SGD(0.0)), [lc()], epochs=1).history
    assert logs["loss"] == pytest.approx(plain["loss"]) and logs["pull"][0] > 0.1
    beside = fit(
        net(keras.optimizers.SGD(0.0)), [lc_keras.LearningCompression(lc_keras.L0Constraint(KEPT))], epochs=1
    ).history
    assert "pull" not in beside
