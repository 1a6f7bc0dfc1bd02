"""Training that ends before its last L step."""

import keras
import numpy as np
import pytest

from helpers import (
    KEPT,
    X,
    Y,
    fit,
    lc,
    net,
    nonzeros,
    spy,
)
from lc_keras import Geometric, L0Constraint, L1Penalty, L2Constraint, LearningCompression, LowRank

# A fit that runs to its end has nothing to warn about.
pytestmark = pytest.mark.filterwarnings(
    "error:Training (stopped|was interrupted)", "error:An L step of", "error:.* L steps need"
)


@pytest.mark.parametrize("monitor, first", [("loss", True), ("val_loss", False)])
def test_early_stopping(first, monitor):
    stop = keras.callbacks.EarlyStopping(monitor, min_delta=1e9, patience=1, restore_best_weights=True)
    model, compress = net(), lc()
    data = {"validation_data": (X, Y)} if monitor == "val_loss" else {}
    with pytest.warns(UserWarning, match="Training stopped in L step 9 of 20.* gap") as caught:
        logs = fit(model, [compress, stop] if first else [stop, compress], epochs=5, **data).history
    assert f"{compress.gap:.3g}" in str(caught[-1].message)
    assert len(logs["loss"]) == 2
    assert nonzeros(model) == KEPT
    if data:
        np.testing.assert_allclose(model.evaluate(X, Y, verbose=0), logs["val_loss"][0], rtol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_stopped_in_an_epoch(first):
    model, compress = net(), lc()

    def stop(batch, logs):
        model.stop_training = batch == 4

    callbacks = [compress, spy(on_train_batch_end=stop)]
    with pytest.warns(UserWarning, match="Training stopped in L step 3 of 8"):
        logs = fit(model, callbacks if first else callbacks[::-1], validation_data=(X, Y)).history
    assert nonzeros(model) == KEPT
    assert logs["val_loss"] == [model.evaluate(X, Y, verbose=0)]


def test_tolerance():
    model = net()
    compress = lc(tolerance=0.9)
    ended = []
    logs = fit(model, [compress, spy(on_train_batch_end=lambda batch, logs: ended.append(batch))]).history
    assert 0 < compress.gap < 0.9
    # The first C step comes with the third batch, which Keras has begun already.
    assert len(logs["loss"]) == 1 and len(ended) <= 3
    assert nonzeros(model) == KEPT


@pytest.mark.parametrize(
    "cost, mu, warns",
    [
        (L0Constraint(KEPT), "auto", True),
        (LowRank(2), "auto", True),
        (L0Constraint(KEPT), Geometric(0.1, 1.0), False),
        (L2Constraint(5.0), "auto", False),
        (L1Penalty(1e-4), "auto", False),
    ],
    ids=repr,
)
def test_a_tolerance_that_ends_nothing_is_said_to(cost, mu, warns, recwarn):
    logs = fit(net(), [LearningCompression(cost, mu=mu, tolerance=100.0)], epochs=5).history
    assert (len(logs["loss"]) == 5) == warns
    assert any("`tolerance` may have no effect" in str(w.message) for w in recwarn) == warns


def test_of_the_batch_after_the_last_l_step_nothing_is_kept():
    model, biases = net(), []
    look = spy(on_train_batch_end=lambda batch, logs: biases.append(model.layers[0].bias.numpy()))
    fit(model, [lc(steps=3, epochs_per_step=0.5), look], epochs=9)
    assert len(biases) == 13
    assert np.any(biases[10] != biases[11])
    np.testing.assert_array_equal(model.layers[0].bias.numpy(), biases[11])
