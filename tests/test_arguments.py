"""Numbers and switches that users pass."""

import fractions

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras.arguments import non_negative, number_or_fraction, positive, strength, switch, whole

SCALARS = [
    2,
    2.0,
    np.float32(2),
    np.array(2),
    fractions.Fraction(2),
    tf.constant(2.0),
    tf.constant(2.0, tf.bfloat16),
    keras.Variable(2.0),
]


@pytest.mark.parametrize("check", [positive, non_negative, strength, whole])
@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_scalars_of_all_kinds(check, value):
    found = check("n", value)
    assert found == 2 and type(found) is (int if check is whole else float)


@pytest.mark.parametrize("check", [positive, non_negative, strength, whole, number_or_fraction])
@pytest.mark.parametrize("value", ["2", None, True, np.True_, [2], np.array([2, 3]), 2j])
def test_what_is_no_number(check, value):
    with pytest.raises(TypeError, match="Expected `n` to be .*n="):
        check("n", value)


@pytest.mark.parametrize(
    "check, values",
    [
        (positive, [0, -1]),
        (non_negative, [-1]),
        (strength, [0, 1e39, 1e-39]),
        (whole, [0, -1, 1.5]),
        (number_or_fraction, [-1, -0.1, 1.1, 10**400]),
    ],
)
def test_numbers_out_of_range(check, values):
    for value in [*values, np.nan, np.inf]:
        with pytest.raises(ValueError, match="Expected `n` to be .*n="):
            check("n", value)


def test_numbers_and_fractions():
    for value in (3, np.int8(3), np.array(3), tf.constant(3), keras.Variable(3, dtype="int32")):
        found = number_or_fraction("n", value)
        assert found == 3 and type(found) is int
    tenth = fractions.Fraction(1, 10)
    for value in (0.1, tenth, np.float32(0.1), np.float16(0.1), np.array(0.1, "float32"), tf.constant(0.1)):
        assert number_or_fraction("n", value) == positive("n", value) == 0.1
    for value in (2.5, np.float16(2.5), tf.constant(2.5)):
        assert number_or_fraction("n", value, most=np.inf) == 2.5
    for value in (0, 1, 0.0, 1.0):
        assert type(number_or_fraction("n", value)) is type(value)


def test_switches():
    assert switch("on", True) is True and switch("on", np.False_) is False
    for value in (1, "yes", None, 0.01):
        with pytest.raises(TypeError, match="`on` to be True or False.*on="):
            switch("on", value)
