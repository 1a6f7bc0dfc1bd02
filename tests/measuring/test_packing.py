import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_keras.costs import Codebook, Grid, L0Constraint, Sum
from lc_keras.costs.layout import Layout
from lc_keras.export.stored import StoredArray, StoredValues
from lc_keras.measuring import coding, packing
from lc_keras.measuring.coding import from_bits, to_bits
from lc_keras.measuring.packing import pack, positions_of, spread


def unpacked(packed):
    return unpack(packed, packed.values, packed.places)


def unpack(packed, values, places):
    return spread(positions_of(packed.encoding, places, values.shape[0]), values, packed.shape)


def sparse_array(size, kept, dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    array = np.zeros(size, dtype)
    array[random.choice(size, kept, replace=False)] = random.normal(size=kept) + 3
    return array


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(20_000, 200_000),
    density=st.sampled_from([0.0, 0.0001, 0.002, 0.05, 0.2, 0.4]),
    dtype=st.sampled_from(["float32", "float16", "float64"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_packing_is_lossless_and_smallest(size, density, dtype, seed):
    array = sparse_array(size, int(density * size), dtype, seed)
    packed = pack(array)
    assert packed.values.dtype == dtype and packed.kept == np.count_nonzero(array)
    assert packed.nbytes <= array.nbytes
    # No fixed encoding would be smaller: neither places of four bytes nor a bit for each weight.
    whole = array.itemsize * packed.kept
    assert packed.nbytes <= max(whole + min(4 * packed.kept, size // 8 + 1), array.nbytes - 4096)
    if packed.encoding != "dense":
        np.testing.assert_array_equal(unpacked(packed), array)


@pytest.mark.parametrize(
    "kept, encoding",
    [(100, "gaps16"), (5_000, "gaps8"), (20_000, "bitmask"), (90_000, "bitmask"), (99_999, "dense")],
)
def test_the_encoding_follows_the_density(kept, encoding):
    assert pack(sparse_array(100_000, kept)).encoding == encoding


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 257, 511, 512, 65535, 65536, 65537, 131073])
def test_long_gaps_are_bridged(gap):
    array = np.zeros(200_000, "float32")
    array[gap] = 1.0
    array[gap + 1 :: gap + 1] = 2.0
    array[10 * (gap + 1) :] = 0.0
    packed = pack(array)
    assert packed.encoding.startswith("gaps")
    np.testing.assert_array_equal(unpacked(packed), array)


@pytest.mark.parametrize("size", [7, 8, 9, 64, 65])
def test_bits_of_any_number(size):
    array = sparse_array(size, (size + 1) // 2).astype("float64")
    packed = pack(array, dense=False)
    assert packed.encoding == "bitmask"
    np.testing.assert_array_equal(unpacked(packed), array)


def test_declines_where_it_does_not_pay():
    for array in (np.ones([300, 300]), np.zeros([10, 10]), np.zeros([0, 10])):
        packed = pack(array.astype("float32"))
        assert packed.encoding == "dense" and packed.places is None
        np.testing.assert_array_equal(packed.values, array)


def test_keeps_what_is_not_finite_and_the_shape():
    array = np.zeros([10, 100, 100], "float32")
    array[[5, 9], [3, 99], [0, 99]] = np.nan, np.inf
    np.testing.assert_array_equal(unpacked(pack(array)), array)


def test_unpacks_in_a_graph():
    packed = pack(sparse_array(100_000, 3_000))
    function = tf.function(lambda values, places: unpack(packed, values, places))
    np.testing.assert_array_equal(function(packed.values, packed.places), unpacked(packed))


def test_what_bridges_a_gap_is_not_kept():
    value = np.zeros(70_001, "float32")
    value[[0, 70_000]] = 1
    packed = pack(value.reshape(1, -1), dense=False)
    assert packed.kept == 2 < len(packed.values)


# Weights of few values.


def coded(packed):
    """The values as they are read back."""
    positions = None
    if packed.places is not None:
        positions = positions_of(packed.encoding, packed.places, packed.values.size)
    return StoredValues(packed).read(positions).numpy()


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.02])
@pytest.mark.parametrize("values", [2, 5, 16, 200])
def test_few_values_are_stored_in_their_bits(values, density):
    random = np.random.default_rng(0)
    table = random.normal(size=values).astype("float32")
    array = random.choice(table, (500, 400)) * (random.random((500, 400)) < density).astype("float32")
    array += 0.0  # no negative zeros
    packed = pack(array)
    assert packed.codes is not None and packed.codes.bits <= int(values).bit_length()
    np.testing.assert_array_equal(coded(packed), packed.values.ravel())
    if packed.places is not None:
        np.testing.assert_array_equal(unpacked(packed), array)
    # One of the choices is a bit for each place plus the bits of each value.
    bits = int(np.ceil(np.log2(values)))
    count = np.count_nonzero(array)
    assert packed.nbytes <= array.size // 8 + 1 + bits * count // 8 + 1 + 4 * values + 3072


def test_gaps_of_four_bits():
    array = np.zeros(800_000, "float32")
    array[::8] = 1.0
    packed = pack(array)
    assert packed.name == "gaps4/1" and packed.nbytes == 100_000 // 2 + 100_000 // 8 + 4
    np.testing.assert_array_equal(unpacked(packed), array)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_a_grid_is_stored_in_its_bits(bits, density):
    random = np.random.default_rng(0)
    weights = random.normal(size=(500, 400)) * (random.random((500, 400)) < density)
    array = Grid(bits).c_step([weights.astype("float32")], 1.0)[0].numpy()
    packed = pack(array)
    assert packed.codes is not None and packed.codes.bits == bits
    assert packed.codes.steps is not None
    np.testing.assert_array_equal(coded(packed), packed.values.ravel())
    assert (coded(packed).view("int32") == packed.values.ravel().view("int32"))[
        packed.values.ravel() != 0
    ].all()


def test_a_grid_of_few_columns_is_stored_in_its_bits():
    """Its columns have at most 256 values together, which could be coded in seven bits."""
    weights = np.random.default_rng(0).normal(size=(5000, 10)).astype("float32")
    array = L0Constraint(0.5, values=Grid(4)).c_step([weights], 1.0)[0].numpy()
    packed = pack(array)
    assert packed.name == "bitmask/4"
    np.testing.assert_array_equal(coded(packed), packed.values)


@pytest.mark.parametrize("shape, axes", [((128, 8, 16), (1, 2)), ((3, 3, 1024, 1), (2, 3))])
def test_a_grid_of_units_along_several_axes_is_stored_in_its_bits(shape, axes):
    weights = tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)
    (theta,) = Grid(4).maps([weights], 1.0, [Layout(shape, axes)])
    array = theta(weights).numpy()
    packed = pack(array)
    assert packed.name == "dense/4"
    np.testing.assert_array_equal(coded(packed), array.ravel())


def test_many_values_stay_as_they_are():
    random = np.random.default_rng(0)
    assert pack(random.normal(size=(100, 100)).astype("float32")).codes is None
    # All but the last row are on a grid.
    (theta,) = Grid(8).c_step([random.normal(size=(700, 100)).astype("float32")], 1.0)
    array = theta.numpy()
    assert pack(array).codes is not None
    array[-1] = random.uniform(0.01, 0.02, 100)
    assert pack(array).codes is None


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("values", [2, 3, 200])
def test_few_values_and_corrections_are_stored_apart(values, dtype):
    random = np.random.default_rng(0)
    table = random.normal(size=values).astype(dtype)
    table[0] = 0
    array = random.choice(table, (700, 800))
    where = random.random(array.shape) < 0.01
    array[where] = random.normal(size=where.sum())
    packed = pack(array)
    bits = int(np.ceil(np.log2(values)))
    assert packed.name.startswith(f"dense/{bits}+gaps8") and packed.codes.bits == bits
    assert packed.nbytes < (bits / 8 + 0.011 * (array.itemsize + 1)) * array.size + 2000
    np.testing.assert_array_equal(StoredArray(packed).unpacked(), array)


def test_corrections_of_a_codebook_are_exact():
    random = np.random.default_rng(0)
    kernel = random.normal(size=(300, 400)).astype("float32")
    (theta,) = Sum(Codebook(4), L0Constraint(0.02)).c_step([kernel], mu=1.0)
    packed = pack(theta.numpy())
    assert packed.others is not None and packed.nbytes < kernel.nbytes / 9
    np.testing.assert_array_equal(StoredArray(packed).unpacked(), theta)
    array = np.where(kernel > 0, np.float32(0.5), np.float32(-0.25))
    array[0] = kernel[0]
    for strange in (np.nan, np.inf, 0.0, -0.0):
        array[0, 0] = strange
        packed = pack(array)
        np.testing.assert_array_equal(StoredArray(packed).unpacked(), array)


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 7, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 1001])
def test_bits_come_back(bits, count):
    numbers = np.random.default_rng(0).integers(0, 2**bits, count)
    packed = to_bits(numbers, bits)
    assert packed.nbytes == -(-bits * count // 8)
    np.testing.assert_array_equal(from_bits(tf.constant(packed), bits, count), numbers)


def test_a_pruned_weight_is_not_sorted(monkeypatch):
    """For a hundred million weights, sorting takes half a minute."""
    monkeypatch.setattr(coding, "_SOME", 512)
    sizes, unique = [], np.unique

    def counted(values, **options):
        sizes.append(len(values))
        return unique(values, **options)

    monkeypatch.setattr(np, "unique", counted)
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(300, 200)).astype("float32") * (rng.random((300, 200)) < 0.05)
    assert pack(kernel).encoding == "gaps8"
    assert sizes and max(sizes) <= 512


def test_of_a_weight_without_zeros_no_places_are_sought(monkeypatch):
    for name in ("_with_gaps", "_with_bits"):
        monkeypatch.setattr(packing, name, None)
    assert pack(np.random.default_rng(0).normal(size=(100, 100))).name == "dense"
