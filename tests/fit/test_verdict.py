"""The verdict on a fit when it ends."""

import keras
import numpy as np
import pytest

from helpers import DATA, KEPT, fit, lc, net, spy
from lc_keras import L0Constraint, LearningCompression, Task
from lc_keras.baselines import DirectCompression, GradualPruning, MagnitudePruning
from lc_keras.fit.verdict import Verdict


def said(model=None, first=None, last=None, gap=0.0, tasks=(), variables=(), recwarn=None, stale=False):
    verdict = Verdict(model or net(), tasks, variables)
    verdict.note(first)
    verdict.note(last)
    verdict.is_stale = stale
    verdict.give(gap)
    return [str(w.message) for w in recwarn if "may be bad" in str(w.message)]


@pytest.mark.parametrize("gap, bad", [(0.04, False), (0.06, True)])
def test_a_gap(gap, bad, recwarn):
    assert bool(said(gap=gap, recwarn=recwarn)) == bad


def test_statistics_that_are_stale_come_first(recwarn):
    (found,) = said(gap=0.06, recwarn=recwarn, stale=True)
    assert found.startswith("The compressed model may be bad: its statistics") and "(`gap`)" in found
    assert "lc_keras.estimate_statistics(model, data)" in found
    recwarn.clear()
    assert not said(stale=True, recwarn=recwarn)


@pytest.mark.parametrize("method", [LearningCompression, MagnitudePruning])
def test_statistics_of_a_fit_on_a_generator(method, recwarn):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.BatchNormalization()])
    model.compile("sgd", "mse")
    model.layers[0].kernel.assign(0 * model.layers[0].kernel)
    batches = ((np.ones((4, 6)), np.ones((4, 8))) for _ in range(8))
    fit(model, [method(L0Constraint(0))], x=batches, y=None, batch_size=None, epochs=1)
    assert any("may be bad: its statistics" in str(w.message) for w in recwarn)


@pytest.mark.parametrize(
    "first, last, named",
    [
        ({"accuracy": 0.9}, {"accuracy": 0.8, "val_accuracy": 0.7}, None),
        ({"accuracy": 0.9}, {"accuracy": 0.7}, "accuracy ended at 0.7"),
        ({"accuracy": 0.9}, {"accuracy": 0.9, "val_accuracy": 0.5}, "val_accuracy ended at 0.5"),
        ({"mean_io_u": 0.9}, {"mean_io_u": 0.1}, "mean_io_u"),
        # Not scores, though their names contain the letters of one.
        ({"layer2_loss": 1.0, "accel": 3.0}, {"layer2_loss": 0.1, "accel": 0.1}, None),
        ({"r2_score": -0.5}, {"r2_score": -0.45}, None),
    ],
    ids=str,
)
def test_a_metric_far_below_that_of_the_first_epoch(first, last, named, recwarn):
    found = said(first=first, last=last, recwarn=recwarn)
    assert len(found) == (named is not None) and (named is None or named in found[0])


def test_the_advice_is_given_once(recwarn):
    (found,) = said(first={"accuracy": 0.9}, last={"accuracy": 0.1, "val_accuracy": 0.2}, recwarn=recwarn)
    assert "; accuracy" not in found and found.count("ended at") == 2 and found.count("keep more") == 1


def test_a_metric_with_a_value_for_each_class(recwarn):
    first, last = {"f1_score": np.array([0.9, 0.5])}, {"f1_score": np.array([0.1, 0.2])}
    (found,) = said(first=first, last=last, recwarn=recwarn)
    assert "f1_score ended at 0.15, where f1_score was 0.7 in the first epoch" in found


class Forgetful(keras.optimizers.SGD):
    """Sets what it updates to zero, like Ftrl, whose weights follow from sums that begin at zero."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign(variable, 0 * gradient)


@pytest.mark.parametrize("prune", [lc, lambda: GradualPruning(L0Constraint(KEPT))], ids=["LC", "baseline"])
def test_what_is_lost_with_the_first_update(prune):
    y = np.arange(160) % 4
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(Forgetful(), loss, metrics=["accuracy"])
    model.layers[0].kernel.assign(np.eye(4))
    with pytest.warns(UserWarning, match=r"accuracy was 1 before the first update"):
        model.fit(np.eye(4)[y], y, batch_size=4, epochs=2, verbose=0, callbacks=[prune()])


@pytest.mark.parametrize("prune", [lc, lambda: MagnitudePruning(L0Constraint(KEPT))], ids=["LC", "baseline"])
def test_a_layer_that_lost_all_weights(prune):
    model = net()
    kernel = model.layers[0].kernel
    kernel.assign(1e-6 * kernel)
    frozen = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: kernel.assign(1e-6 * kernel)
    )
    with pytest.warns(UserWarning, match=f"{kernel.path} lost all weights"):
        fit(model, [prune(), frozen], epochs=2)


@pytest.mark.parametrize("prune", [LearningCompression, MagnitudePruning])
def test_kernels_that_become_trainable_too_late(prune):
    model = net()
    model.optimizer.build(model.trainable_variables)
    model.layers[0].trainable = False

    def unfreeze(epoch, logs):
        if epoch == 1:
            model.layers[0].trainable = True
            model.make_train_function(force=True)

    with pytest.warns(
        UserWarning, match=f"{model.layers[0].kernel.path} became trainable after `fit` had begun"
    ):
        fit(model, [prune(L0Constraint(KEPT)), spy(on_epoch_begin=unfreeze)], epochs=3)


def test_a_layer_that_is_frozen_meanwhile_is_no_error(tmp_path):
    model = net()
    task = Task(L0Constraint(KEPT), weights=model.layers[0])

    def freeze(epoch, logs):
        model.layers[0].trainable = False

    compress = LearningCompression(task, checkpoint_dir=tmp_path / "run")
    fit(model, [compress, spy(on_epoch_end=freeze)], epochs=2)
    assert np.count_nonzero(model.layers[0].kernel) == KEPT and not (tmp_path / "run").exists()


@pytest.mark.parametrize("prune", [LearningCompression, MagnitudePruning, DirectCompression])
def test_what_is_compressed_is_settled_when_fit_begins(prune):
    model = net(run_eagerly=True)
    budgeted, free = model.layers
    free.trainable = False

    def change(epoch, logs):
        budgeted.trainable, free.trainable = False, True

    put = spy(on_epoch_end=change, on_train_end=lambda logs: budgeted.kernel.assign_add(np.ones((6, 8))))
    fit(model, [prune(L0Constraint(KEPT)), put], x=DATA.take(2), epochs=1)
    assert np.count_nonzero(budgeted.kernel) == KEPT and np.all(free.kernel)
