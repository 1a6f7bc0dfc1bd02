"""The smallest budget for a score, with fits of one batch."""

import json
import math
import re

import keras
import numpy as np
import pytest

import helpers
import lc_keras
from lc_keras.algorithm.tasks import bind_tasks
from lc_keras.baselines import DirectCompression
from lc_keras.fit.attached import Attached
from lc_keras.search import runs

OPTIONS = {"lowest": 0.1, "precision": 1.5, "verbose": 0}


class AtOnce(Attached):
    """Compresses when `fit` ends, without a graph to trace."""

    def on_train_begin(self, logs=None):
        self.shared = bind_tasks(self.tasks, self.model)

    def on_epoch_begin(self, epoch, logs=None):
        pass

    on_epoch_end = on_epoch_begin

    def on_train_batch_begin(self, batch, logs=None):
        pass

    def on_train_end(self, logs=None):
        first, second = (layer.kernel for layer in self.model.layers)
        kept = helpers.largest(helpers.kernels(self.model), int(self.tasks[0].compression.keep * 72))
        first.assign(kept[0])
        second.assign(kept[1])


@pytest.fixture
def light(monkeypatch):
    """Takes what a fit leaves to be within its budget, without a check."""
    monkeypatch.setattr(runs, "compress_again", lambda model, *_: (0.0, share(model)))


def fit(model, callbacks):
    """Trains on a batch; the copies are compiled as the model is."""
    return model.fit(helpers.DATA.take(1), epochs=1, verbose=0, shuffle=False, callbacks=callbacks)


def at_once(keep):
    return AtOnce(lc_keras.L0Constraint(keep))


def share(model):
    return helpers.nonzeros(model) / helpers.WEIGHTS


def search(model=None, fit=fit, score=share, within=0.7, **options):
    model = model or helpers.net(run_eagerly=True)
    return lc_keras.smallest(model, fit, score, within, **{**OPTIONS, "compress": at_once} | options)


def test_the_smallest_budget_is_found_by_bisection_in_the_logarithm(light):
    model = helpers.net()
    before = [np.array(w) for w in model.get_weights()]
    found = search(model)
    assert found.reference == 1 and found.limit == pytest.approx(0.3)
    assert [p.budget for p in found.points[:2]] == [0.3162, 0.1778]
    failed = max(p.budget for p in found.points if not p.reached)
    assert failed < 0.3 <= found.score <= found.budget <= 1.5 * failed
    assert helpers.nonzeros(found.model) == int(found.budget * helpers.WEIGHTS)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not found.note


def test_lc_is_the_default_and_a_loss_is_better_when_it_is_low():
    found = lc_keras.smallest(
        helpers.net(), fit, lambda model: 1 - share(model), 0.5, mode="min", max_runs=1, **OPTIONS
    )
    (point,) = found.points
    assert not point.reached and point.density == pytest.approx(int(0.3162 * 72) / 72)
    assert found.budget == 1 and "No budget" in found.note


def test_a_metric_is_compared_with_a_run_that_keeps_all(light):
    def scored(model, callbacks):
        history = fit(model, callbacks)
        history.history["val_accuracy"] = [0.0, share(model)]
        return history

    found = search(fit=scored, score="accuracy")
    assert found.points[0].budget == 1 and found.reference == 1
    assert found.budget == search().budget
    with pytest.raises(ValueError, match=r"'val_recall'.*Received: \['loss', 'val_accuracy'"):
        search(fit=scored, score="recall")


def test_the_direction_is_that_of_the_metric():
    from lc_keras.search.bisection import _sign

    names = ("loss", "val_mean_squared_error", "accuracy", "val_auc", "binary_io_u")
    assert [_sign(name, "auto") for name in names[:4]] == [-1, -1, 1, 1]
    with pytest.raises(ValueError, match="Expected `mode`"):
        _sign("custom", "auto")
    assert _sign("custom", "min") == _sign(share, "min") == -1 and _sign(share, "auto") == 1


def test_it_says_where_everything_is_needed_and_where_nothing_is(light):
    assert "Only the budget of everything" in search(within=0.0).note
    found = search(within=1.0)
    assert "none was tried" in found.note and found.budget < 0.15
    # What cannot be removed costs more than the smallest budgets.
    neurons = lc_keras.Neurons()
    neurons = search(
        within=2.0,
        lowest=0.001,
        precision=9.0,
        compress=lambda keep: AtOnce(lc_keras.L0Constraint(keep, neurons, measure="parameters")),
    )
    assert "the cost takes none" in neurons.note


def test_a_score_within_the_noise_is_no_gain(light):
    scores = iter([1.0, 0.31, 0.29, 0.315])
    (point,) = search(score=lambda _: next(scores), noise=0.02, max_runs=1).points
    assert point.scores == (0.31, 0.29, 0.315) and not point.reached
    scores = iter([1.0, 0.31, 0.29, 0.34])
    (point,) = search(score=lambda _: next(scores), noise=0.02, max_runs=1).points
    assert point.reached


def test_it_goes_on_where_it_was_cut_off(light, tmp_path, capsys):
    class Killed(BaseException):
        pass

    whole, fitted = search(), []

    def killed(model, callbacks):
        fitted.append(callbacks)
        if len(fitted) == 3:
            raise Killed
        return fit(model, callbacks)

    with pytest.raises(Killed) as caught:
        search(fit=killed, directory=tmp_path)
    assert "budget" in caught.value.__notes__[0]
    again = search(fit=killed, directory=tmp_path, verbose=1)
    printed = capsys.readouterr().out
    assert f"Going on with 2 points of '{tmp_path}'." in printed and re.search(r"score: \S+ *\n", printed)
    assert len(fitted) == 3 + len(whole.points) - 2
    assert [(p.budget, p.score) for p in again.points] == [(p.budget, p.score) for p in whole.points]
    assert helpers.nonzeros(again.model) == helpers.nonzeros(whole.model)
    assert len(list(tmp_path.glob("*.h5"))) == 1
    with pytest.raises(ValueError, match="whose within is 0.7 and not 0.5"):
        search(within=0.5, directory=tmp_path)


def test_a_search_that_is_done_runs_nothing_again(light, tmp_path):
    def never(model, callbacks):
        raise AssertionError("fit was called")

    whole = search(directory=tmp_path)
    assert [point.reached for point in whole.points].count(False) == 2
    again = search(fit=never, directory=tmp_path)
    assert again.points == whole.points and again.budget == whole.budget
    assert helpers.nonzeros(again.model) == helpers.nonzeros(whole.model)


def test_within_is_in_the_unit_of_the_score(light, recwarn):
    assert "A score of 0 is within 5, too" in search(within=5, max_runs=1).note
    found = search(max_runs=2)
    assert "A score of 0" not in found.note
    assert all(type(point.density) is float for point in found.points)
    assert not [w for w in recwarn if "Skipping variable" in str(w.message)]


def test_a_reference_that_is_far_behind_is_named(light):
    assert "The reference, 1, is far behind" in search(mode="min", max_runs=1).note


class Slower(AtOnce):
    def __init__(self, tasks, every=0.25):
        super().__init__(tasks)
        self.every = every


def neurons(keep):
    return AtOnce(lc_keras.L0Constraint(keep, lc_keras.Neurons(), measure="parameters"))


@pytest.mark.parametrize(
    "first, other, told",
    [
        ({}, {"compress": neurons}, "L0Constraint(keep=0.3162, groups=Neurons()"),
        ({}, {"compress": lambda keep: Slower(lc_keras.L0Constraint(keep))}, "Slower(tasks="),
        (
            {"compress": lambda keep: Slower(lc_keras.L0Constraint(keep))},
            {"compress": lambda keep: Slower(lc_keras.L0Constraint(keep), every=0.5)},
            "every=0.5",
        ),
        ({}, {"score": "accuracy"}, "score is 'a function' and not 'accuracy'"),
        ({}, {"lowest": 0.01}, "lowest is 0.1 and not 0.01"),
    ],
)
def test_points_of_another_question_are_no_answer(light, tmp_path, first, other, told):
    search(max_runs=1, directory=tmp_path, **first)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=rf"of the same search.*{re.escape(told)}"):
        search(max_runs=1, directory=tmp_path, **other)
    assert before == {path: path.read_bytes() for path in before}
    again = search(max_runs=2, directory=tmp_path, **first)
    assert len(again.points) == 2


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"question": {}, "points": [{"budget": 0.5}]}'])
def test_a_record_that_is_spoilt_is_told_and_left_alone(tmp_path, text):
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(ValueError, match=r"search.json' to be the record of a search"):
        search(directory=tmp_path)
    assert (tmp_path / "search.json").read_text() == text


def test_a_run_of_lc_goes_on_from_its_checkpoint(tmp_path, capsys):
    epochs = []

    def cut_off(model, callbacks):
        class Cut(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                epochs.append(epoch)
                if epochs == [0, 1]:
                    raise KeyboardInterrupt

        return helpers.fit(model, [*callbacks, Cut()], verbose=2)

    options = {"compress": lc_keras.L0Constraint, "max_runs": 1, "directory": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        search(helpers.net(), cut_off, **options)
    search(helpers.net(), cut_off, **options)
    assert epochs == [0, 1, 1]
    assert re.findall(f"Going on after epoch 1 of 2, from '{tmp_path}/.*'", capsys.readouterr().out)


def test_a_run_that_was_cut_off_at_its_end_is_run_again_for_its_history(tmp_path):
    begun = []

    class Cut(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            begun.append(self.model)

        def on_train_end(self, logs=None):
            if len(begun) == 1:
                raise KeyboardInterrupt

    def cut_off(model, callbacks):
        options = {"validation_data": helpers.DATA, "verbose": 0, "shuffle": False}
        return model.fit(helpers.DATA, epochs=2, callbacks=[Cut(), *callbacks], **options)

    options = {"compress": lc_keras.L0Constraint, "score": "loss", "directory": tmp_path, "max_runs": 1}
    with pytest.raises(KeyboardInterrupt):
        search(helpers.net(), cut_off, **options)
    search(helpers.net(), cut_off, **options)
    # The reference is run again, and then a budget.
    assert len(begun) == 4


def test_a_warm_run_begins_with_the_best_weights(light):
    begun = []

    def seen(model, callbacks):
        begun.append(helpers.nonzeros(model))
        return fit(model, callbacks)

    search(fit=seen, within=1.0, warm_start=True, max_runs=3)
    assert begun == [72, 22, 12]
    found = search(within=0.4, warm_start=True)
    assert [(p.budget, p.start) for p in found.points] == [
        (0.3162, None),
        (0.5623, None),
        (1.0, None),
        (0.7499, 1.0),
    ]
    assert found.note.startswith("0.5623 failed with the weights of the reference to begin with; it was not")
    assert not search(within=0.4, warm_start=False).note


def test_table_json_and_plot(light, tmp_path):
    found = search(max_runs=2)
    assert "0.3162" in str(found) and "Ended early" in str(found)
    content = json.loads(found.to_json())
    assert content["budget"] == 0.3162 and [p["reached"] for p in content["points"]] == [True, False]
    found.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_limit_of_time(light):
    assert not search(max_seconds=1e-9).points


def forgets(model, callbacks):
    return fit(model, [])


def trains_nothing(model, callbacks):
    for callback in callbacks:
        callback.set_model(model)
    callbacks[-1].on_train_begin()


def trains_another(model, callbacks):
    return fit(helpers.net(run_eagerly=True), callbacks)


def trains_on(model, callbacks):
    fit(model, callbacks)
    return fit(model, [])


def takes_one(model, callbacks):
    return fit(model, callbacks[1:])


def leaves_nan(model, callbacks):
    history = fit(model, callbacks)
    model.layers[0].kernel.assign(np.full((6, 8), np.nan))
    return history


def fails(model, callbacks):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"fit": forgets}, ValueError, "to pass its callbacks to"),
        ({"fit": trains_nothing}, ValueError, "trained on no batch"),
        ({"fit": trains_another}, ValueError, "another one"),
        ({"fit": trains_on}, ValueError, "outside of it, by"),
        ({"fit": takes_one}, ValueError, "all of its callbacks"),
        ({"fit": leaves_nan}, ValueError, "finite"),
        ({"fit": fails}, RuntimeError, "out of memory"),
        ({"fit": None}, TypeError, "Expected `fit` and `score`"),
        ({"score": 0.9}, TypeError, "Expected `fit` and `score`"),
        ({"score": lambda _: math.nan}, ValueError, "finite score of model"),
        ({"score": lambda m: math.nan if share(m) < 1 else 1.0}, ValueError, "nan, with the budget 0.316"),
        ({"score": lambda m: "good"}, TypeError, "Received: 'good'"),
        ({"lowest": 2.0}, ValueError, "below `highest`"),
        ({"precision": 1.0}, ValueError, "precision"),
        ({"within": -1}, ValueError, "within"),
        ({"mode": "up"}, ValueError, "Expected `mode`"),
        ({"compress": lambda keep: keep}, TypeError, "Received: 1.0"),
        ({"compress": DirectCompression}, TypeError, "Expected `compress` to be a function from a budget"),
        ({"highest": 2.0}, ValueError, "Received: keep=2.0"),
    ],
)
def test_bad_input_is_refused_and_the_model_unchanged(change, error, message, request):
    if change.get("fit") not in (trains_on, takes_one, leaves_nan):
        request.getfixturevalue("light")
    model = helpers.net(run_eagerly=True)
    before = [np.array(w) for w in model.get_weights()]
    with pytest.raises(error, match=message):
        search(model, **change)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_fit_that_trains_the_reference_leaves_it_as_it_was(light):
    model = helpers.net(run_eagerly=True)
    model.train_on_batch(helpers.X[:8], helpers.Y[:8])
    before = [np.array(v) for part in (model, model.optimizer) for v in part.variables]
    with pytest.raises(ValueError, match="the model that it is given"):
        search(model, fit=lambda _, callbacks: fit(model, callbacks))
    after = [np.array(v) for part in (model, model.optimizer) for v in part.variables]
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "late", [*(pytest.param(f, marks=pytest.mark.slow) for f in (forgets, trains_nothing)), fails, None]
)
def test_what_was_found_before_an_error_is_not_lost(light, tmp_path, late):
    """`None`: the score is not a number."""
    runs = []

    def spoilt(model, callbacks):
        runs.append(1)
        return (late if late and len(runs) == 3 else fit)(model, callbacks)

    def score(model):
        return math.nan if late is None and len(runs) == 3 else share(model)

    with pytest.raises((ValueError, RuntimeError)) as caught:
        search(fit=spoilt, score=score, directory=tmp_path)
    assert "0.3162" in caught.value.__notes__[0] and "0.1778" in caught.value.__notes__[0]
    found = search(fit=spoilt, directory=tmp_path)
    assert len(runs) == 1 + len(found.points) and found.budget == search().budget


def test_a_score_that_trains_changes_neither_the_reference_nor_what_is_found(light):
    model = helpers.net(keras.optimizers.Adam(0.1), run_eagerly=True)
    before = [np.array(w) for w in model.get_weights()]

    def score(model):
        model.train_on_batch(helpers.X[:8], helpers.Y[:8])
        return 1.0

    found = search(model, score=score, max_runs=1)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not model.optimizer.iterations.numpy()
    assert helpers.nonzeros(found.model) == int(found.budget * helpers.WEIGHTS)


def test_a_fit_that_does_harm_is_found_out_in_the_third_run(light):
    seen = []

    def score(model):
        seen.append(share(model))
        return 0.9 if len(seen) > 1 else 1.0

    with pytest.raises(
        ValueError, match="with everything kept, as the reference has 1. Received: 0.9"
    ) as caught:
        search(score=score, within=0.05)
    assert len(seen) == 4 and seen[-1] == 1
    assert caught.value.__notes__


def test_a_score_that_falls_as_the_budget_grows_is_told(light):
    scores = iter([1.0, 0.8, 0.2, 1.0])
    found = search(score=lambda _: next(scores), within=0.15, max_runs=3)
    assert "falls from 0.8 to 0.2 as the budget grows from 0.3162 to 0.5623" in found.note


def test_a_model_that_keras_cannot_make_again():
    class Own(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.dense = keras.layers.Dense(width)

        def call(self, x):
            return self.dense(x)

    model = Own(3)
    model(helpers.X)
    with pytest.raises(ValueError, match="can make again"):
        search(model)


@keras.saving.register_keras_serializable("test_bisection")
class Block(keras.layers.Layer):
    """A layer with one inside it, of which its config says nothing."""

    def __init__(self, name=None):
        super().__init__(name=name)
        self.inner = keras.layers.Dense(5)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {"name": self.name}


class Counted(keras.Sequential):
    """A model with a training step of its own."""

    def train_step(self, data):
        return super().train_step(data)


def own_loss(labels, outputs):
    return keras.ops.mean((labels - outputs) ** 2)


def test_a_copy_is_as_the_model():
    nested = keras.Sequential([keras.layers.Dense(4, name="a")], name="base")
    model = Counted([keras.Input((3,)), nested, Block("block"), keras.layers.Dense(1)])
    model.get_layer("block").inner.trainable = False
    model.compile(keras.optimizers.SGD(0.1), own_loss)
    copy = runs.copy_of(model)
    assert type(copy) is Counted and copy.loss is own_loss and model.compiled and model.loss is own_loss
    assert [w.path for w in copy.weights] == [w.path for w in model.weights]
    assert [w.path for w in copy.trainable_weights] == [w.path for w in model.trainable_weights]
    assert not copy.get_layer("block").inner.trainable and copy.get_layer("block").trainable
    for own, its in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(own, its)


def test_each_run_begins_with_a_fresh_optimizer(light):
    model, seen = helpers.net(run_eagerly=True), []
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(0.1, 1, 0.0)), helpers.XENT)

    def fits(model, callbacks):
        seen.append((int(model.optimizer.iterations), float(model.optimizer.learning_rate)))
        return fit(model, callbacks)

    found = search(model, fits, max_runs=2)
    assert seen == [(0, pytest.approx(0.1))] * 2 and float(found.model.optimizer.learning_rate) > 0
