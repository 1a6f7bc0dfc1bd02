"""The score of a model with one layer compressed."""

import json
import math

import keras
import numpy as np
import pytest
from keras import layers

import helpers
import lc_keras


def norm(model):
    return float(sum(np.square(kernel).sum() for kernel in helpers.kernels(model)))


def known(*kernels):
    """A model of dense layers with these kernels."""
    stack = [layers.Dense(k.shape[1], use_bias=False, name=f"layer{i}") for i, k in enumerate(kernels)]
    model = keras.Sequential([keras.Input((kernels[0].shape[0],)), *stack])
    model.set_weights(kernels)
    return model


def test_each_layer_by_itself_keeps_its_largest_weights():
    model = known(np.float32([[1, 2], [3, 4]]), np.float32([[5], [6]]))
    found = lc_keras.sensitivity(model, norm, keep=(1.0, 0.5, 0.01), verbose=0)
    assert found.reference == 91
    assert [row.name for row in found.rows] == [f"{model.name}/layer{i}" for i in range(2)]
    assert [row.groups for row in found.rows] == [4, 2]
    # At least one weight of a layer stays.
    assert [row.scores for row in found.rows] == [(91, 86, 77), (91, 66, 66)]


def test_a_fraction_in_single_precision_counts_by_its_digits():
    found = lc_keras.sensitivity(known(np.ones((10, 1), "float32")), norm, np.float32(0.7), verbose=0)
    assert found.keep == (0.7,) and found.rows[0].scores == (7,)


def test_neurons_go_with_all_that_makes_them():
    model = helpers.sequential((4,), layers.Dense(6, "relu"), layers.BatchNormalization(), layers.Dense(3))
    found = lc_keras.sensitivity(
        model, lambda m: lc_keras.shrink(m).count_params(), keep=(0.5,), groups=lc_keras.Neurons(), verbose=0
    )
    (row,) = found.rows
    assert row.groups == 6 and row.scores == (3 * 5 + 4 * 3 + 4 * 3,)


def test_weights_select_what_is_compressed():
    model = known(np.ones((2, 2), "float32"), np.ones((2, 1), "float32"))
    found = lc_keras.sensitivity(model, norm, 0.5, weights="layer1", verbose=0)
    assert [row.scores for row in found.rows] == [(5,)]


@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_the_model_is_as_it_was_whatever_happens(fails_at):
    model, calls = helpers.net(), []
    before = [np.array(w) for w in model.get_weights()]

    def score(model):
        calls.append(model.get_weights())
        model.layers[0].bias.assign_add(np.ones(8))  # as a score that estimates statistics may
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        lc_keras.sensitivity(model, score, verbose=0)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    # Nor does one score see what another left.
    assert all(not weights[1].any() for weights in calls)


@pytest.mark.parametrize("is_built", [False, True])
def test_a_score_that_trains_leaves_the_optimizer_as_it_was(is_built):
    model = helpers.net(keras.optimizers.Adam(0.1), run_eagerly=True)
    if is_built:
        model.train_on_batch(helpers.X[:8], helpers.Y[:8])
    before = {v.path: np.array(v) for part in (model, model.optimizer) for v in part.variables}

    def score(model):
        return model.train_on_batch(helpers.X[:8], helpers.Y[:8])

    found = lc_keras.sensitivity(model, score, keep=1.0, verbose=0)
    after = {v.path: np.array(v) for part in (model, model.optimizer) for v in part.variables}
    for path, value in after.items():
        np.testing.assert_array_equal(value, before.get(path, 0 * value), err_msg=path)
    # Nor does one score see what another left.
    assert all(row.scores == (found.reference,) for row in found.rows)


def test_table_json_and_plot(tmp_path):
    model = known(np.float32([[1, 2], [3, 4]]), np.float32([[5], [6]]))
    scores = iter([1.0, 0.9, 0.5, 0.8, math.nan])
    found = lc_keras.sensitivity(model, lambda _: next(scores), keep=(0.5, 0.25), verbose=0)
    assert "50 %" in str(found) and "0.8" in str(found) and "nan" in str(found)
    content = json.loads(found.to_json())
    assert content["rows"][1] == {"name": found.rows[1].name, "groups": 2, "scores": [0.8, None]}
    found.plot(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"score": "accuracy"}, TypeError, "function of a model"),
        ({"score": lambda _: None}, TypeError, "Received: None"),
        ({"score": lambda _: math.nan}, ValueError, "finite score"),
        ({"keep": ()}, ValueError, "Expected `keep`"),
        ({"keep": (0.5, 2)}, ValueError, "Expected `keep`"),
        ({"keep": 2}, ValueError, "Expected `keep`"),
        ({"keep": None}, TypeError, "Received: keep=None"),
        ({"keep": "0.5"}, TypeError, "Received: keep='0.5'"),
        ({"keep": (0.5, None)}, TypeError, "Expected `keep`"),
        ({"weights": "nothing"}, ValueError, "matches no trainable weights"),
        ({"model": "net.keras"}, TypeError, "keras.Model"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    given = {"model": helpers.net(), "score": norm, "verbose": 0} | change
    with pytest.raises(error, match=message):
        lc_keras.sensitivity(**given)
