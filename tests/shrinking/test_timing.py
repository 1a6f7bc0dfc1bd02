"""The time of a net at other widths, fitted to measured times, and a budget of that time."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import helpers
import lc_keras
from lc_keras import L0Constraint, Neurons
from lc_keras.algorithm.tasks import Task, bind_tasks
from lc_keras.baselines import compress_directly
from lc_keras.model import latency
from lc_keras.model.latency import known, remember
from lc_keras.model.macs import macs
from lc_keras.shrinking import timing

HALF = L0Constraint(0.5, Neurons(), measure="milliseconds")


def chain(*widths, name="chain"):
    stack = [layers.Dense(width, name=f"{name}{i}") for i, width in enumerate(widths)]
    return helpers.randomized(keras.Sequential([keras.Input((4,)), *stack], name=name))


def test_a_time_that_is_a_sum_over_kernels_is_found(monkeypatch):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", name="first")(inputs)
    x = layers.Add()([x, layers.Conv2D(12, 3, padding="same", name="second")(x)])
    x = layers.DepthwiseConv2D(3, padding="same", name="third")(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(20, 1, name="fourth")(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    seen = []

    def times(models, *_):
        seen.extend(tuple(helpers.widths(model).values()) for model in models)
        slow = {"third": 40.0, "second": 3.0}
        return [
            0.2 + sum(slow.get(k.path.split("/")[0], 1.0) * k.dense for k in macs(model).kernels) / 1e6
            for model in models
        ]

    monkeypatch.setattr(timing, "quartiles", times)
    found = lc_keras.latency(model, batch_size=7, nets=30)
    assert found.batch_size == 7 and found.nets == 30 and found.error < 0.03
    (whole,) = times([model])
    assert found.milliseconds == pytest.approx(whole, rel=0.02)
    # Widths that an addition ties are the same.
    assert len(set(seen)) > 10 and all(first == second for first, second, *_ in seen)
    assert model.count_params() == 12 * 28 + 12 * 109 + 120 + 13 * 20 + 42


def test_a_time_by_ranks_is_found(monkeypatch):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(24, 3, padding="same", name="first")(inputs)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2D(32, 3, 2, padding="same", name="second")(x)
    x = layers.Dense(20, name="dense")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(1, name="tiny")(x))
    seen = []

    def times(models, *_):
        seen.extend(models)
        costs = {layer.name: 1 + i for m in models for i, layer in enumerate(model.layers)}
        return [
            0.2 + sum(costs[k.path.split("/")[0].removesuffix("_factor")] * k.dense for k in macs(m).kernels)
            for m in models
        ]

    monkeypatch.setattr(timing, "quartiles", times)
    found = lc_keras.latency(model, batch_size=7, nets=40, of="ranks")
    assert found.of == "ranks" and found.error < 0.05 and known(model, "ranks") is found and not known(model)
    # A kernel of one column, or of one row and column for each axis, has no two layers of fewer weights.
    names = [path.split("/")[0] for path in found.kernels]
    assert names == ["first", "second", "dense", "tiny"]
    assert [len(times) for times in found.kernels.values()] == [5, 5, 3, 3]
    (whole,) = times([model])
    assert found.milliseconds == pytest.approx(whole, rel=0.02)
    assert found.kernels["dense/kernel"][2] == pytest.approx(6 * (288 + 20), rel=0.25)
    # First over the window and 1 × 1, then along one axis each.
    _, _, over, _, along = found.kernels["first/kernel"]
    assert over == pytest.approx(2 * 64 * (27 + 24), rel=0.2)
    assert along == pytest.approx(2 * 64 * (9 + 72), rel=0.2)
    assert [layer.name for m in seen for layer in m.layers].count("dense_factor") > 15
    assert lc_keras.Latency.from_json(found.to_json()) == found
    assert "ms a rank" in str(found) and "at any ranks" in str(found)


def test_most_widths_that_are_timed_are_no_multiples_of_8(monkeypatch):
    widths = []

    def times(models, *_):
        widths.extend(width for model in models for width in helpers.widths(model).values())
        return [1.0] * len(models)

    monkeypatch.setattr(timing, "quartiles", times)
    lc_keras.latency(chain(64, 64, 2))
    smaller = [width for width in widths if 2 < width < 64]
    assert len(smaller) > 20 and np.mean(np.mod(smaller, 8) == 0) < 0.25


def test_a_model_is_timed_with_its_weights_in_the_cache(monkeypatch):
    now, last = [0.0], [None]

    def call(name):
        def run(_):
            # The first batch after those of another model takes ten times as long.
            now[0] += 10.0 * name if last[0] != name else name
            last[0] = name
            return np.zeros(1)

        return lambda inputs: keras.tree.map_structure(tf.constant, run(inputs))

    monkeypatch.setattr(timing, "_call", call)
    monkeypatch.setattr(timing, "_inputs", lambda *_: None)
    monkeypatch.setattr(timing, "_TURN", 1)  # with more, the lower quartile would leave out the slow one
    assert timing.quartiles([1, 2], 1, 0.0, lambda: now[0]) == [1000.0, 2000.0]


def test_time_is_that_of_a_clock():
    ticks = itertools.count()
    found = lc_keras.latency(chain(6, 2), nets=4, seconds=1e-3, clock=lambda: next(ticks))
    assert found.milliseconds == pytest.approx(1000, rel=0.01)


def test_a_fit_that_is_bad_is_said_to_be(recwarn):
    model = chain(6, 2)
    found = lc_keras.latency(model, nets=4, seconds=1e-3)
    remember(model, dataclasses.replace(found, error=0.09))
    timing.ensure_known(model, ["widths", None])
    assert not recwarn
    remember(model, dataclasses.replace(found, error=0.36))
    with pytest.warns(UserWarning, match=r"off by 36 % on average.*latency\(model, seconds=60\)`"):
        timing.ensure_known(model, ["widths"])
    remember(model, dataclasses.replace(found, error=0.36, batch_size=32))
    with pytest.warns(UserWarning, match=r"seconds=60, batch_size=32\)`"):
        timing.ensure_known(model, ["widths"])


def test_real_times_are_kept_in_a_file_and_known_of_copies(tmp_path):
    model = chain(6, 5, 2)
    path = tmp_path / "new" / "latency.json"
    found = lc_keras.latency(model, nets=4, seconds=1e-3, path=path)
    assert found.milliseconds > 0 and set(found.kernels) == {f"chain/chain{i}/kernel" for i in range(3)}
    assert "left out of the fit once" in str(found)
    assert known(keras.models.clone_model(model)) is found
    assert known(chain(6, 4, 2)) is None
    forget()
    assert lc_keras.latency(model, path=path) == found == known(model)
    assert list(path.parent.iterdir()) == [path]


def forget():
    latency._KNOWN.clear()


def images(size):
    stack = [layers.Conv2D(4, 3, name="conv"), layers.GlobalAveragePooling2D(), layers.Dense(2, name="head")]
    return keras.Sequential([keras.Input((size, size, 3)), *stack], name="images")


@pytest.mark.parametrize(
    "make, other, batch_size, message",
    [
        (lambda: chain(6, 5, 2), lambda: chain(6, 5, 2), 2, "batch_size 2. Received: 1"),
        (
            lambda: chain(6, 5, 2),
            lambda: chain(6, 4, 2),
            1,
            r"chain1/kernel \(6, 4, 1\). Received: \(6, 5, 1\)",
        ),
        (lambda: chain(6, 5, 2), lambda: chain(6, 5, 2, 2), 1, r"chain3/kernel \(2, 2, 1\). Received: None"),
        (lambda: chain(6, 5, 2), lambda: chain(6, 5), 1, r"chain2/kernel None. Received: \(5, 2, 1\)"),
        (lambda: images(9), lambda: images(12), 1, r"\(3, 3, 3, 4, 100\). Received: \(3, 3, 3, 4, 49\)"),
    ],
)
def test_a_file_of_another_model_or_batch_is_refused(make, other, batch_size, message, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "quartiles", lambda models, *_: [1e-3 * m.count_params() for m in models])
    path = tmp_path / "latency.json"
    lc_keras.latency(make(), nets=4, path=path)
    model = other()
    forget()
    with pytest.raises(ValueError, match=f"of this model and batch size, with .*{message}"):
        lc_keras.latency(model, batch_size, path=path)
    assert known(model) is None


def test_a_file_of_widths_is_none_of_ranks(tmp_path):
    path = tmp_path / "latency.json"
    path.write_text(fitted(model := chain(8, 10, 2)).to_json())
    with pytest.raises(ValueError, match="with of ranks. Received: widths"):
        lc_keras.latency(model, path=path, of="ranks")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[:50],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"fixed": ', '"fixed": -'),
        lambda text: text.replace('"fixed": ', '"fixed": NaN, "fixed_": '),
        lambda text: text.replace('"kernels": {', '"kernels": {"a": [1.0], '),
        lambda text: text.replace('"kernels": {', '"kernels": {"a": [1.0, 1.0], '),
        lambda text: text.replace('"sizes": {', '"sizes": {"a": 1, '),
        lambda text: text.replace('"widths"', '"ranks"'),
        lambda text: text.replace('"widths"', '"heights"'),
    ],
)
def test_a_file_that_is_spoilt_says_what_was_expected(spoil, tmp_path):
    model, path = chain(8, 10, 2), tmp_path / "latency.json"
    path.write_text(spoil(fitted(model).to_json()))
    forget()
    with pytest.raises(
        ValueError, match=r"latency.json' to be a file that `latency` wrote.*batch_size, mill"
    ):
        lc_keras.latency(model, path=path)
    assert known(model) is None


def test_what_is_no_text_says_what_was_expected():
    with pytest.raises(ValueError, match=r"Expected what `Latency.to_json` returns.*Received: \{\}"):
        latency.Latency.from_json({})


@pytest.mark.parametrize("of", ["widths", "ranks"])
def test_kernels_of_the_same_path_are_told_apart(of):
    def part(name, *widths):
        inputs = keras.Input((widths[0],))
        inner = layers.Dense(widths[1], name="inner")(inputs)
        return keras.Model(inputs, layers.Dense(widths[2], name="outer")(inner), name=name)

    inputs = keras.Input((8,))
    model = keras.Model(inputs, part("second", 6, 12, 4)(part("first", 8, 16, 6)(inputs)))
    found = lc_keras.latency(model, nets=4, seconds=1e-3, of=of)
    assert found.sizes["inner/kernel"][:2] == (8, 16) and found.sizes["inner/kernel (2)"][:2] == (6, 12)
    if of == "widths":
        kernels = {path: (float(place), 0.0) for place, path in enumerate(found.kernels, 1)}
        remember(model, dataclasses.replace(found, kernels=kernels))
        (shared,) = bind_tasks([Task(HALF)], model)
        assert [layout.nanoseconds[0] for layout in shared.layouts[::2]] == [1e6, 2e6, 3e6, 4e6]


def test_the_time_of_a_model_is_not_that_of_one_with_other_strides():
    def net(strides):
        kernel = layers.Conv2D(8, 3, strides=strides, name="kernel")
        last = layers.Conv2D(2, 3, name="last")
        return keras.Sequential([keras.Input((9, 9, 3)), kernel, last], name="net")

    found = lc_keras.latency(net(2), nets=4, seconds=1e-3)
    assert known(keras.models.clone_model(net(2))) == found and known(net(1)) is None


def fitted(model, fixed=0.5, pairs=((4.0, 1.0), (6.0, 0.5), (2.0, 0.0))):
    kernels = {v.path: pair for v, pair in zip(model.weights[::2], pairs, strict=True)}
    whole = fixed + sum(map(sum, kernels.values()))
    found = lc_keras.Latency(1, whole, fixed, kernels, 0.0, 0.0, 9, dict.fromkeys(kernels, (1,)), "here")
    remember(model, found)
    return found


def compressed(cost, model):
    """The weights of a model before and after a C step, without a graph to trace."""
    (part,) = bind_tasks([Task(cost)], model)
    values = [tf.constant(v.numpy()) for v in part.variables]
    maps = cost.maps(values, tf.constant(1.0), part.layouts)
    return [(value.numpy(), solve(value).numpy()) for solve, value in zip(maps, values, strict=True)]


@pytest.mark.parametrize("keep, allowed", [(0.5, 7.0), (9, 9.0), (np.float32(5.5), 5.5), (1.0, 14.0)])
def test_a_budget_in_milliseconds_holds_for_what_is_left(keep, allowed):
    model = chain(8, 10, 2)
    found = fitted(model)
    cost = L0Constraint(keep, Neurons(), measure="milliseconds", keep_at_least=1)
    (part,) = bind_tasks([Task(cost)], model)
    assert cost.total(part.layouts) == pytest.approx(1e6 * found.milliseconds)
    assert cost.budget(part.layouts) == pytest.approx(1e6 * allowed)
    kept = [theta for _, theta in compressed(cost, model)]
    first, second = kept[0].any(axis=0).mean(), kept[2].any(axis=0).mean()
    spent = 0.5 + 4 * first + first + 6 * first * second + 0.5 * second + 2 * second
    assert 0.75 * allowed <= spent <= allowed + 1e-6


@pytest.mark.parametrize("fixed", [0.5, 0.1234567, 1 / 3])
@pytest.mark.parametrize("multiple_of", [1, 4])
def test_all_of_the_time_is_all_units(fixed, multiple_of):
    model = chain(8, 10, 2)
    found = fitted(model, fixed, ((4 / 3, 1 / 7), (0.6, 0.05), (0.2, 0.0)))
    for keep in (1.0, found.milliseconds):
        cost = L0Constraint(keep, Neurons(), measure="milliseconds", multiple_of=multiple_of)
        for value, theta in compressed(cost, model):
            np.testing.assert_array_equal(value, theta)


def test_a_budget_out_of_range_is_told_in_milliseconds():
    model = chain(8, 10, 2)
    fitted(model)
    for keep, message in ((15, "at most 14, the milliseconds of all weights. Received: 15"), (0.01, "0.14")):
        with pytest.raises(ValueError, match=message):
            compress_directly(model, L0Constraint(keep, Neurons(), measure="milliseconds"))


@pytest.mark.parametrize("kind", [lc_keras.LearningCompression, lc_keras.baselines.DirectCompression])
def test_a_fit_finds_the_time_by_itself(kind, monkeypatch):
    model = helpers.net()
    monkeypatch.setattr(timing, "quartiles", lambda models, *_: [1e-3 * m.count_params() for m in models])
    helpers.fit(model, [kind(L0Constraint(0.6, Neurons(), measure="milliseconds"))], epochs=1)
    assert known(model).error < 0.2
    assert 2 <= np.any(model.layers[0].kernel.numpy(), axis=0).sum() <= 5


def test_ranks_that_pay_in_time_go_by_the_layers_of_the_model(monkeypatch):
    stack = [layers.EinsumDense("ab,bc->ac", 14, name="whole"), layers.Dense(20, use_bias=False, name="two")]
    model = keras.Sequential([keras.Input((12,)), *stack])
    cost = lc_keras.RankSelection(1.0, "milliseconds")
    with pytest.raises(ValueError, match=r'`lc_keras.latency\(model, of="ranks"\)` has fitted'):
        compress_directly(model, cost)
    # A weight takes a millisecond.
    monkeypatch.setattr(timing, "quartiles", lambda models, *_: [float(m.count_params()) for m in models])
    timing.ensure_known(model, [cost.needs_time, cost.needs_time, None])
    (part,) = bind_tasks([Task(lc_keras.Sum(cost, L0Constraint(1)))], model)
    assert part.layouts[0].by_rank == ()
    np.testing.assert_allclose(part.layouts[1].by_rank, [(280, 0, 34)], atol=20)
    whole, generator = model.get_layer("whole").kernel.numpy(), np.random.default_rng(0)
    pattern = generator.normal(size=(14, 3)) @ generator.normal(size=(3, 20))
    model.get_layer("two").kernel.assign(pattern + 0.01 * generator.normal(size=(14, 20)))
    compress_directly(model, lc_keras.RankSelection(0.02, "milliseconds"))
    small = lc_keras.shrink(model)
    np.testing.assert_array_equal(small.get_layer("whole").kernel, whole)
    assert small.get_layer("two_factor").units == 3


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: L0Constraint(0.5, measure="milliseconds"), ValueError, "Neurons"),
        (lambda: L0Constraint(-0.5, Neurons(), measure="milliseconds"), ValueError, "keep=-0.5"),
        (lambda: L0Constraint(1.5, Neurons(), measure="macs"), ValueError, "keep=1.5"),
        (lambda: compress_directly(chain(3, 2), HALF), ValueError, "has fitted"),
        (lambda: lc_keras.latency("net"), TypeError, "keras.Model"),
        (lambda: lc_keras.latency(chain(3, 2), nets=3), ValueError, "nets=3"),
        (lambda: lc_keras.latency(chain(3, 2), batch_size=0), ValueError, "batch_size"),
        (lambda: lc_keras.latency(chain(2)), ValueError, "can be removed"),
        (lambda: lc_keras.latency(chain(1), of="ranks"), ValueError, "two smaller ones could stand for"),
        (lambda: lc_keras.latency(chain(3, 2), of="rank"), ValueError, '`of` to be "widths" or "ranks"'),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
