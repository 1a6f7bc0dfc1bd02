"""Averaged weights, which Keras puts into the model during `fit` and at its end, are compressed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers import KEPT, X, Y, fit, kernels, largest, lc, loss, net, nonzeros, same, spy
from lc_keras import L0Constraint
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.tasks import as_tasks, bind_tasks
from lc_keras.fit.averages import Averages

NEEDS_MULTI_OPTIMIZER = pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="not in this Keras"
)


def averaging():
    return keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8)


def attached(optimizer, constraint=None):
    model = net(optimizer)
    model.layers[0].kernel.constraint = constraint
    lagrangian = Lagrangian(bind_tasks(as_tasks(L0Constraint(KEPT)), model))
    return model, lagrangian, Averages(model.optimizer, lagrangian)


@pytest.mark.parametrize("scaled", [True, False])
def test_averages_are_compressed_while_they_are_shown(scaled):
    optimizer = keras.optimizers.LossScaleOptimizer(averaging()) if scaled else averaging()
    model, _, averages = attached(optimizer)
    optimizer.build(model.trainable_variables)
    kept = (optimizer.inner_optimizer if scaled else optimizer)._model_variables_moving_average
    for time in range(2):
        for i, average in enumerate(kept):
            average.assign(tf.random.stateless_normal(average.shape, [i, time]))
        before = [average.numpy() for average in kept]
        averages.show_compressed(1.0)
        for average, expected in zip((kept[0], kept[2]), largest([before[0], before[2]]), strict=True):
            np.testing.assert_array_equal(average.numpy(), expected)
        np.testing.assert_array_equal(kept[1].numpy(), before[1])
        averages.show_training()
        for average, expected in zip(kept, before, strict=True):
            np.testing.assert_array_equal(average.numpy(), expected)
        if time == 0:
            copies = averages.trained
    assert averages.trained is copies


def test_a_constraint_of_the_weights_holds_for_what_is_shown():
    model, _, averages = attached(averaging(), keras.constraints.NonNeg())
    model.optimizer.build(model.trainable_variables)
    average = model.optimizer._model_variables_moving_average[0]
    average.assign(model.layers[0].kernel)
    given = average.numpy()
    averages.show_compressed(1.0)
    shown = average.numpy()
    np.testing.assert_array_equal(shown[shown != 0], given[shown != 0])
    assert np.any(shown) and np.all(shown >= 0)


def test_it_sees_what_has_changed_places():
    model, lagrangian, averages = attached(averaging())
    model.optimizer.build(model.trainable_variables)
    for average, variable in zip(
        model.optimizer._model_variables_moving_average, model.trainable_variables, strict=True
    ):
        average.assign(variable + 0.3 * tf.random.stateless_normal(variable.shape, [1, 2]))
    lagrangian.direct_compression(1.0)
    lagrangian.show_compressed()
    averages.show_compressed(1.0)
    assert averages.swapped() == []
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    assert len(averages.swapped()) == len(model.trainable_variables)


def test_without_averages_nothing_happens():
    _, _, averages = attached(keras.optimizers.SGD(0.1))
    averages.show_compressed(1.0)
    averages.show_training()
    assert averages.swapped() == averages.trained == []


@pytest.mark.parametrize(
    "first, on_epoch",
    [
        (True, True),
        (False, False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((True, False), (False, True))),
    ],
)
def test_swapped_averages_are_compressed_and_disturb_nothing(first, on_epoch):
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch)
    model, plain, seen, compress = net(averaging()), net(averaging()), [], lc()

    def look(epoch, logs):
        seen.append((sum(np.count_nonzero(w) for w in kernels(model)), model.evaluate(X, Y, verbose=0)))

    callbacks = [*([swap, compress] if first else [compress, swap]), spy(on_epoch_end=look)]
    logs = fit(model, callbacks, epochs=3, validation_data=(X, Y)).history
    fit(plain, [lc()], epochs=3)
    # SwapEMAWeights swaps by adding and subtracting.
    same(model, plain, rtol=1e-4, atol=1e-6)
    assert nonzeros(model) == KEPT
    np.testing.assert_allclose(logs["val_loss"][-1], model.evaluate(X, Y, verbose=0), rtol=1e-5)
    kept, shown = zip(*seen, strict=True)
    assert kept == 3 * (KEPT,)
    # Validation sees what SwapEMAWeights leaves in the model between epochs, but only with `on_epoch`.
    assert np.allclose(shown, logs["val_loss"], rtol=1e-5) == on_epoch


@NEEDS_MULTI_OPTIMIZER
@pytest.mark.parametrize("averaged", ["kernel", pytest.param("bias", marks=pytest.mark.slow)])
def test_averages_of_a_multi_optimizer_are_compressed(averaged):
    choose = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.01), {f".*{averaged}": averaging()})
    model = net(keras.optimizers.MultiOptimizer(choose))
    fit(model, [lc()], epochs=2)
    assert nonzeros(model) == KEPT


@NEEDS_MULTI_OPTIMIZER
def test_averages_of_some_of_the_weights_are_refused():
    model = net()
    first, second = (layer.name for layer in model.layers[:2])
    choose = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.01), {f".*{first}/kernel": averaging()})
    model.compile(keras.optimizers.MultiOptimizer(choose), "mse")
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"without averages of .*{second}/kernel, but"):
        fit(model, [lc()], epochs=2)
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_swapped_averages_where_the_length_of_an_epoch_is_unknown():
    def run(callbacks):
        data = tf.data.Dataset.from_generator(lambda: iter(known), output_signature=known.element_spec)
        model = net(averaging())
        return model, fit(model, callbacks, x=data, validation_data=(X, Y)).history

    known = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    model, logs = run([keras.callbacks.SwapEMAWeights(), lc()])
    plain, _ = run([lc()])
    same(model, plain, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logs["val_loss"][-1], model.evaluate(X, Y, verbose=0), rtol=1e-5)


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_best_checkpoint_of_averages_is_compressed(tmp_path, first):
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_loss", save_best_only=True)
    callbacks = [swap, lc(), save] if first else [lc(), swap, save]
    logs = fit(net(averaging()), callbacks, epochs=3, validation_data=(X, Y)).history
    best = keras.models.load_model(tmp_path / "best.keras")
    assert nonzeros(best) == KEPT
    np.testing.assert_allclose(loss(best), min(logs["val_loss"]), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Training (was interrupted|stopped)")
@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_swapped_averages_and_a_restart(tmp_path, first):
    def run(folder, *extra):
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        compress = lc(checkpoint_dir=tmp_path / folder)
        model = net(averaging())
        fit(model, [*extra, *([swap, compress] if first else [compress, swap])], epochs=4)
        return model

    whole = run("whole")
    with pytest.raises(ZeroDivisionError):
        run("parts", spy(on_epoch_begin=lambda epoch, logs: epoch == 2 and 1 / 0))
    same(run("parts"), whole, rtol=1e-4, atol=1e-6)
