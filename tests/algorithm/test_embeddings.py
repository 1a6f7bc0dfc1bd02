"""Embedding tables in a budget: weights, rows and columns, including tied tables."""

import keras
import numpy as np
import pytest
from keras import layers

import helpers
import lc_keras
from lc_keras import Blocks, L0Constraint, Neurons, Task
from lc_keras.baselines import compress_directly


def text_net(tied=False):
    words = keras.Input((5,), dtype="int32")
    table = (layers.ReversibleEmbedding if tied else layers.Embedding)(20, 8, name="words")
    x = layers.Dense(8, "relu", name="hidden")(layers.GlobalAveragePooling1D()(table(words)))
    return helpers.randomized(keras.Model(words, table(x, reverse=True) if tied else layers.Dense(3)(x)))


def table_of(model):
    return model.get_layer("words").embeddings.numpy()


@pytest.mark.parametrize("tied", [False, True])
def test_one_budget_is_over_kernels_and_tables(tied):
    model = text_net(tied)
    selected = Task(L0Constraint(0.1), embeddings=True).select(model)
    assert sum(np.prod(v.shape) for v in selected) == 160 + 64 + (0 if tied else 24)
    compress_directly(model, Task(L0Constraint(50), embeddings=True))
    assert sum(np.count_nonzero(v) for v in selected) == 50
    assert 0 < np.count_nonzero(table_of(model)) < 50
    report = lc_keras.report(model)
    assert [row.path for row in report.rows] == [v.path for v in selected] and report.kept == 50
    assert report.others and "words/embeddings" in str(report)
    untouched = text_net(tied)
    compress_directly(untouched, L0Constraint(10))
    assert np.all(table_of(untouched) != 0)
    assert "words/embeddings" not in [row.path for row in lc_keras.report(untouched).rows]


def test_rows_go_as_wholes():
    model = text_net()
    compress_directly(model, Task(L0Constraint(7, Blocks((1, 8))), "words"))
    rows = (table_of(model) != 0).sum(axis=1)
    assert sorted(set(rows)) == [0, 8] and np.count_nonzero(rows) == 7


def test_columns_go_and_what_reads_them():
    model = text_net()
    cost = L0Constraint(0.5, Neurons(), measure="parameters", keep_at_least=2)
    compress_directly(model, Task(cost, embeddings=True))
    small = lc_keras.shrink(model)
    width = helpers.widths(small)["words"]
    assert 2 <= width < 8 and small.get_layer("hidden").kernel.shape[0] == width
    words = np.arange(10).reshape(2, 5)
    np.testing.assert_allclose(model(words), small(words), rtol=1e-5)


def test_a_table_costs_no_multiply_adds():
    model = text_net()
    compress_directly(model, Task(L0Constraint(0.5, measure="macs"), embeddings=True))
    assert np.all(table_of(model) != 0)
    assert np.count_nonzero(model.get_layer("hidden").kernel) < 64


def test_they_are_packed_in_a_file(tmp_path):
    words = keras.Input((5,), dtype="int32")
    x = layers.Embedding(4000, 16, name="words")(words)
    model = keras.Model(words, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    compress_directly(model, Task(L0Constraint(0.02), embeddings=True))
    lc_keras.export_saved_model(model, tmp_path / "net")
    (table,) = [row for row in lc_keras.report(tmp_path / "net").rows if "embeddings" in row.path]
    assert table.encoding != "dense" and table.bits < 0.1 * table.dense_bits


def test_a_model_without_a_table_is_told():
    with pytest.raises(ValueError, match="no embeddings"):
        Task(L0Constraint(0.1), embeddings=True).select(helpers.net())
    with pytest.raises(TypeError, match="embeddings"):
        Task(L0Constraint(0.1), embeddings="all")
