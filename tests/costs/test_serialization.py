import json
import re

import keras
import pytest
import tensorflow as tf

import lc_keras
from lc_keras import Blocks, Exponential, Geometric, L0Constraint, Neurons, Task


@keras.saving.register_keras_serializable("tests")
def is_wide(variable):
    return variable.shape[-1] > 2


OBJECTS = [
    L0Constraint(0.05),
    L0Constraint(7),
    L0Constraint(0.5, Neurons(), measure="macs", keep_at_least=0.25),
    L0Constraint(0.5, Blocks((4, 2))),
    lc_keras.L0Penalty(0.1, Blocks((2, 2))),
    lc_keras.L1Constraint(3.0, Neurons()),
    lc_keras.L1Penalty(0.1),
    lc_keras.L2Constraint(2.0),
    lc_keras.L2Penalty(0.1),
    lc_keras.NMConstraint(2, 4),
    lc_keras.Codebook(4),
    lc_keras.Binary(),
    lc_keras.Ternary(),
    lc_keras.Grid(8),
    lc_keras.LowRank(3),
    lc_keras.RankSelection(0.1),
    lc_keras.Sum(L0Constraint(0.1), lc_keras.LowRank(2)),
    lc_keras.Weights(),
    Neurons(),
    Blocks((4, 1)),
    Exponential(9e-5, 1.1),
    Geometric(1e-3, 0.1),
    Task(L0Constraint(0.1, Neurons()), weights=[r"conv.*/kernel", "dense"], per_layer=True),
    Task(L0Constraint(0.1), weights=is_wide),
]


@pytest.mark.parametrize("kept", OBJECTS, ids=repr)
def test_a_config_makes_the_same_again(kept):
    written = json.dumps(keras.saving.serialize_keras_object(kept))
    made = keras.saving.deserialize_keras_object(json.loads(written))
    assert type(made) is type(kept) and repr(made) == repr(kept)


@pytest.mark.parametrize("kept", OBJECTS, ids=repr)
def test_a_config_need_not_be_serialized(kept):
    made = type(kept).from_config(kept.get_config())
    assert type(made) is type(kept) and repr(made) == repr(kept)


def test_all_that_has_a_config_is_tried_here():
    tried = {type(kept) for kept in OBJECTS}
    public = {getattr(lc_keras, name) for name in lc_keras.__all__}
    assert {kind for kind in public if hasattr(kind, "from_config")} - {lc_keras.LCPenalty} == tried


def test_a_compiled_pattern_keeps_its_flags():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="Wide")])
    task = Task(L0Constraint(1), weights=re.compile("wide/.*kernel", re.IGNORECASE))
    made = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(task))
    assert made.select(model) == [model.layers[0].kernel]


def test_a_layer_is_of_one_model():
    for task, named in (
        (Task(L0Constraint(1), weights=[keras.layers.Dense(3, name="wide")]), "layer 'wide'"),
        (Task(L0Constraint(1), input_signature=[tf.TensorSpec([None, 3])]), "input_signature"),
    ):
        with pytest.raises(TypeError, match=named):
            keras.saving.serialize_keras_object(task)
