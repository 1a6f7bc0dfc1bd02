import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import lc_keras
from lc_keras.internals import compiled, emptied, kept_with_trace, replaced


class Counting:
    """An object whose method is compiled, as each `fit` makes one."""

    def __init__(self):
        self.traces = 0
        self.step = compiled(self._step)

    def _step(self, x):
        self.traces += 1
        return x + 1


def test_many_objects_are_traced_once_each_without_a_warning(caplog):
    for _ in range(8):
        one = Counting()
        assert [float(one.step(keras.ops.ones([]))) for _ in range(3)] == [2.0, 2.0, 2.0]
        assert one.traces == 1
    assert "retracing" not in caplog.text


def test_many_costs_are_traced_once_each_without_a_warning(caplog):
    for i in range(8):
        lc_keras.L0Constraint(i + 1).c_step([np.arange(10.0)], mu=1.0)
    assert "retracing" not in caplog.text


def test_methods_are_back_after_an_error():
    layer = keras.layers.Dense(2)
    layer.build((None, 2))
    before = layer(np.ones((1, 2))).numpy()
    with pytest.raises(KeyError), replaced([(layer, "call", lambda x, **_: x * 0)]):
        assert not layer(np.ones((1, 2))).numpy().any()
        raise KeyError
    np.testing.assert_array_equal(layer(np.ones((1, 2))).numpy(), before)
    assert "call" not in vars(layer)


def test_what_a_trace_reads_lives_as_long_as_the_trace():
    def traced(keep):
        @tf.function
        def reads(x):
            if keep:
                kept_with_trace(variable)
            return x + variable

        variable = tf.Variable(1.0)
        reads(2.0)
        # As in what traces for others, which the function itself does not hold.
        return reads.get_concrete_function(2.0), weakref.ref(variable)

    for keep in (True, False):
        function, variable = traced(keep)
        gc.collect()
        assert (variable() is not None) == keep
        if keep:
            assert function(tf.constant(2.0)) == 3.0
        del function
        gc.collect()
        assert variable() is None


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_trace_reads_on_what_was_emptied(jit_compile):
    mask, values = tf.Variable([True, False]), tf.Variable([1.0, 2.0])

    @tf.function(jit_compile=jit_compile)
    def reads(x):
        return tf.where(mask, x, 0.0) - values

    np.testing.assert_array_equal(reads(tf.constant([3.0, 4.0])), [2.0, -2.0])
    emptied(mask, True)
    emptied(values, 0.0)
    np.testing.assert_array_equal(reads(tf.constant([3.0, 4.0])), [3.0, 4.0])
    assert mask.numpy().shape == values.numpy().shape == ()


def test_methods_that_a_layer_has_of_its_own_are_back():
    layer = keras.layers.Dense(2)
    layer.build((None, 2))
    layer.call = own = lambda x: 3 * x
    with replaced([(layer, "call", lambda x: 0 * x)]):
        assert not layer(np.ones((1, 2))).numpy().any()
    assert vars(layer)["call"] is own and layer(np.ones((1, 2))).numpy().all()
