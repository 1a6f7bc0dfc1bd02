import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers import KEPT, RANGE, XENT, X, Y, fit, kernels, lc, net, nonzeros, same
from lc_keras import Alternation, L0Constraint, L1Penalty, LearningCompression, Task

MUS = RANGE.over(8)
BATCH = 8
BATCHES = [(X[i : i + BATCH], Y[i : i + BATCH]) for i in range(0, len(X), BATCH)]


def alternation(model, mu=MUS[0], **options):
    return Alternation(model, L0Constraint(KEPT), mu=mu, **options)


def training_step(model, lc_steps, regularized=True):
    """A training step as users write it."""

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = XENT(y, model(x, training=True))
            if regularized:
                loss += sum(model.losses)
            loss += lc_steps.penalty()
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


def run(model, lc_steps, mus=MUS, limited=False, each_l_step=lambda i: None):
    """Train two epochs on the batches of the callback tests, in L steps of two batches."""
    step, rate = training_step(model, lc_steps), float(model.optimizer.learning_rate)
    batches = iter(BATCHES * 2)
    for i, next_mu in enumerate([*mus[1:], None]):
        if limited:
            model.optimizer.learning_rate = min(rate, 1 / lc_steps.mu)
        for _ in range(2):
            step(*next(batches))
        lc_steps.c_step(next_mu)
        each_l_step(i)
    lc_steps.finish()


def sgd():
    return keras.optimizers.SGD(0.02, 0.9, nesterov=True)


def adam():
    return keras.optimizers.Adam(0.01)


# For everyday runs, one case for each optimizer is enough.
CASES = [
    pytest.param(*case, marks=[pytest.mark.slow] * (case not in [(sgd, True, True), (adam, True, False)]))
    for case in itertools.product([sgd, adam], [True, False], [True, False])
]


@pytest.mark.parametrize("optimizer, limited, multipliers", CASES)
def test_same_weights_as_the_callback(optimizer, limited, multipliers):
    options = {"regularizer": keras.regularizers.L2(1e-3)}
    inside, outside = net(optimizer(), **options), net(optimizer(), **options)
    compress = lc(mu=MUS, multipliers=multipliers, limit_learning_rate=limited)
    history = fit(inside, [compress]).history
    lc_steps = alternation(outside, multipliers=multipliers)
    run(outside, lc_steps, limited=limited)
    same(inside, outside, rtol=1e-6, atol=1e-7)
    assert nonzeros(outside) == KEPT
    for one, two in zip(inside.trainable_variables, outside.trainable_variables, strict=True):
        np.testing.assert_array_equal(one.numpy() != 0, two.numpy() != 0)
    np.testing.assert_allclose([lc_steps.gap, lc_steps.density], [compress.gap, compress.density], rtol=1e-6)
    assert history["mu"][-1] == lc_steps.mu == MUS[-1]


def test_several_tasks_as_in_the_callback():
    def tasks(model):
        first, last = model.layers
        return [Task(L1Penalty(1e-2), first), Task(L0Constraint(0.5), last)]

    inside, outside = net(), net()
    fit(inside, [LearningCompression(tasks(inside), mu=MUS, limit_learning_rate=False)])
    run(outside, Alternation(outside, tasks(outside), mu=MUS[0]))
    same(inside, outside, rtol=1e-6, atol=1e-7)


def test_the_penalty_follows_every_c_step_and_is_that_of_the_paper():
    model = net(regularizer=keras.regularizers.L2(1.0))
    lc_steps = alternation(model)
    penalty = tf.function(lc_steps.penalty)
    thetas, lambdas = [], [np.zeros(w.shape) for w in kernels(model)]
    rng = np.random.default_rng(3)
    for mu, next_mu in zip([MUS[0], *MUS[:-1]], MUS, strict=True):
        weights = [rng.normal(size=w.shape).astype("float32") for w in kernels(model)]
        for layer, weight in zip(model.layers, weights, strict=True):
            layer.kernel.assign(weight)
        lc_steps.c_step(next_mu)
        with lc_steps.compressed():
            thetas = kernels(model)
        assert sum(map(np.count_nonzero, thetas)) == KEPT
        for old, weight in zip(kernels(model), weights, strict=True):
            np.testing.assert_array_equal(old, weight)
        lambdas = [m - mu * (w - t) for m, w, t in zip(lambdas, weights, thetas, strict=True)]
        differences = [w - t - m / next_mu for w, t, m in zip(weights, thetas, lambdas, strict=True)]
        squares = sum((difference**2).sum() for difference in differences)
        np.testing.assert_allclose(penalty(), next_mu / 2 * squares, rtol=1e-3)
    assert penalty.experimental_get_tracing_count() == 1


def test_nothing_is_attached(tmp_path):
    model = net()
    attributes, regularizers = set(vars(model)), [v.regularizer for v in model.weights]
    run(model, alternation(model))
    assert set(vars(model)) == attributes and [v.regularizer for v in model.weights] == regularizers
    assert not model.losses
    model.save(tmp_path / "net.keras")
    same(keras.saving.load_model(tmp_path / "net.keras"), model)


def test_shown_compressed_only_inside():
    model = net()
    lc_steps = alternation(model)

    def look(i):
        before = kernels(model)
        with pytest.raises(KeyError), lc_steps.compressed():
            assert nonzeros(model) == KEPT
            with pytest.raises(ValueError, match="shown compressed"):
                lc_steps.c_step()
            with pytest.raises(ValueError, match="shown compressed"), lc_steps.compressed():
                pass
            raise KeyError
        for old, new in zip(before, kernels(model), strict=True):
            np.testing.assert_array_equal(old, new)

    run(model, lc_steps, each_l_step=look)


def test_finished_it_stays_so():
    model = net()
    lc_steps = alternation(model)
    with lc_steps.compressed():
        lc_steps.finish()
    assert nonzeros(model) == KEPT
    lc_steps.finish()
    assert nonzeros(model) == KEPT
    with pytest.raises(ValueError, match="it was finished"):
        lc_steps.c_step()


@pytest.mark.parametrize("which", ["kernel", "bias"])
def test_what_diverged_goes_back_to_the_last_c_step(which):
    model = net()
    lc_steps = alternation(model)
    step = training_step(model, lc_steps)
    step(*BATCHES[0])
    lc_steps.c_step(MUS[1])
    with lc_steps.compressed():
        good = model.get_weights()
    step(*BATCHES[1])
    variable = getattr(model.layers[0], which)
    variable.assign(variable * float("nan"))
    message = f"diverged: NaN or infinite values in {variable.path}. .*last C step"
    with pytest.raises(ValueError, match=message):
        lc_steps.c_step(MUS[2])
    for one, two in zip(model.get_weights(), good, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("which", ["kernel", "bias"])
def test_a_model_that_is_not_finite_is_refused(which):
    model = net()
    variable = getattr(model.layers[1], which)
    variable.assign(variable * float("inf") - float("inf"))
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"finite weights. Received: .* in {variable.path}"):
        alternation(model)
    for one, two in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "mu, error", [(0.0, ValueError), (float("inf"), ValueError), ("auto", TypeError), (None, TypeError)]
)
def test_wrong_mu(mu, error):
    model = net()
    with pytest.raises(error, match="Expected `mu` to be a positive number"):
        alternation(model, mu=mu)
    lc_steps = alternation(model)
    if mu is not None:
        with pytest.raises(error, match="Expected `next_mu` to be a positive number"):
            lc_steps.c_step(mu)
    assert lc_steps.mu == MUS[0]


def test_once_finished_nothing_is_pulled():
    model = net()
    lc_steps = alternation(model)
    step = training_step(model, lc_steps)
    step(*BATCHES[0])
    lc_steps.c_step(MUS[1])
    assert lc_steps.penalty() > 0
    lc_steps.finish()
    assert lc_steps.penalty() == tf.function(lc_steps.penalty)() == 0
    # A step that was traced before goes on training, as if there were no penalty.
    other = net()
    other.set_weights(model.get_weights())
    step(*BATCHES[1])
    fit(other, x=BATCHES[1][0], y=BATCHES[1][1], epochs=1)
    same(model, other, rtol=1e-5, atol=1e-7)


def test_a_c_step_returns_its_gap():
    model = net()
    lc_steps = alternation(model)
    training_step(model, lc_steps)(*BATCHES[0])
    weights = np.concatenate([w.ravel() for w in kernels(model)])
    gap = lc_steps.c_step(MUS[1])
    with lc_steps.compressed():
        thetas = np.concatenate([w.ravel() for w in kernels(model)])
    np.testing.assert_allclose(gap, np.linalg.norm(weights - thetas) / np.linalg.norm(weights), rtol=1e-5)
    assert gap == lc_steps.gap


@pytest.mark.parametrize(
    "act", [Alternation.c_step, lambda steps: steps.compressed().__enter__(), Alternation.finish]
)
def test_inside_a_tf_function(act):
    lc_steps = alternation(net())
    with pytest.raises(ValueError, match="between calls of a tf.function"):
        tf.function(lambda: act(lc_steps), autograph=False)()
    lc_steps.c_step(MUS[1])
