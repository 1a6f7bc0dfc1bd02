import copy
import dataclasses
import gc
import itertools
import pickle
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lc_keras.costs import (
    Codebook,
    Compression,
    L0Constraint,
    L0Penalty,
    L1Constraint,
    L1Penalty,
    L2Constraint,
    L2Penalty,
    NMConstraint,
    Ternary,
    thresholds,
)
from lc_keras.costs.groups import Blocks, Neurons, Weights
from lc_keras.costs.layout import Layout

SHAPES = [(2, 3), (4,), (1, 1, 2)]
SIZES = [6, 4, 2]
GROUPED_SHAPES = [(2, 3), (3, 2)]
N = sum(SIZES)
MU = 2.0

PLAIN = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5]), st.floats(-4, 4, width=32, allow_subnormal=False)
)
EXTREME = st.sampled_from(np.float32([0, 1e-42, -1e-42, 3e-42, 1e38, -1e38, 3e38, 1, -1e-20]).tolist())


def arrays(values, shapes=SHAPES):
    return st.tuples(*(hnp.arrays(np.float32, s, elements=values) for s in shapes)).map(list)


def layouts(*shapes):
    return [Layout(shape) for shape in shapes]


def flat(tensors):
    return np.concatenate([np.ravel(np.asarray(t)) for t in tensors])


def split(vector, shapes=SHAPES):
    ends = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]
    return [part.reshape(s) for part, s in zip(np.split(vector, ends), shapes, strict=True)]


def same_bits(a, b):
    return all(
        np.array_equal(np.asarray(x).view(np.int32), np.asarray(y).view(np.int32))
        for x, y in zip(a, b, strict=True)
    )


# One instance for each cost, so that one graph serves all examples.
KAPPAS = {k: L0Constraint(k) for k in (0, 1, 5, N)}
RADII = (0.0, 3.0, 100.0)
ALPHAS = (0.0, 0.5, 4.0)
L1S = {r: L1Constraint(r) for r in RADII}
L2S = {r: L2Constraint(r) for r in RADII}
PENALTIES = [kind(a) for kind in (L0Penalty, L1Penalty, L2Penalty) for a in ALPHAS]
EVERY = [*KAPPAS.values(), *L1S.values(), *L2S.values(), *PENALTIES]
MIDDLE = [
    L0Constraint(5),
    L1Constraint(3.0),
    L2Constraint(1.0),
    L0Penalty(0.5),
    L1Penalty(0.5),
    L2Penalty(0.5),
]
GROUPED = [
    cost(value, groups)
    for groups in (Neurons(), Blocks((2, 2)))
    for cost, value in ((L0Constraint, 2), (L1Constraint, 2.0), (L0Penalty, 1.0), (L1Penalty, 1.0))
]


def reference_l0(v, kappa):
    """First come, first served among equal magnitudes: a stable sort."""
    kept = np.argsort(-np.abs(v).view(np.int32).astype(np.int64), kind="stable")[:kappa]
    theta = np.zeros_like(v)
    theta[kept] = v[kept]
    return theta


def reference_l1_threshold(m, radius):
    m = m.astype(np.float64)
    if m.sum() <= radius:
        return 0.0
    low, high = 0.0, m.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(m - middle, 0).sum() > radius else (low, middle)
    return high


class TestL0Constraint:
    @settings(max_examples=120, deadline=None)
    @given(arrays(st.one_of(PLAIN, EXTREME)), st.sampled_from(sorted(KAPPAS)))
    def test_is_a_stable_sort(self, weights, kappa):
        theta = KAPPAS[kappa].c_step(weights, MU)
        wanted = reference_l0(flat(weights), kappa)
        # Where zeros are among the kept, their sign is free.
        assert same_bits([flat(theta) + 0.0], [wanted + 0.0])

    @settings(max_examples=50, deadline=None)
    @given(arrays(PLAIN), st.sampled_from([1, 5]))
    def test_no_subset_is_nearer(self, weights, kappa):
        v = flat(weights).astype(np.float64)
        theta = flat(KAPPAS[kappa].c_step(weights, MU))
        best = min(
            np.sum(np.delete(v, kept) ** 2) for kept in map(list, itertools.combinations(range(N), kappa))
        )
        assert np.count_nonzero(theta) <= kappa
        assert np.sum((v - theta) ** 2) == pytest.approx(best, rel=1e-12, abs=1e-300)

    @pytest.mark.parametrize("kappa", sorted(KAPPAS))
    def test_all_equal_keeps_the_first(self, kappa):
        weights = [np.full(s, -0.25, np.float32) for s in SHAPES]
        theta = flat(KAPPAS[kappa].c_step(weights, MU))
        assert theta.tolist() == [-0.25] * kappa + [0.0] * (N - kappa)

    def test_zeroed_weights_are_positive_zeros(self):
        theta = flat(KAPPAS[1].c_step([np.full(s, -1, np.float32) for s in SHAPES], MU))
        assert not np.signbit(theta[1:]).any()

    def test_ties_at_chunk_boundaries(self, monkeypatch):
        monkeypatch.setattr(thresholds, "CHUNK", 16)
        tied = np.isin(np.arange(101), [0, 3, 15, 16, 31, 32, 33, 63, 64, 79, 95, 96, 100])
        weights = [np.where(tied, 1.0, 0.5).astype(np.float32), np.float32([2, 1, 1, 0.5])]
        places = [*np.flatnonzero(tied), 102, 103]
        for more in range(len(places) + 1):
            kept = flat(L0Constraint(1 + more).c_step(weights, MU))
            assert np.flatnonzero(kept).tolist() == sorted([*places[:more], 101])

    def test_ties_across_a_real_chunk(self):
        n = thresholds.CHUNK + 10
        weights = [np.ones(n, np.float32), np.float32([3, 1, 1])]
        theta = L0Constraint(n + 1).c_step(weights, MU)
        assert [np.count_nonzero(t) for t in theta] == [n, 1] and theta[1].numpy().tolist() == [3, 0, 0]
        theta = L0Constraint(n - 3).c_step(weights, MU)
        assert np.array_equal(np.flatnonzero(theta[0]), np.arange(n - 4))
        assert theta[1].numpy().tolist() == [3, 0, 0]

    @pytest.mark.parametrize(
        "keep, n, kappa",
        [(0.05, 266200, 13310), (0.02, 266200, 5324), (0.29, 100, 29), (0.57, 100, 57), (1.0, 7, 7),
         (1, 7, 1), (0.0, 7, 0), (0, 7, 0), (0.999, 10, 9), (np.float32(0.05), 266200, 13310),
         (np.int64(3), 7, 3), (1e-9, 7, 0)],
    )  # fmt: skip
    def test_kappa(self, keep, n, kappa):
        assert L0Constraint(keep).budget(layouts((n,))) == kappa

    def test_a_count_that_looks_like_a_percentage(self, recwarn):
        for keep, shape in ((0.1, (100, 200)), (100, (100, 200)), (101, (1000, 200)), (0, (100, 200))):
            L0Constraint(keep).check(layouts(shape))
        assert not recwarn
        with pytest.warns(
            UserWarning, match=r"keep=10 keeps 10 of 20,000 weights; for 10 % write keep=0.1\."
        ):
            L0Constraint(10).check(layouts((100, 200)))
        for keep, error in ((10.0, ValueError), ("5%", TypeError)):
            with pytest.raises(error, match="such as 0.05 for 5 %. Received"):
                L0Constraint(keep)

    def test_check_says_both_numbers(self):
        L0Constraint(12).check(layouts(*SHAPES))
        with pytest.raises(ValueError, match="at most 12.*Received: 13"):
            L0Constraint(13).check(layouts(*SHAPES))
        with pytest.raises(ValueError, match="at most 7.*Received: 8"):
            L0Constraint(8, Neurons()).check([Layout((10, 3)), Layout((2, 4), (1,))])
        L0Constraint(8, Neurons()).check([Layout((10, 3), (0,)), Layout((2, 4), (1,))])
        with pytest.raises(ValueError, match="at most 12.*Received: 13"):
            L0Constraint(13).c_step([np.zeros(s, np.float32) for s in SHAPES], MU)


@settings(max_examples=60, deadline=None)
@given(arrays(PLAIN), st.sampled_from(RADII))
def test_l1_constraint(weights, radius):
    v, theta = flat(weights), flat(L1S[radius].c_step(weights, MU))
    tau = reference_l1_threshold(np.abs(v), radius)
    np.testing.assert_allclose(theta, np.sign(v) * np.maximum(np.abs(v.astype(float)) - tau, 0), atol=2e-6)
    assert np.abs(theta.astype(np.float64)).sum() <= radius * (1 + 1e-6)
    if tau == 0:
        assert same_bits([theta], [v])


@settings(max_examples=60, deadline=None)
@given(arrays(PLAIN), st.sampled_from(RADII))
def test_l2_constraint(weights, radius):
    v, theta = flat(weights), flat(L2S[radius].c_step(weights, MU))
    norm = np.linalg.norm(v.astype(np.float64))
    np.testing.assert_allclose(theta, v * min(1, radius / norm if norm else 1), rtol=1e-6, atol=1e-30)
    assert np.linalg.norm(theta.astype(np.float64)) <= radius * (1 + 1e-6)
    if norm < radius:
        assert same_bits([theta], [v])


@settings(max_examples=25, deadline=None)
@given(arrays(PLAIN))
@pytest.mark.parametrize("cost", PENALTIES, ids=str)
def test_penalties_minimise_each_weight(cost, weights):
    """Against a grid, one weight at a time: these costs are separable."""
    v = flat(weights).astype(np.float64)
    part = {L0Penalty: np.sign, L1Penalty: lambda t: t, L2Penalty: np.square}[type(cost)]

    def total(t):
        return MU / 2 * (v - t) ** 2 + cost.alpha * part(np.abs(t))

    theta = flat(cost.c_step(weights, MU)).astype(np.float64)
    grid = np.linspace(-4, 4, 2001)[:, None]
    assert (total(theta) <= np.minimum(total(grid).min(axis=0), total(v)) + 1e-6).all()


def test_l0_penalty_is_strict_and_exact():
    v = np.float32([2, -2, np.nextafter(np.float32(2), np.float32(3)), 1, -5])
    theta = L0Penalty(2.0).c_step([v], 1.0)[0].numpy()
    assert theta.tolist() == [0, 0, v[2], 0, -5]
    assert same_bits(L0Penalty(0.0).c_step([np.float32([1e-42, 0, -3])], 1.0), [np.float32([1e-42, 0, -3])])


@settings(max_examples=15, deadline=None)
@given(arrays(st.one_of(PLAIN, EXTREME)))
@pytest.mark.parametrize("cost", EVERY, ids=str)
def test_extreme_values_stay_finite(cost, weights):
    theta = flat(cost.c_step(weights, MU)).astype(np.float64)
    assert np.isfinite(theta).all()
    slack = 1e-36
    if isinstance(cost, L0Constraint):
        assert np.count_nonzero(theta) <= cost.keep
    if isinstance(cost, L1Constraint):
        assert np.abs(theta).sum() <= cost.radius * (1 + 1e-6) + slack
    if isinstance(cost, L2Constraint):
        assert np.linalg.norm(theta) <= cost.radius * (1 + 1e-6) + slack


@settings(max_examples=15, deadline=None)
@given(arrays(PLAIN), st.permutations(range(N)), st.lists(st.sampled_from([-1, 1]), min_size=N, max_size=N))
@pytest.mark.parametrize("cost", MIDDLE, ids=str)
def test_permutation_and_sign(cost, weights, order, signs):
    v = np.unique(np.abs(flat(weights)))  # distinct magnitudes: with ties the order matters to L0
    v = np.concatenate([v, 5 + np.arange(N - len(v), dtype=np.float32)])
    theta = flat(cost.c_step(split(v), MU))
    signs = np.float32(signs)
    moved = flat(cost.c_step(split(v[order] * signs), MU))
    np.testing.assert_allclose(moved, theta[order] * signs, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(arrays(PLAIN))
@pytest.mark.parametrize("cost", [c for c in MIDDLE if "Constraint" in str(c) or "L0" in str(c)], ids=str)
def test_idempotent(cost, weights):
    once = cost.c_step(weights, MU)
    twice = cost.c_step(once, MU)
    np.testing.assert_allclose(flat(twice), flat(once), rtol=2e-6, atol=2e-7)
    if "L0" in str(cost):
        assert same_bits(once, twice)


@settings(max_examples=15, deadline=None)
@given(arrays(PLAIN))
@pytest.mark.parametrize("cost", MIDDLE, ids=str)
def test_joint_is_the_one_of_the_long_vector(cost, weights):
    joint = flat(cost.c_step(weights, MU))
    single = cost.c_step([flat(weights)], MU)[0].numpy()
    np.testing.assert_allclose(joint, single, rtol=1e-6, atol=1e-6)


class TestGroups:
    @settings(max_examples=25, deadline=None)
    @given(arrays(PLAIN, GROUPED_SHAPES))
    @pytest.mark.parametrize("cost", GROUPED, ids=str)
    def test_against_the_groups_one_by_one(self, cost, weights):
        theta = cost.c_step(weights, MU)
        groups = []
        for v, t in zip(weights, theta, strict=True):
            m = cost.groups.magnitudes(tf.constant(v), Layout(v.shape))
            label = cost.groups.spread(tf.reshape(tf.range(tf.size(m)), m.shape), Layout(v.shape)).numpy()
            label = np.broadcast_to(label, v.shape)
            groups += [(v[label == g], t.numpy()[label == g]) for g in range(label.max() + 1)]
        norms = np.array([np.linalg.norm(v.astype(np.float64)) for v, _ in groups])
        if isinstance(cost, L0Constraint):
            alive = [np.array_equal(v, t) for v, t in groups]
            assert all(a or not t.any() for a, (_, t) in zip(alive, groups, strict=True))
            lost = sum(n for n, (v, t) in zip(norms**2, groups, strict=True) if not np.array_equal(v, t))
            assert lost == pytest.approx(np.sum(np.sort(norms**2)[: len(norms) - 2]), rel=1e-5)
            assert sum(t.any() for _, t in groups) <= 2
            return
        if isinstance(cost, L0Penalty):
            factors = (norms > 1).astype(float)  # sqrt(2 alpha / mu) = 1
            sure = np.abs(norms - 1) > 1e-6
        else:
            tau = reference_l1_threshold(norms, cost.radius) if isinstance(cost, L1Constraint) else 0.5
            factors = np.maximum(1 - tau / np.maximum(norms, 1e-30), 0) if tau else np.ones_like(norms)
            sure = np.ones_like(norms, bool)
        for (v, t), factor, s in zip(groups, factors, sure, strict=True):
            if s:
                np.testing.assert_allclose(t, v * factor, atol=4e-6)

    def test_ties_of_groups(self):
        weights = [np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)]
        theta = L0Constraint(4, Neurons()).c_step(weights, MU)
        assert theta[0].numpy().all() and theta[1].numpy().tolist() == [[1, 0, 0, 0]] * 2

    def test_subnormal_and_huge_groups(self):
        weights = [np.float32([[1e-42, 3e-42, 0], [0, 0, 0]]), np.float32([[1e38, 3e38]])]
        for keep, alive in (
            (1, [0, 0, 0, 0, 1]),
            (2, [0, 0, 0, 1, 1]),
            (3, [0, 1, 0, 1, 1]),
            (4, [1, 1, 0, 1, 1]),
        ):
            theta = L0Constraint(keep, Neurons()).c_step(weights, MU)
            assert [bool(t.any()) for w in theta for t in w.numpy().view(np.int32).T] == [
                bool(a) for a in alive
            ]
        theta = L1Constraint(1.0, Neurons()).c_step(weights, MU)
        assert np.isfinite(flat(theta)).all() and np.abs(flat(theta)).sum() <= 1.000001

    @pytest.mark.parametrize("cost", GROUPED, ids=str)
    def test_output_axes(self, cost):
        """Other axes give the same as transposed kernels."""
        rng = np.random.default_rng(0)
        kernel = rng.normal(size=(3, 4, 2)).astype(np.float32)  # output units on axes (0,)
        maps = cost.maps([tf.constant(kernel)], tf.constant(MU), [Layout(kernel.shape, (0,))])
        turned = kernel.transpose(1, 2, 0).copy()
        wanted = cost.c_step([turned], MU)[0].numpy().transpose(2, 0, 1)
        np.testing.assert_allclose(maps[0](tf.constant(kernel)), wanted, rtol=1e-5)


@pytest.mark.parametrize("cost", MIDDLE, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types(cost, dtype):
    v = [tf.cast(x, dtype) for x in split(np.linspace(-2, 3, N))]
    theta = cost.c_step(v, MU)
    assert [t.dtype for t in theta] == [v[0].dtype] * 3
    wide = [tf.cast(x, tf.float32).numpy() for x in v]
    wanted = flat(cost.c_step(wide, MU))
    got = flat([tf.cast(t, tf.float32).numpy() for t in theta])
    tolerance = {"float16": 1e-3, "bfloat16": 1e-2, "float64": 1e-6}[dtype]
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance / 10)
    if "L0" in str(cost):
        assert np.array_equal(got, wanted)


def test_float64_is_ranked_as_float64():
    v = np.array([1.0, 1.0 + 1e-15, -1.0 - 2e-15])
    assert L0Constraint(1).c_step([v], MU)[0].numpy().tolist() == [0, 0, v[2]]


def test_mixed_types():
    theta = L0Constraint(2).c_step([tf.constant([1, 2], tf.float16), tf.constant([3.0, 0.5])], MU)
    assert [t.dtype.name for t in theta] == ["float16", "float32"]
    assert [t.numpy().tolist() for t in theta] == [[0, 2], [3, 0]]


# Compiling with XLA takes seconds, so each kind of cost is here once. Others are in test_fused.py.
@pytest.mark.parametrize(
    "cost",
    [
        *MIDDLE[:3],
        GROUPED[7],
        *(pytest.param(c, marks=pytest.mark.slow) for c in (*MIDDLE[3:], GROUPED[0])),
    ],
    ids=str,
)
def test_inside_a_function(cost):
    shapes = GROUPED_SHAPES if cost in GROUPED else SHAPES
    rng = np.random.default_rng(1)
    plain = [rng.normal(size=s).astype(np.float32) for s in shapes]
    tied = [np.ones(s, np.float32) for s in shapes]
    graph = tf.function(lambda w, mu: cost.c_step(w, mu))
    xla = tf.function(lambda w, mu: cost.c_step(w, mu), jit_compile=True)
    for weights in (plain, tied):
        weights = [tf.constant(w) for w in weights]
        eager = cost.c_step(weights, MU)
        for function in (graph, xla):
            result = function(weights, tf.constant(MU))
            np.testing.assert_allclose(flat(result), flat(eager), rtol=2e-6, atol=2e-7)
            assert np.array_equal(flat(result) == 0, flat(eager) == 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="finite"):
        graph([tf.fill(s, np.nan) for s in shapes], tf.constant(MU))


@pytest.mark.parametrize("cost", MIDDLE, ids=str)
def test_a_new_mu_is_no_new_graph(cost, monkeypatch):
    cost = copy.deepcopy(cost)
    traces = []
    maps = type(cost).maps
    monkeypatch.setattr(type(cost), "maps", lambda *args: traces.append(1) or maps(*args))
    weights = [np.ones(s, np.float32) for s in SHAPES]
    for mu in (1, 0.5, np.float32(3), tf.constant(2.0), keras.Variable(1.5)):
        cost.c_step(weights, mu)
    assert len(traces) == 1


def test_mu_may_be_a_variable_in_a_function():
    mu, weights = tf.Variable(1.0), [tf.constant([1.0, 2.0])]
    step = tf.function(lambda: L1Penalty(1.0).c_step(weights, mu)[0])
    for value in (1.0, 2.0):
        mu.assign(value)
        np.testing.assert_array_equal(step(), L1Penalty(1.0).c_step(weights, value)[0])


def test_mu_is_used():
    v = [np.float32([1.0, 3.0])]
    penalty = L1Penalty(1.0)
    assert penalty.c_step(v, 1.0)[0].numpy().tolist() == [0, 2]
    assert penalty.c_step(v, 2.0)[0].numpy().tolist() == [0.5, 2.5]


@pytest.mark.parametrize("make", [tf.constant, tf.Variable, keras.Variable, np.array], ids=str)
def test_kinds_of_weights(make):
    v = make(np.float32([[3, -1], [2, 0]]))
    assert L0Constraint(2).c_step([v], MU)[0].numpy().tolist() == [[3, 0], [2, 0]]
    assert np.asarray(v).tolist() == [[3, -1], [2, 0]]


@pytest.mark.parametrize("cost", [KAPPAS[1], *MIDDLE[1:]], ids=str)
def test_one_element_and_scalars(cost):
    for shape in ((), (1,), (1, 1)):
        theta = cost.c_step([np.full(shape, 0.5, np.float32)], MU)
        assert theta[0].shape == shape and 0 <= float(tf.squeeze(theta[0])) <= 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cost", MIDDLE, ids=str)
def test_non_finite_weights_are_named(cost, bad):
    good, wrong = np.ones(7, np.float32), np.float32([1, bad, 1])
    with pytest.raises(ValueError, match=r"weights\[1\].*finite"):
        cost.c_step([good, wrong, good], MU)
    with pytest.raises(ValueError, match=r"weights\[1\].*my_kernel.*finite"):
        cost.c_step([good, keras.Variable(wrong, name="my_kernel"), good], MU)


@pytest.mark.parametrize("cost", [*MIDDLE, NMConstraint(1, 2)], ids=str)
def test_costs_are_frozen(cost):
    cost.c_step([np.ones((2, 2, 3), np.float32)], MU)
    for name in cost.get_config():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(cost, name, 1)


def test_graphs_go_with_their_cost():
    cost = L0Constraint(3)
    cost.c_step([np.ones(7, np.float32)], MU)
    graphs = weakref.ref(cost._compiled)
    del cost
    gc.collect()
    assert graphs() is None


DECLARED = [  # keeps or shrinks values, has a budget, which can be loosened, needs units, multiply-adds
    (L0Constraint(1), "keeps_values has_budget can_loosen"),
    (L0Constraint(1, Neurons()), "keeps_values has_budget can_loosen needs_units"),
    (L0Constraint(1, measure="bytes"), "keeps_values has_budget can_loosen"),
    (L0Constraint(1, Neurons(), "macs"), "keeps_values has_budget can_loosen needs_units needs_macs"),
    (L0Penalty(1), "keeps_values"),
    (L1Constraint(1, Neurons()), "shrinks has_budget can_loosen needs_units"),
    (L1Penalty(1, Blocks((1, 2))), ""),
    (L2Constraint(1), "shrinks has_budget can_loosen"),
    (L2Penalty(1), ""),
    (NMConstraint(1, 2), "keeps_values has_budget can_loosen"),
]


@pytest.mark.parametrize("cost, declared", DECLARED, ids=repr)
def test_what_costs_declare(cost, declared):
    names = ("keeps_values", "shrinks", "has_budget", "can_loosen", "needs_units", "needs_macs")
    assert [name for name in names if getattr(cost, name)] == declared.split()


def test_a_cost_of_ones_own():
    @dataclasses.dataclass(frozen=True, eq=False, repr=False)
    class Rounded(Compression):
        digits: int = 0

        def maps(self, weights, mu, layouts):
            return [lambda value: tf.round(value * 10**self.digits) / 10**self.digits] * len(weights)

    assert Rounded().c_step([np.float32([0.4, 0.6])], MU)[0].numpy().tolist() == [0, 1]
    assert repr(Rounded(1)) == "Rounded(digits=1)" and Rounded() == Rounded(0) != Rounded(1)


@pytest.mark.parametrize("cost", MIDDLE, ids=str)
def test_bad_arguments_of_c_step(cost):
    v = np.ones(7, np.float32)
    with pytest.raises(ValueError, match="at least one tensor"):
        cost.c_step([], MU)
    for mu in (0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="Expected `mu` to be a positive number"):
            cost.c_step([v], mu)
    with pytest.raises(ValueError, match=r"weights\[1\].*floating.*int32"):
        cost.c_step([v, np.ones(3, np.int32)], MU)
    with pytest.raises(TypeError, match="a list of tensors"):
        cost.c_step(v, MU)


@pytest.mark.parametrize("cost", [L0Constraint(0.5), L1Constraint(1.0), Codebook(4), Ternary()], ids=str)
def test_more_weights_than_can_be_counted_together_are_an_error(cost):
    half = Layout((2**15, 2**15))
    cost.check([half])
    with pytest.raises(ValueError, match="fewer than 2,147,483,648 weights.*`per_layer=True`"):
        cost.check([half, half])


@pytest.mark.parametrize("keep", [True, np.True_, "0.5", None, [1], 1j])
def test_keep_of_another_type(keep):
    with pytest.raises(TypeError, match="`keep` to be a whole number ≥ 0 or a float in"):
        L0Constraint(keep)


@pytest.mark.parametrize("keep", [-1, -0.1, 1.1, np.nan, np.inf, np.int32(-3)])
def test_keep_out_of_range(keep):
    with pytest.raises(ValueError, match="`keep` to be a whole number ≥ 0 or a float in"):
        L0Constraint(keep)


@pytest.mark.parametrize("multiple", [1, 2])
def test_milliseconds_of_weights_by_themselves(multiple):
    cost = L0Constraint(0.5, Neurons(), measure="milliseconds", multiple_of=multiple)
    with pytest.raises(ValueError, match="has fitted"):
        cost.c_step([np.ones((9, 8), np.float32)], mu=1.0)


@pytest.mark.parametrize("kind", [L1Constraint, L2Constraint, L0Penalty, L1Penalty, L2Penalty])
def test_bad_radius_and_alpha(kind):
    name = "alpha" if kind.__name__.endswith("Penalty") else "radius"
    message = f"Expected `{name}` to be a number ≥ 0. Received: {name}="
    for value in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"{message}{value}"):
            kind(value)
    for value in (True, "1", None):
        with pytest.raises(TypeError, match=f"{message}{value!r}"):
            kind(value)


@pytest.mark.parametrize("kind", [L0Constraint, L1Constraint, L0Penalty, L1Penalty])
@pytest.mark.parametrize("groups", [Neurons, "neurons", 3])
def test_bad_groups(kind, groups):
    with pytest.raises(TypeError, match="Expected `groups`"):
        kind(1, groups)


@pytest.mark.parametrize("cost", MIDDLE + GROUPED, ids=str)
def test_values(cost):
    again = type(cost)(**cost.get_config())
    assert again == cost and hash(again) == hash(cost) and isinstance(cost, Compression)
    assert eval(repr(cost)) == cost


def test_copies():
    cost, weights = L0Constraint(5), [np.eye(8, dtype=np.float32)]
    theta = cost.c_step(weights, MU)
    for copied in (copy.deepcopy(cost), pickle.loads(pickle.dumps(cost))):
        assert copied == cost and same_bits(copied.c_step(weights, MU), theta)


def test_unequal():
    assert L0Constraint(1) != L0Constraint(1.0) != L0Constraint(1.0, Neurons()) and L1Penalty(1) != L0Penalty(
        1
    )
    assert L0Constraint(3).groups == Weights()


class TestNMConstraint:
    @pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (0, 2), (3, 3), (1, 5)])
    @pytest.mark.parametrize(
        "shape, axes, along", [((10, 3), (-1,), 0), ((3, 3, 6, 2), (-1,), 2), ((3, 2, 6), (1,), 2)]
    )
    def test_against_a_stable_sort(self, n, m, shape, axes, along):
        value = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)
        theta = NMConstraint(n, m).maps([value], MU, [Layout(shape, axes)])[0](tf.constant(value)).numpy()
        rows = np.moveaxis(value, along, -1).reshape(-1, shape[along])
        parts = [part for row in rows for part in np.split(row, range(m, len(row), m))]
        wanted = np.concatenate([reference_l0(part, min(n, len(part))) for part in parts])
        assert np.array_equal(np.moveaxis(theta, along, -1).ravel(), wanted)
        full = np.moveaxis(np.abs(value) + 1, along, -1)
        kept = np.mean(NMConstraint(n, m).c_step([full.swapaxes(-1, -2)], MU)[0].numpy() != 0)
        assert NMConstraint(n, m).spares(Layout(shape, axes)) == (kept > n / m + 1e-6)

    def test_compiles(self):
        cost, value = (
            NMConstraint(2, 4),
            tf.constant(np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)),
        )
        compiled = tf.function(lambda v: cost.c_step([v], MU)[0], jit_compile=True)(value)
        assert same_bits([compiled], cost.c_step([value], MU)) and np.count_nonzero(compiled) == 5 * 5

    @pytest.mark.parametrize("n, m", [(3, 2), (-1, 2), (0, 0), (1.0, 2), (True, 2), ("1", 2)])
    def test_bad_numbers(self, n, m):
        with pytest.raises(ValueError, match="whole numbers"):
            NMConstraint(n, m)

    def test_a_tensor_without_inputs(self):
        with pytest.raises(ValueError, match="axis of inputs"):
            NMConstraint(2, 4).c_step([np.zeros(4, np.float32)], MU)
        with pytest.raises(ValueError, match="axis of inputs"):
            NMConstraint(2, 4).c_step([np.float32(1)], MU)


# Looser budgets.

CHAINED = [
    Layout((4, 6), units=np.arange(6), count=8, macs=1),
    Layout((6, 3), units=np.array([6, 7, -1]), reads=np.arange(6), count=8, macs=3),
]
# Each kind of groups, by number and by price, whatever the price is for.
LOOSE = [
    L0Constraint(keep, groups, measure)
    for groups, keep, price in [
        (Weights(), 0.3, "macs"),
        (Blocks((2, 1)), 0.4, "bytes"),
        (Neurons(), 0.6, "parameters"),
    ]
    for measure in ("groups", price)
]
LOOSE += [L0Constraint(3, keep_at_least=1), L0Constraint(0), L0Constraint(1.0)]


def applied(maps, weights):
    return [theta(w) for theta, w in zip(maps, weights, strict=True)]


def loosened(cost, weights, given):
    """A function of the slack; it runs as a graph that is given the slack, as the C step does."""
    step = tf.function(lambda slack: applied(cost.loosened(weights, slack, given), weights), autograph=False)
    return lambda slack: [theta.numpy() for theta in step(tf.constant(slack, tf.float32))]


@pytest.mark.parametrize(
    "cost, shared",
    [(cost, shared) for cost in LOOSE for shared in (False, True) if cost.needs_units or not shared],
    ids=repr,
)
def test_a_looser_budget_is_a_budget(cost, shared):
    """κ plus the slack's part of what κ removes, rounded down."""
    weights = [keras.random.normal(layout.shape) for layout in CHAINED]
    given = CHAINED if shared else [Layout(layout.shape, macs=layout.macs) for layout in CHAINED]
    kappa, total = cost.budget(given), cost.total(given)
    step, kept = loosened(cost, weights, given), []
    for slack in (0.0, 0.37, 0.9, 1.0):
        more = int(float(np.float32(slack)) * (total - kappa))
        found = step(slack)
        other = dataclasses.replace(cost, keep=kappa + more)
        assert same_bits(found, applied(other.maps(weights, MU, given), weights))
        kept.append(np.count_nonzero(flat(found)))
        if cost.measure == "groups" and cost.groups == Weights():
            assert kept[-1] == kappa + more
    assert same_bits(step(0.0), applied(cost.maps(weights, MU, given), weights))
    assert same_bits(found, weights)
    assert len(set(kept)) > 2 or cost.keep == 1


def test_no_slack_is_the_budget_itself_however_large():
    # In single precision κ would be one less, and the weight that costs 1 would not fit.
    weights, given = [tf.constant([[3.0]]), tf.constant([[2.0]])], [Layout((1, 1), macs=2**24)]
    given.append(Layout((1, 1), macs=1))
    cost = L0Constraint(2**24 + 1, measure="macs")
    assert flat(loosened(cost, weights, given)(0.0)).tolist() == [3, 2]


@pytest.mark.parametrize("slack, n", [(0.0, 1), (0.3, 1), (0.34, 2), (0.9, 3), (1.0, 4)])
def test_a_looser_pattern_is_a_pattern(slack, n):
    shapes = (10, 3), (2, 8, 5)
    weights, given = [keras.random.normal(shape) for shape in shapes], layouts(*shapes)
    found = loosened(NMConstraint(1, 4), weights, given)(slack)
    assert same_bits(found, applied(NMConstraint(n, 4).maps(weights, MU, given), weights))
    # In rows of 10, the last two are a part of their own.
    assert [np.count_nonzero(theta) for theta in found] == [3 * (2 * n + min(n, 2)), 2 * 2 * n * 5]


@pytest.mark.parametrize("cost", [L1Constraint(2.0), L1Constraint(1.0, Blocks((2, 2))), L2Constraint(0.5)])
def test_a_looser_norm_is_a_norm(cost):
    shapes = (4, 3), (2, 2, 5)
    weights, given = [keras.random.normal(shape) for shape in shapes], layouts(*shapes)

    def norm(arrays):
        if isinstance(cost, L2Constraint):
            return np.linalg.norm(flat(arrays))
        pairs = zip(arrays, given, strict=True)
        return sum(np.sum(np.abs(cost.groups.magnitudes(tf.constant(a), layout))) for a, layout in pairs)

    step, norms = loosened(cost, weights, given), []
    for slack in (0.0, 0.3, 0.8):
        found = step(slack)
        norms.append(norm(found))
        other = dataclasses.replace(cost, radius=float(norms[-1]))
        expected = applied(other.maps(weights, MU, given), weights)
        np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-4, atol=1e-6)
    assert norms[0] == pytest.approx(cost.radius, rel=1e-5) and (np.diff(norms) > 0.1).all()
    assert same_bits(step(0.0), applied(cost.maps(weights, MU, given), weights))
    assert same_bits(step(1.0), weights)


def test_other_costs_have_no_looser_budget():
    for cost in (L0Penalty(1), L1Penalty(1), L2Penalty(1)):
        with pytest.raises(NotImplementedError):
            cost.loosened([tf.zeros((2, 2))], tf.constant(0.5), layouts((2, 2)))
