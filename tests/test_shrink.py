import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import nets
from lc_keras.shrink import shrink


def inputs_of(model, count=4):
    generator = np.random.default_rng(0)
    return [
        generator.integers(0, 10, (count, *t.shape[1:]))
        if t.dtype.startswith("int")
        else generator.normal(size=(count, *t.shape[1:])).astype("float32")
        for t in model.inputs
    ]


def outputs_of(model, inputs):
    outputs = model(inputs if len(inputs) > 1 else inputs[0])
    return [keras.ops.convert_to_numpy(t) for t in keras.tree.flatten(outputs)]


def assert_same_outputs(model, small, tolerance=1e-5):
    inputs = inputs_of(model)
    for one, other in zip(outputs_of(model, inputs), outputs_of(small, inputs), strict=True):
        assert np.abs(one - other).max() <= tolerance * max(np.abs(one).max(), 1e-6)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(nets.models())
def test_random_graphs(model):
    small = shrink(model)
    assert small.count_params() <= model.count_params() + sum(w.shape[-1] for w in model.weights)
    assert_same_outputs(model, small)
