import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lc_keras.costs import thresholds

SMALLEST, LARGEST = 1.4e-45, 3.4e38
VALUES = st.one_of(
    st.sampled_from(np.float32([0, -0.0, 1, -1, 1e-42, -1e-42, SMALLEST, 1e-38, 1e38, -LARGEST]).tolist()),
    st.floats(-2, 2, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
PLAIN = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.5]), st.floats(-8, 8, width=32, allow_subnormal=False))
SHAPES = [(3,), (2, 4), (1, 1, 5)]


def arrays(values):
    return st.tuples(*(hnp.arrays(np.float32, shape, elements=values) for shape in SHAPES)).map(list)


def flat(tensors):
    return np.concatenate([np.ravel(t) for t in tensors])


def int_bits(x):
    return np.abs(x).view({2: np.int16, 4: np.int32, 8: np.int64}[x.dtype.itemsize])


@pytest.fixture(scope="module", params=["graph", "xla"])
def kth(request):
    return tf.function(thresholds.kth_largest, jit_compile=request.param == "xla", autograph=False)


@pytest.fixture(scope="module", params=["graph", "xla"])
def l1(request):
    return tf.function(thresholds.l1_ball_threshold, jit_compile=request.param == "xla", autograph=False)


def expected(values, k):
    bits = int_bits(values)
    tau = np.sort(bits)[len(bits) - k]
    return tau, (bits > tau).sum(), (bits == tau).sum()


def check_kth(tensors, k, result):
    tau, above, ties = expected(flat(tensors), k)
    assert (int(result.bits), int(result.above), int(result.ties)) == (tau, above, ties)


@settings(max_examples=100, deadline=None)
@given(arrays(VALUES), st.integers(1, 16))
def test_kth_largest_is_that_of_a_sort(kth, tensors, k):
    check_kth(tensors, k, kth(tensors, tf.constant(k)))


def chunks_of_64(monkeypatch, chunks, around):
    monkeypatch.setattr(thresholds, "CHUNK", 64)
    x = np.linspace(0.1, 1, 64 * chunks + around, dtype=np.float32)
    x[::2] *= -1
    return x


@pytest.mark.parametrize("around", [-1, 0, 1])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_kth_largest_at_chunk_boundaries(monkeypatch, chunks, around):
    x = chunks_of_64(monkeypatch, chunks, around)
    for k in (1, 2, len(x) // 2, len(x) - 1, len(x)):
        check_kth([x], k, thresholds.kth_largest([x], k))


@pytest.mark.parametrize("around", [-1, 0, 1])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_the_others_at_chunk_boundaries(monkeypatch, chunks, around):
    x = chunks_of_64(monkeypatch, chunks, around)
    tau = float(thresholds.l1_ball_threshold([x], 3.0))
    assert np.maximum(np.abs(x).astype(float) - tau, 0).sum() == pytest.approx(3, rel=1e-5)
    np.testing.assert_allclose(float(thresholds.l2_norm([x])), np.linalg.norm(x.astype(float)), rtol=1e-6)
    for at in (0, len(x) // 2, len(x) - 1):
        bad = x.copy()
        bad[at] = np.nan
        assert thresholds.finite([x, bad]).numpy().tolist() == [True, False]


def test_many_small_tensors_share_chunks(kth, monkeypatch):
    monkeypatch.setattr(thresholds, "CHUNK", 64)
    x = [np.linspace(0.1 * i, 1, size, dtype=np.float32) for i, size in enumerate((30, 200, 3, 70, 1, 129))]
    for k in (1, 100, 433):
        check_kth(x, k, kth(x, tf.constant(k)))


def test_real_chunks(kth):
    n = thresholds.CHUNK
    rng = np.random.default_rng(0)
    x = [rng.normal(size=s).astype(np.float32) for s in (2 * n + 7, n, 5)]
    for k in (1, n // 3, 3 * n + 12):
        check_kth(x, k, kth(x, tf.constant(k)))


def test_k_zero_is_infinite(kth):
    result = kth([np.float32([1, LARGEST, 0])], tf.constant(0))
    assert float(result.value) == np.inf and int(result.above) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types(dtype):
    x = tf.cast(tf.random.stateless_normal([3, 50], [1, 2], dtype=tf.float64), dtype)
    for k in (1, 20, 150):
        result = thresholds.kth_largest([x, x[:1] * 2], k)
        wide = np.abs(
            np.concatenate([tf.cast(x, tf.float64).numpy().ravel(), tf.cast(x[0] * 2, tf.float64).numpy()])
        )
        tau = np.sort(wide)[-k]
        assert float(result.value) == tau
        assert (int(result.above), int(result.ties)) == ((wide > tau).sum(), (wide == tau).sum())


def test_half_precision_subnormals(kth):
    for dtype in (tf.float16, tf.bfloat16):
        bits = tf.constant([3, 1, 0, 2], tf.uint16)
        result = kth([tf.bitcast(bits, dtype)], tf.constant(2))
        assert (int(result.above), int(result.ties)) == (1, 1)


def bisection(x, radius):
    x = np.abs(x.astype(np.float64))
    if x.sum() <= radius:
        return 0.0
    low, high = 0.0, x.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(x - middle, 0).sum() > radius else (low, middle)
    return high


@settings(max_examples=100, deadline=None)
@given(arrays(PLAIN), st.one_of(st.sampled_from([0.0, 1.0, 1e6]), st.floats(0, 100, width=32)))
def test_l1_threshold_is_that_of_bisection(l1, tensors, radius):
    tau = float(l1(tensors, tf.constant(radius)))
    np.testing.assert_allclose(tau, bisection(flat(tensors), radius), rtol=1e-5, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(arrays(VALUES), st.sampled_from([0.0, 1e-42, 1e-30, 1.0, 1e30, 1e38]))
def test_l1_threshold_of_extreme_values(l1, tensors, radius):
    tau = float(l1(tensors, tf.constant(radius)))
    x = np.abs(flat(tensors).astype(np.float64))
    assert np.isfinite(tau) and tau >= 0
    # Subnormal weights may be flushed to zero; everything else stays in the ball, up to the last bit of the
    # largest weight, since the threshold may be a small difference of numbers of that size.
    slack = len(x) * 1.2e-38 + float(np.spacing(np.float32(x.max())))
    assert np.maximum(x - tau, 0).sum() <= radius * (1 + 1e-5) + slack
    assert tau <= bisection(x, radius) * (1 + 1e-6) + slack


def test_l1_threshold_of_many_equal_values(l1):
    x = np.full(1000, 0.1, np.float32)
    tau = float(l1([x], tf.constant(1.0)))
    assert tau == pytest.approx(0.099, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_l1_threshold_of_other_types(dtype):
    x = tf.cast(tf.random.stateless_normal([300], [1, 2]), dtype)
    tau = float(thresholds.l1_ball_threshold([x], 5.0))
    np.testing.assert_allclose(tau, bisection(tf.cast(x, tf.float64).numpy(), 5.0), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1.0, 1e18, 1e38])
def test_l2_norm(scale):
    x = [np.float32([scale, -2 * scale]), np.float32([[2 * scale], [0]])]
    np.testing.assert_allclose(float(thresholds.l2_norm(x)), 3 * scale, rtol=1e-6)


def test_l2_norm_of_nothing():
    assert float(thresholds.l2_norm([np.zeros(3, np.float32)])) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite(dtype, bad):
    good = tf.constant([1.0, -2.0], dtype)
    found = thresholds.finite([good, tf.constant([[0.0, bad]], dtype), good])
    assert found.numpy().tolist() == [True, False, True]


def test_huge_is_finite():
    few, many = tf.constant([LARGEST, -LARGEST]), tf.fill([2**17], LARGEST)
    assert thresholds.finite([few, many]).numpy().all()
    bad = tf.concat([many, [np.nan]], 0)
    assert thresholds.finite([few, many, bad, few]).numpy().tolist() == [True, True, False, True]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("size", [1, 1000, 3 * thresholds.CHUNK + 5])
def test_outline(size, dtype):
    rng = np.random.default_rng(0)
    x = tf.cast(rng.normal(size=size) * (rng.random(size) < 0.3), dtype)
    wide = x.numpy().astype("float64")
    found = thresholds.outline(x).numpy()
    np.testing.assert_allclose(found[[0, 2]], [np.count_nonzero(wide), np.abs(wide).sum()], rtol=1e-6)
    np.testing.assert_array_equal(thresholds.outline(x), found)
    elsewhere = thresholds.outline(tf.reverse(x, [0])).numpy()
    assert (elsewhere[1] == found[1]) == (size == 1)
