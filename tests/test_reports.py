import json
import math
import subprocess
import sys

import keras
import numpy as np
import pytest

from lc_keras.reports import report


def net(dtype="float32"):
    layers = [
        keras.Input((8, 8, 2)),
        keras.layers.Conv2D(4, 3, dtype=dtype),
        keras.layers.BatchNormalization(dtype=dtype),
        keras.layers.Flatten(dtype=dtype),
        keras.layers.Dense(64, dtype=dtype),
        keras.layers.Dense(10, dtype=dtype),
    ]
    return keras.Sequential(layers)


def keep(variable, kept):
    value = np.zeros(variable.shape, "float32")
    value.flat[:kept] = 1.0
    variable.assign(value)


@pytest.fixture
def pruned():
    # 72, 144·64 = 9216 and 640 weights.
    model = net()
    for layer, kept in ((0, 60), (3, 92), (4, 128)):
        keep(model.layers[layer].kernel, kept)
    return model


def test_counts_each_kernel_and_all(pruned):
    found = report(pruned)
    assert [row.path for row in found.rows] == [
        pruned.layers[i].kernel.path for i in (0, 3, 4)
    ]
    assert [row.shape for row in found.rows] == [(3, 3, 2, 4), (144, 64), (64, 10)]
    assert [row.weights for row in found.rows] == [72, 9216, 640]
    assert [row.kept for row in found.rows] == [60, 92, 128]
    assert [row.density for row in found.rows] == [60 / 72, 92 / 9216, 0.2]
    assert (found.weights, found.kept, found.density) == (9928, 280, 280 / 9928)


def test_sizes_take_the_cheapest_encoding(pruned):
    found = report(pruned)
    assert [row.encoding for row in found.rows] == ["bitmask", "index", "bitmask"]
    assert [row.bits for row in found.rows] == [72 + 60 * 32, 92 * (32 + 14), 640 + 128 * 32]
    others = 32 * (4 + 4 * 4 + 64 + 10)
    assert found.other_bits == others
    assert found.dense_bits == 32 * 9928 + others == 32 * pruned.count_params()
    assert found.bits == sum(row.bits for row in found.rows) + others


@pytest.mark.parametrize("kept", [0, 1, 20, 300, 5000, 9215, 9216])
def test_no_encoding_is_cheaper(kept):
    model = keras.Sequential([keras.Input((144,)), keras.layers.Dense(64, use_bias=False)])
    keep(model.layers[0].kernel, kept)
    (row,) = report(model).rows
    sizes = {"dense": 9216 * 32, "bitmask": 9216 + kept * 32, "index": kept * (32 + 14)}
    assert row.bits == sizes[row.encoding] == min(sizes.values())


@pytest.mark.parametrize("dtype, bits", [("float16", 16), ("bfloat16", 16), ("float64", 64)])
def test_sizes_follow_the_type_of_the_weights(dtype, bits):
    model = net(dtype)
    for i in (0, 3, 4):
        keep(model.layers[i].kernel, None)
    found = report(model)
    assert all(row.dense_bits == bits * row.weights for row in found.rows)
    assert found.density == 1.0 and found.bits == found.dense_bits


def test_one_weight_and_no_kernel():
    single = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    keep(single.layers[0].kernel, 0)
    assert report(single).density == 0 and report(single).bits == 0
    no_kernel = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    found = report(no_kernel)
    assert found.rows == () and found.density == 1.0 and found.bits == 12 * 32
    assert "all kernels" in str(found)
    assert math.isfinite(json.loads(found.to_json())["totals"]["density"])


def test_a_shared_kernel_counts_once():
    inputs = keras.Input((5,))
    dense = keras.layers.Dense(5)
    assert report(keras.Model(inputs, dense(dense(inputs)))).weights == 25


def test_table_is_aligned_and_complete(pruned):
    found = report(pruned)
    lines = str(found).splitlines()
    ends = {line.index(" %") for line in lines if " %" in line}
    assert len(ends) == 1
    for row in found.rows:
        (line,) = [line for line in lines if line.startswith(row.path + " ")]
        assert f"{row.weights:,}" in line and f"{row.kept:,}" in line and row.encoding in line
    assert f"{found.dense_bits / 8000:,.1f} kB dense" in lines[-1]


def test_json_has_rows_and_totals(pruned):
    found = report(pruned)
    loaded = json.loads(found.to_json())
    assert [row["kept"] for row in loaded["rows"]] == [60, 92, 128]
    assert loaded["rows"][1]["shape"] == [144, 64]
    assert loaded["rows"][2]["density"] == 0.2
    assert loaded["totals"]["kept"] == 280 and loaded["totals"]["bits"] == found.bits


def test_plot_draws_a_bar_a_kernel_and_writes_it(pruned, tmp_path):
    figure = report(pruned).plot(tmp_path / "density.png")
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([100 * 60 / 72, 100 * 92 / 9216, 20])
    assert [label.get_text() for label in ax.get_yticklabels()] == [r.path for r in report(pruned).rows]
    assert (tmp_path / "density.png").read_bytes().startswith(b"\x89PNG")
    assert report(pruned).plot(ax=figure.add_subplot()) is figure


def test_plot_without_matplotlib_says_what_to_install(pruned, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"lc_keras\[plot\]"):
        report(pruned).plot()


def test_only_a_plot_needs_matplotlib():
    script = "import sys; sys.modules['matplotlib'] = None; import lc_keras.reports"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_model_stays_as_it_was(pruned):
    before = [w.numpy().copy() for w in pruned.weights]
    report(pruned).to_json()
    for old, new in zip(before, pruned.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_not_a_built_model():
    with pytest.raises(ValueError, match="not built"):
        report(keras.Sequential([keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match="no weights"):
        report(keras.Sequential([keras.Input((3,)), keras.layers.Flatten()]))
    with pytest.raises(TypeError, match="Expected `model` to be a keras.Model"):
        report(keras.layers.Dense(3))
