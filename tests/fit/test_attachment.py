"""Everything that a callback that takes part in the training adds to a model and removes again."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers import BATCHES, KEPT, fit, lc, net, nonzeros, spy
from lc_keras import L0Constraint, LearningCompression
from lc_keras.baselines import GradualPruning
from lc_keras.fit.attachment import Attachment


@pytest.mark.parametrize("writes", [True, False])
def test_of_several_workers_one_writes_and_deletes(tmp_path, writes, monkeypatch):
    strategy = tf.distribute.get_strategy()
    monkeypatch.setattr(type(strategy.extended), "should_checkpoint", property(lambda _: writes))
    files = []
    look = spy(on_epoch_begin=lambda epoch, logs: files.append((tmp_path / "run").exists()))
    fit(net(), [lc(checkpoint_dir=tmp_path / "run"), look], epochs=2)
    assert files == [False, writes]
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "epoch-000009.index").touch()
    with pytest.warns(UserWarning, match="is damaged"):
        fit(net(), [lc(checkpoint_dir=tmp_path / "run")], epochs=2)
    assert (tmp_path / "run").exists() != writes


def test_nobody_else_takes_the_model_to_an_epoch():
    model = SimpleNamespace(_initial_epoch=7)
    attachment = Attachment(SimpleNamespace(model=model))
    assert model._initial_epoch is None
    attachment.begin_at(3)
    attachment.check_beginning()
    assert model._initial_epoch == 3
    # The same number counts, too, if another callback set it: weights come with it.
    for epoch in (3, 4, None):
        model._initial_epoch = epoch
        with pytest.raises(ValueError, match=f"has taken to epoch {epoch}"):
            attachment.check_beginning()
    attachment.begin_at(None)
    attachment.check_beginning()


@pytest.mark.parametrize(
    "prune",
    [lambda: GradualPruning(L0Constraint(KEPT), until=0.5), lc],
    ids=["gradual", "LC"],
)
def test_a_train_function_that_is_made_anew_prunes_as_the_first(prune):
    def anew(epoch, logs):
        if epoch == 2:
            model.make_train_function(force=True)

    plain = net()
    fit(plain, [prune()], epochs=4)
    model, kept = net(), []
    look = spy(on_epoch_begin=anew, on_epoch_end=lambda epoch, logs: kept.append(nonzeros(model)))
    fit(model, [prune(), look], epochs=4)
    assert kept[2:] == [KEPT, KEPT]
    for one, two in zip(plain.get_weights(), model.get_weights(), strict=True):
        assert one.tobytes() == two.tobytes()


class Seen(keras.layers.Layer):
    """Notes whether it trains, each time it is traced."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, inputs, training=None):
        self.seen.append(training)
        return inputs


def test_keras_traces_the_train_step_once(monkeypatch):
    weights = []
    for expected in (1, 2):
        model = net()
        layer = Seen()
        model.add(keras.layers.Dropout(0.5))
        model.add(layer)
        model.compile("adam", model.loss, metrics=["accuracy"])
        fit(model, [lc()])
        assert layer.seen.count(True) == expected
        weights.append(model.get_weights())
        # As Keras does by itself: the result is the same.
        monkeypatch.setattr("lc_keras.fit.attachment.build_for_training", lambda *_: None)
    for one, two in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_model_that_is_called_in_training_alone_is_trained():
    class Training(keras.Sequential):
        def call(self, inputs, training=None):
            if not training:
                raise NotImplementedError("only in training")
            return super().call(inputs, training=training)

    model = net(kind=Training, optimizer="adam")
    fit(model, [lc()])
    assert nonzeros(model) == KEPT


def test_a_fit_that_is_refused_keeps_nothing(lagrangians):
    class Compiled(keras.Sequential):
        train_step = tf.function(keras.Sequential.train_step)

    model, compress = net(kind=Compiled), lc()
    with pytest.raises(ValueError, match="a `train_step` that Keras traces"):
        fit(model, [compress])
    assert len(lagrangians) == 1
    # They are emptied: θ and λ would stay alive for as long as TensorFlow keeps a graph that reads them.
    assert [target.numpy().size for target in lagrangians[0].targets] == [1, 1]


def test_checkpoints_stay_where_the_last_compression_fails(tmp_path):
    def spoil(logs):
        model.layers[0].kernel.assign(model.layers[0].kernel * float("nan"))

    model = net()
    with pytest.raises(ValueError, match="Expected callbacks to put finite weights"):
        fit(model, [lc(checkpoint_dir=tmp_path / "run"), spy(on_train_end=spoil)], epochs=2)
    assert list((tmp_path / "run").glob("*.index"))


@pytest.mark.parametrize("batch", [3, 30])
def test_the_budget_holds_where_training_diverges_while_the_pull_still_grows(batch):
    def spoil(number, logs):
        if number == batch % BATCHES and epochs[-1] == batch // BATCHES:
            model.layers[0].kernel.assign(model.layers[0].kernel * float("nan"))

    epochs, model = [], net()
    look = spy(on_epoch_begin=lambda epoch, logs: epochs.append(epoch), on_train_batch_end=spoil)
    compress = LearningCompression(L0Constraint(KEPT))
    with pytest.warns(UserWarning, match="interrupted"), pytest.raises(ValueError, match="diverged"):
        fit(model, [compress, look], epochs=16)
    assert nonzeros(model) == KEPT
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
