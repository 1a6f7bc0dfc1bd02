import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers import KEPT, lc, net
from lc_keras import L0Constraint, baselines
from lc_keras.fit.optimizers import (
    LearningRateLimit,
    begin_anew,
    effective_rate,
    inner_optimizer,
    optimizers_of,
    reset_state,
)

SGD = keras.optimizers.SGD


def move(optimizer, variable, gradient=1.0):
    """The update that the optimizer makes."""
    before = variable.numpy().copy()
    optimizer.apply([tf.fill(variable.shape, gradient)], [variable])
    return variable.numpy() - before


def fresh(value=0.0):
    return keras.Variable(np.full((2, 2), value, "float32"))


# The learning-rate limit.


def limited_move(optimizer, variable, limit, bound, gradient=1.0):
    limit.set(bound)
    with limit.applied():
        return move(optimizer, variable, gradient)


def test_fixed_rate_is_limited_inside_and_untouched_outside():
    optimizer, weight = SGD(0.1), fresh()
    given, limit = optimizer._learning_rate, LearningRateLimit(optimizer)
    with limit.applied():
        np.testing.assert_allclose(optimizer.learning_rate, 0.1)
    for bound, rate in [(0.5, 0.1), (0.05, 0.05), (0.02, 0.02), (0.08, 0.08), (0.5, 0.1)]:
        limit.set(bound)
        with limit.applied():
            np.testing.assert_allclose(optimizer.learning_rate, rate, rtol=1e-6)
            np.testing.assert_allclose(move(optimizer, weight), -rate, rtol=1e-5)
        assert optimizer._learning_rate is given
        assert optimizer.learning_rate.numpy() == np.float32(0.1)


def test_rate_that_another_callback_sets_in_between():
    optimizer, weight = SGD(0.1), fresh()
    limit = LearningRateLimit(optimizer)
    for wanted, bound in [(0.1, 0.05), (0.3, 0.06), (0.3, 1.0), (0.01, 0.05)]:
        optimizer.learning_rate = wanted
        np.testing.assert_allclose(
            limited_move(optimizer, weight, limit, bound), -min(wanted, bound), rtol=1e-5
        )
        assert limit.effective() == np.float32(wanted)


def test_an_error_inside_leaves_the_rate_as_it_was():
    optimizer = SGD(0.1)
    given, limit = optimizer._learning_rate, LearningRateLimit(optimizer)
    with pytest.raises(KeyboardInterrupt), limit.applied():
        raise KeyboardInterrupt
    assert optimizer._learning_rate is given


def schedule():
    return keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.4, 0.1])


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_schedule_is_limited_step_by_step(wrap):
    given = schedule()
    inner = SGD(given)
    optimizer, weight = wrap(inner), fresh()
    scale = optimizer.initial_scale if optimizer is not inner else 1.0
    limit = LearningRateLimit(optimizer)
    bounds = [0.2, 0.2, 0.2, 0.2, 0.05, 9.0]
    moves = [limited_move(optimizer, weight, limit, bound, scale)[0, 0] for bound in bounds]
    np.testing.assert_allclose(moves, [-0.2, -0.2, -0.2, -0.1, -0.05, -0.1], rtol=1e-5)
    assert inner._learning_rate is given


def test_a_schedule_goes_by_batches_where_several_make_an_update():
    optimizers = [SGD(schedule(), gradient_accumulation_steps=2) for _ in range(2)]
    weights, limit = [fresh(), fresh()], LearningRateLimit(optimizers[0])
    limit.look_ahead(6)
    for _ in range(6):
        limited_move(optimizers[0], weights[0], limit, 9.0)
        move(optimizers[1], weights[1])
        np.testing.assert_array_equal(weights[0].numpy(), weights[1].numpy())
    assert weights[0].numpy().min() < 0 and limit.effective() == pytest.approx(0.05)


def test_callable_rate_is_limited_and_given_back():
    rate = tf.Variable(0.4)

    def given():
        return rate

    optimizer, weight = SGD(given), fresh()
    limit = LearningRateLimit(optimizer)
    np.testing.assert_allclose(limited_move(optimizer, weight, limit, 0.2), -0.2, rtol=1e-5)
    rate.assign(0.1)
    np.testing.assert_allclose(limited_move(optimizer, weight, limit, 0.2), -0.1, rtol=1e-5)
    rate.assign(0.5)
    np.testing.assert_allclose(move(optimizer, weight), -0.5, rtol=1e-5)
    assert optimizer._learning_rate is given


@pytest.mark.parametrize("rate", [0.4, schedule, lambda: lambda: 0.4])
def test_a_new_limit_reaches_a_traced_update(rate):
    optimizer, weight = SGD(rate() if callable(rate) else rate), fresh()
    optimizer.build([weight])
    limit = LearningRateLimit(optimizer)
    traces = []

    @tf.function
    def update():
        traces.append(1)
        optimizer.apply([tf.ones((2, 2))], [weight])

    for bound in (0.3, 0.2):
        weight.assign(np.zeros((2, 2)))
        limit.set(bound)
        with limit.applied():
            update()
        np.testing.assert_allclose(weight.numpy(), np.full((2, 2), -bound), rtol=1e-5)
    assert len(traces) == 1


def test_highest_rate_of_a_warm_up_is_seen_from_its_start():
    optimizer = SGD(keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.5))
    limit = LearningRateLimit(optimizer)
    assert limit.effective() == 0
    limit.look_ahead(10)
    assert limit.effective() == pytest.approx(0.45, abs=0.06)


def test_the_highest_rate_is_of_what_is_still_to_come():
    optimizer = SGD(keras.optimizers.schedules.PolynomialDecay(0.5, 10, 0.0))
    limit = LearningRateLimit(optimizer)
    limit.look_ahead(10)
    assert limit.effective() == pytest.approx(0.5)
    optimizer.iterations.assign(8)
    assert limit.effective() == pytest.approx(0.1)


def test_inner_optimizer():
    inner = SGD()
    assert inner_optimizer(inner) is inner
    assert inner_optimizer(keras.optimizers.LossScaleOptimizer(inner)) is inner


# The fresh state.

OPTIMIZERS = {
    "momentum": lambda: SGD(0.1, momentum=0.9),
    "nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.1, amsgrad=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.1, momentum=0.9, centered=True),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.3),
    "nadam": lambda: keras.optimizers.Nadam(0.1),
    "schedule": lambda: SGD(schedule(), momentum=0.9),
}


@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "loss_scale"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_reset_gives_the_state_of_a_new_optimizer(kind, wrap):
    used, new = OPTIMIZERS[kind](), OPTIMIZERS[kind]()
    optimizer = keras.optimizers.LossScaleOptimizer(used, initial_scale=8.0) if wrap else used
    weight = fresh()
    for _ in range(3):
        move(optimizer, weight, 4.0)
    if kind != "schedule":
        used.learning_rate = 0.05
    scale = [optimizer.step_counter.numpy(), optimizer.dynamic_scale.numpy()] if wrap else None
    position = weight.numpy().copy()

    reset_state(optimizer)

    new.build([weight])
    stays = {id(used.iterations), id(used._learning_rate)}
    if kind in ("adam", "nadam"):
        stays |= {id(v) for v in (*used._velocities, *getattr(used, "_velocity_hats", []))}
        assert used._velocities[0].numpy().min() > 0
    # Keras does not count Nadam's last variable when it is built inside a LossScaleOptimizer.
    slots = [(v, n) for v, n in zip(used.variables, new.variables, strict=False) if id(v) not in stays]
    assert slots
    for variable, expected in slots:
        np.testing.assert_array_equal(variable.numpy(), expected.numpy())
    assert used.iterations.numpy() == 3
    np.testing.assert_allclose(used.learning_rate, 0.1 if kind == "schedule" else 0.05)
    np.testing.assert_array_equal(weight.numpy(), position)
    if wrap:
        assert [optimizer.step_counter.numpy(), optimizer.dynamic_scale.numpy()] == scale == [3, 8.0]


@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "loss_scale"])
def test_reset_of_unlike_states(wrap):
    # For weights of one axis Adafactor keeps scalars, which Keras does not count inside a LossScaleOptimizer.
    used, new = keras.optimizers.Adafactor(0.1), keras.optimizers.Adafactor(0.1)
    optimizer = keras.optimizers.LossScaleOptimizer(used) if wrap else used
    weights = [keras.Variable(np.ones(shape, "float32")) for shape in ((4,), (2, 3))]
    optimizer.apply([tf.ones_like(weight) for weight in weights], weights)
    moved = [weight.numpy() for weight in weights]
    assert used._v[0].numpy().any() and used._r[1].numpy().any()
    reset_state(optimizer)
    new.build(weights)
    for name in ("_r", "_c", "_v"):
        for variable, expected in zip(getattr(used, name), getattr(new, name), strict=True):
            np.testing.assert_array_equal(variable, expected)
    assert used.iterations.numpy() == 1
    for weight, position in zip(weights, moved, strict=True):
        np.testing.assert_array_equal(weight, position)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_steps_of_adam_after_a_reset_stay_within_its_rate(amsgrad):
    optimizer, weight = keras.optimizers.Adam(0.1, amsgrad=amsgrad), fresh()
    move(optimizer, weight)
    # As after many batches with gradients of 1.
    optimizer.iterations.assign(10_000)
    for moment in optimizer.variables[2:]:
        moment.assign(np.ones((2, 2)))
    reset_state(optimizer)
    moves = np.abs([move(optimizer, weight)[0, 0] for _ in range(10)])
    assert moves[0] < 0.02 and moves[-1] > 0.05 and moves.max() <= 0.1001


def test_steps_of_muon_after_a_reset_stay_within_its_rate():
    optimizer, bias = keras.optimizers.Muon(0.1), keras.Variable(np.zeros(4, "float32"), name="bias")
    kernel = keras.Variable(np.eye(4, dtype="float32"), name="kernel")
    optimizer.apply([tf.ones(4), tf.ones((4, 4))], [bias, kernel])
    assert optimizer.momentums[1].numpy().any()
    optimizer.iterations.assign(10_000)
    optimizer.adam_velocities[0].assign(np.ones(4))
    reset_state(optimizer)
    before = bias.numpy()
    assert not optimizer.momentums[1].numpy().any()
    optimizer.apply([tf.ones(4), tf.ones((4, 4))], [bias, kernel])
    assert 0 < np.abs(bias.numpy() - before).max() < 0.02


def test_second_moments_that_are_not_finite_do_not_stay():
    optimizer, weight = keras.optimizers.Adam(0.1), fresh()
    move(optimizer, weight, float("nan"))
    reset_state(optimizer)
    assert not optimizer._velocities[0].numpy().any()


class Unwritten(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return tf.where(step < 2, 0.4, 0.1)


@pytest.mark.parametrize("rate", [Unwritten(), lambda: tf.constant(0.1)], ids=["schedule", "function"])
def test_reset_with_a_rate_that_keras_cannot_write_down(rate):
    optimizer, weight = SGD(rate, momentum=0.9), fresh()
    for _ in range(3):
        move(optimizer, weight)
    reset_state(optimizer)
    assert optimizer._learning_rate is rate
    np.testing.assert_allclose(move(optimizer, weight), -0.1, rtol=1e-5)


def test_momentum_does_not_carry_over():
    optimizer, weight = SGD(0.1, momentum=0.9), fresh()
    for _ in range(3):
        move(optimizer, weight)
    assert move(optimizer, weight)[0, 0] < -0.3
    reset_state(optimizer)
    np.testing.assert_allclose(move(optimizer, weight), -0.1, rtol=1e-5)


def test_averaged_weights_stay():
    """They belong to the model, not the optimizer: from zero, they would take 1/(1 - momentum) batches."""
    optimizer, weight = SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.5), fresh(5.0)
    for _ in range(3):
        move(optimizer, weight)
    (average,) = optimizer._model_variables_moving_average
    before = average.numpy().copy()
    assert before.min() > 1
    reset_state(optimizer)
    np.testing.assert_array_equal(average.numpy(), before)
    np.testing.assert_array_equal(optimizer.momentums[0].numpy(), 0)


def test_optimizer_without_state_is_left_alone():
    optimizer = SGD(0.1, momentum=0.9)
    reset_state(optimizer)
    assert not optimizer.built


# The rate that sets the scale of μ.


def test_effective_rate_of_sgd_counts_momentum():
    assert effective_rate(SGD(0.1), [], 0.1) == pytest.approx(0.1)
    assert effective_rate(SGD(0.1, momentum=0.9), [], 0.1) == pytest.approx(1.0)
    scaled = keras.optimizers.LossScaleOptimizer(SGD(schedule(), momentum=0.5))
    assert effective_rate(scaled, [], 0.4) == pytest.approx(0.8)
    assert effective_rate(SGD(0.1, gradient_accumulation_steps=4), [], 0.1) == pytest.approx(0.025)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.RMSprop(0.001, momentum=0.8),
        lambda: keras.optimizers.Adafactor(0.001),
        lambda: keras.optimizers.Lamb(0.001),
        lambda: keras.optimizers.Adam(0.001),
    ],
    ids=["RMSprop", "Adafactor", "LAMB", "Adam"],
)
def test_effective_rate_is_how_far_a_constant_gradient_moves_a_weight(make):
    optimizer, weight = make(), keras.Variable(np.full((6, 6), 0.05, "float32"))
    for _ in range(60):
        before = weight.numpy()
        optimizer.apply([tf.fill((6, 6), 1e-3)], [weight])
    moved = np.mean(before - weight.numpy()) / 1e-3
    assert effective_rate(optimizer, [weight], 0.001) == pytest.approx(moved, rel=0.3)


def test_effective_rate_of_adam_is_relative_to_the_gradient():
    """The gradient of the compressed weights, whatever the others do, corrected for the first batches."""
    optimizer, compressed, other = keras.optimizers.Adam(0.1), fresh(), fresh()
    assert effective_rate(optimizer, [compressed], 0.1) == pytest.approx(100.0)
    optimizer.apply([tf.fill((2, 2), 4.0), tf.fill((2, 2), 400.0)], [compressed, other])
    assert effective_rate(optimizer, [compressed], 0.1) == pytest.approx(0.1 / 4, rel=1e-4)
    assert effective_rate(optimizer, [other], 0.1) == pytest.approx(0.1 / 400, rel=1e-4)


# Several optimizers.


class Two(keras.Sequential):
    def compile(self, other, **options):
        super().compile(**options)
        self.kept = other


@pytest.mark.parametrize(
    "keep", [lambda o: o, lambda o: [o], lambda o: {"other": o}], ids=["one", "list", "dict"]
)
def test_optimizers_of_a_model(keep):
    other = SGD(0.2)
    inside = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    inside.compile("adam")
    model = Two([inside, keras.layers.Dense(1)])
    model.compile(keep(other), optimizer=keras.optimizers.LossScaleOptimizer(SGD(0.1)))
    found = optimizers_of(model)
    assert len(found) == 2 and found[0] is model.optimizer.inner_optimizer and found[1] is other
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    plain.compile("sgd")
    assert optimizers_of(plain) == [plain.optimizer]


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="not in this Keras")
@pytest.mark.parametrize("by_function", [False, True])
def test_a_multi_optimizer_is_the_optimizers_in_it(by_function):
    kernels, biases = SGD(0.1, momentum=0.9), SGD(0.5)
    choose = keras.optimizers.OptimizerMap(biases, {".*kernel": kernels})
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.MultiOptimizer((lambda v: choose(v)) if by_function else choose))
    found, (kernel, bias) = optimizers_of(model), model.trainable_variables
    assert found == [kernels, biases]
    limit = LearningRateLimit(*found, variables=[kernel])
    assert limit.updating == [kernels] and limit.effective() == pytest.approx(1.0)
    limit.set(0.01)
    with limit.applied():
        before = kernel.numpy()
        model.optimizer.apply([tf.ones((2, 1)), tf.ones(1)], [kernel, bias])
    np.testing.assert_allclose(kernel.numpy() - before, -0.01, rtol=1e-3)
    np.testing.assert_allclose(bias.numpy(), -0.5)


def test_only_what_updates_the_compressed_weights_is_limited_and_sets_the_scale():
    compressed, others = fresh(), fresh()
    ours, theirs = SGD(0.1), SGD(schedule(), momentum=0.9)
    limit = LearningRateLimit(theirs, ours, variables=[compressed])
    limit.look_ahead(10)
    assert limit.updating == [theirs, ours] and limit.guessed
    limit.set(0.01)
    with limit.applied():
        np.testing.assert_allclose(move(ours, compressed), -0.01, rtol=1e-5)
        free = float(theirs._learning_rate())
        np.testing.assert_allclose(move(theirs, others), -free, rtol=1e-5)
        assert free > 0.01
    assert limit.updating == [ours] and not limit.guessed
    assert limit.effective() == pytest.approx(0.1)


def test_effective_rate_of_adam_is_of_all_weights_alike():
    optimizer = keras.optimizers.Adam(0.1)
    small, large = keras.Variable(np.zeros(1)), keras.Variable(np.zeros(3))
    optimizer.apply([tf.fill((1,), 8.0), tf.fill((3,), 4.0)], [small, large])
    # (1 · 64 + 3 · 16) / 4 = 28.
    assert effective_rate(optimizer, [small, large], 0.1) == pytest.approx(0.1 / 28**0.5, rel=1e-4)


def test_effective_rate_of_adam_is_corrected_by_updates():
    optimizer, weight = keras.optimizers.Adam(0.1, gradient_accumulation_steps=2), fresh()
    for _ in range(2):
        move(optimizer, weight, 4.0)
    assert effective_rate(optimizer, [weight], 0.1) == pytest.approx(0.05 / 4, rel=1e-4)


def test_effective_rate_of_adam_where_gradients_are_zero():
    optimizer, weight = keras.optimizers.Adam(0.1), fresh()
    move(optimizer, weight, 0.0)
    assert effective_rate(optimizer, [weight], 0.1) == pytest.approx(100.0)


def test_look_ahead_begins_where_the_optimizer_is():
    optimizer = SGD(keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.5))
    optimizer.iterations.assign(8)
    limit = LearningRateLimit(optimizer)
    limit.look_ahead(4)
    assert limit.effective() == pytest.approx(0.5)


@pytest.mark.parametrize("first", [True, False])
def test_of_several_schedules_each_is_looked_ahead(first):
    warm_up = SGD(keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.5))
    limit = LearningRateLimit(*([warm_up, SGD(0.1)] if first else [SGD(0.1), warm_up]))
    limit.look_ahead(20)
    assert limit.guessed and limit.effective() == pytest.approx(0.5)


class Scaled(SGD):
    def __init__(self, scale, **options):
        super().__init__(scale * 0.1, **options)


def test_only_what_updates_the_compressed_weights_is_reset():
    # The other optimizer cannot be made anew, which does not matter.
    ours, theirs, compressed, other = SGD(0.1, 0.9), Scaled(1.0, momentum=0.9), fresh(), fresh()
    limit = LearningRateLimit(theirs, ours, variables=[compressed])
    # It is not known yet which optimizer it is.
    limit.check_reset()
    move(ours, compressed)
    move(theirs, other)
    limit.check_reset()
    limit.reset_optimizers()
    assert not ours.momentums[0].numpy().any() and theirs.momentums[0].numpy().all()


def test_finite_averages_stay():
    optimizer, weight = SGD(0.1, use_ema=True, ema_momentum=0.5), fresh(5.0)
    for _ in range(3):
        move(optimizer, weight)
    (average,) = optimizer._model_variables_moving_average
    before = average.numpy()
    assert np.all(before != weight.numpy())
    begin_anew([optimizer])
    np.testing.assert_array_equal(average.numpy(), before)


@pytest.mark.parametrize("make", [lc, lambda: baselines.MagnitudePruning(L0Constraint(KEPT))])
def test_a_rate_of_zero_is_said_before_the_first_batch(make, recwarn):
    warnings.simplefilter("always")
    decay = keras.optimizers.schedules.CosineDecay
    warming_up = decay(0.0, 4, warmup_target=0.1, warmup_steps=2)

    class Wrapper(keras.optimizers.SGD):
        """Has no rate of its own."""

        learning_rate = property(lambda self: 0.1)

    cases = (0.1, SGD, False), (warming_up, SGD, False), (0.0, SGD, True), (decay(0.1, 1), SGD, True)
    for rate, kind, rests in (*cases, (0.0, Wrapper, False)):
        model, callback = net(kind(rate)), make()
        if not isinstance(rate, float):
            model.optimizer.iterations.assign(0 if rate is warming_up else 1)
        callback.set_params({"epochs": 20, "steps": 8})
        callback.set_model(model)
        callback.on_train_begin()
        callback.on_epoch_begin(0)
        callback.on_train_batch_begin(0)
        said = [str(warning.message) for warning in recwarn.list]
        assert any("The learning rate is 0" in text for text in said) == rests, (rate, kind, said)
        recwarn.clear()
