import ast
import gzip
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import lc_keras
from lc_keras.export import export_saved_model
from lc_keras.measuring.counting import REPORT_FILE, report
from lc_keras.measuring.table import PruningReport, VariableReport, _short


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
    assert [row.path for row in found.rows] == [pruned.layers[i].kernel.path for i in (0, 3, 4)]
    assert [row.shape for row in found.rows] == [(3, 3, 2, 4), (144, 64), (64, 10)]
    assert [row.weights for row in found.rows] == [72, 9216, 640]
    assert [row.kept for row in found.rows] == [60, 92, 128]
    assert [row.density for row in found.rows] == [60 / 72, 92 / 9216, 0.2]
    assert (found.weights, found.kept, found.density) == (9928, 280, 280 / 9928)


@pytest.mark.parametrize("layers, encoding", [(1, "dense"), (2, "gaps4")])
def test_weights_are_packed_that_save_more_together_than_unpacking_adds(layers, encoding, tmp_path):
    # Each weight saves 6 of 10 kB, and unpacking adds 8 kB to a file.
    model = keras.Sequential([keras.Input((50,)), *(keras.layers.Dense(50) for _ in range(layers))])
    for layer in model.layers:
        keep(layer.kernel, 10)
    found, exported = report(model), export_saved_model(model, tmp_path)
    assert [row.encoding for row in found.rows] == layers * [encoding]
    assert [weight.encoding for weight in exported.weights if "kernel" in weight.path] == layers * [encoding]


def test_sizes_are_those_of_an_export(pruned, tmp_path):
    found, exported = report(pruned), export_saved_model(pruned, tmp_path)
    stored = {weight.path: (weight.encoding, 8 * weight.nbytes) for weight in exported.weights}
    for row in (*found.rows, *found.others):
        assert (row.encoding, row.bits) == stored[row.path]
    assert [row.encoding for row in found.rows] == ["dense", "gaps4", "dense"]
    assert found.rows[1].bits == 92 * (32 + 4)
    assert found.dense_bits == 32 * pruned.count_params()
    assert found.bits == sum(bits for _, bits in stored.values())
    assert found.largest is found.rows[2]


def test_gzip(pruned):
    found = report(pruned)
    for row, layer in zip(found.rows, (0, 3, 4), strict=True):
        value = pruned.layers[layer].kernel.numpy().tobytes()
        assert row.gzip_bits == 8 * len(gzip.compress(value, 1)) < row.dense_bits
    assert found.gzip_bits == sum(row.gzip_bits for row in (*found.rows, *found.others))


def test_multiply_adds(pruned):
    found = report(pruned)
    assert [row.macs for row in found.rows] == [72 * 36, 9216, 640]
    assert [row.remaining_macs for row in found.rows] == [60 * 36, 92, 128]
    assert found.macs == 72 * 36 + 9216 + 640 and found.remaining_macs == 60 * 36 + 92 + 128
    assert {row.macs for row in found.others} == {0}


def test_an_export_reads_as_the_model(pruned, tmp_path):
    export_saved_model(pruned, tmp_path / "net")
    read, found = report(tmp_path / "net"), report(pruned)
    for got, expected in ((read.rows, found.rows), (read.others, found.others)):
        assert got == tuple(replace(row, gzip_bits=None) for row in expected)
    assert read.file_bits == 8 * sum(p.stat().st_size for p in (tmp_path / "net").rglob("*") if p.is_file())
    rest = (read.file_bits - read.bits) / 8000
    said = f"the SavedModel {read.file_bits / 8000:,.1f} kB, with {rest:,.1f} kB of graph"
    assert said in str(read).replace("\n", " ")
    assert read.gzip_bits is None and json.loads(read.to_json())["totals"]["file_bits"] == read.file_bits
    for name in ("net.keras", "net.tflite"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="no `input_signature` with the path"):
        report(tmp_path / "net", [tf.TensorSpec([None, 28, 28, 1])])
    for path, why in (
        (tmp_path, "holds no .* if it holds versions, name one"),
        (tmp_path / "net.keras", "is a file; .*load_model"),
        (tmp_path / "missing.keras", "does not exist"),
        (tmp_path / "net.tflite", "is a LiteRT file"),
    ):
        with pytest.raises(ValueError, match=f"export_saved_model wrote. Received: '{path}', which {why}"):
            report(path)


@pytest.mark.parametrize("dtype, bits", [("float16", 16), ("bfloat16", 16), ("float64", 64)])
def test_sizes_follow_the_type_of_the_weights(dtype, bits):
    model = net(dtype)
    for i in (0, 3, 4):
        kernel = model.layers[i].kernel
        kernel.assign(np.random.default_rng(i).normal(size=kernel.shape))
    found = report(model)
    assert all(row.dense_bits == bits * row.weights for row in found.rows)
    assert found.density == 1.0 and found.bits == found.dense_bits
    assert "No kernel has zeros, and none is smaller packed." in str(found)
    # As if the weights had few values.
    packed = replace(found, rows=tuple(replace(row, bits=row.bits // 2) for row in found.rows))
    assert "No kernel has zeros" not in str(packed)


def test_what_is_not_finite_is_said(pruned):
    assert "Not finite" not in str(report(pruned))
    pruned.layers[1].gamma.assign([1.0, np.nan, 1.0, np.inf])
    found = report(pruned)
    assert [row.path for row in (*found.rows, *found.others) if not row.finite] == [
        pruned.layers[1].gamma.path
    ]
    assert f"Not finite: {pruned.layers[1].gamma.path}" in str(found)


def test_what_double_precision_holds_is_finite():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype="float64")])
    model.layers[0].kernel.assign(np.full((2, 2), 1e300))
    assert report(model).rows[0].finite


def test_attention_of_unknown_size_is_said():
    x = keras.Input((None, 8))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.Attention()([x, x])[:, 0]))
    assert report(model).attention_macs is None
    assert "24 known multiply-adds an example, 24 by" in str(report(model)).replace("\n", " ")
    assert "Multiply-adds not known: attention" in str(report(model))
    assert report(model, [tf.TensorSpec([None, 5, 8])]).attention_macs == 5 * 5 * 16


def test_multiply_adds_that_are_not_known_are_not_zero():
    open_length = keras.Sequential([keras.Input((None, 4)), keras.layers.Dense(3)])
    found = report(open_length)
    assert found.macs is found.remaining_macs is found.macs_density is None
    assert found.unknown_macs == (open_length.layers[0].kernel.path,)
    assert json.loads(found.to_json())["totals"]["unknown_macs"] == list(found.unknown_macs)
    keep(open_length.layers[0].kernel, 6)
    found = report(open_length, [tf.TensorSpec([None, 5, 4])])
    assert (found.macs, found.remaining_macs, found.macs_density) == (60, 30, 0.5) and not found.unknown_macs
    # Totals of what is known, and of nothing at all.
    partly = keras.Sequential([keras.Input((None, 4)), keras.layers.LSTM(2), keras.layers.Dense(3)])
    assert (report(partly).macs, len(report(partly).unknown_macs)) == (6, 2)
    looked_up = report(keras.Sequential([keras.Input((5,), dtype="int32"), keras.layers.Embedding(6, 2)]))
    assert (looked_up.macs, looked_up.macs_density) == (0, 1.0)


def test_one_weight_and_no_kernel():
    single = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    keep(single.layers[0].kernel, 0)
    assert report(single).density == 0 and report(single).remaining_macs == 0
    no_kernel = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    found = report(no_kernel)
    assert found.rows == () and found.density == 1.0 and found.bits == 12 * 32
    assert "all kernels" in str(found)
    assert math.isfinite(json.loads(found.to_json())["totals"]["density"])


def test_a_shared_kernel_counts_once():
    inputs = keras.Input((5,))
    dense = keras.layers.Dense(5)
    assert report(keras.Model(inputs, dense(dense(inputs)))).weights == 25


def test_kernels_of_one_name_count_by_themselves():
    def tower(size):
        image = keras.Input((size, size, 3))
        return keras.Model(image, keras.layers.Flatten()(keras.layers.Conv2D(4, 3, name="conv")(image)))

    inputs = [keras.Input((size, size, 3)) for size in (8, 4)]
    outputs = [tower(image.shape[1])(image) for image in inputs]
    found = report(keras.Model(inputs, keras.layers.Concatenate()(outputs)))
    assert [row.path for row in found.rows] == 2 * ["conv/kernel"]
    assert [row.macs for row in found.rows] == [36 * 108, 4 * 108]


def test_table_is_aligned_and_complete(pruned):
    found = report(pruned)
    lines = str(found).splitlines()
    ends = {line.index(" %") for line in lines[2:8] if " %" in line}
    assert len(ends) == 1
    for row in found.rows:
        (line,) = [line for line in lines if line.startswith(row.path + " ")]
        assert f" {row.kept:,} " in line and "×".join(map(str, row.shape)) in line
    assert f"{found.dense_bits / 8000:,.1f} kB dense" in str(found)
    assert f"of what is packed: {found.largest.path}" in str(found)


@pytest.mark.parametrize("depth", [1, 12])
def test_table_fits_a_hundred_columns(pruned, depth):
    (row, *_), path = report(pruned).rows, "a_long_name/" * depth + "kernel"
    size, macs = 8 * 126_000_000, 31_500_000_000
    large = VariableReport(
        path, (3, 3, 5000, 700), 31_500_000, 31_400_000, "dense", size, size, size, macs, macs, True
    )
    text = str(PruningReport((row, large), (), 10**13))
    assert 90 < max(map(len, text.splitlines())) <= 100
    assert "31,400,000" in text and "3×3×5000×700" in text and "31.5G" in text and "126M" in text
    assert "10,031,500,002,592 multiply-adds" in text
    # What does not fit continues on the next line: nothing is lost.
    names = [line.split("  ")[0].strip() for line in text.splitlines()]
    assert path in "".join(names)


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
    """No module imports it when the module itself is imported, except for types."""
    for path in Path(lc_keras.__file__).parent.rglob("*.py"):
        todo = ast.parse(path.read_text()).body
        for node in todo:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "matplotlib" not in ast.unparse(node), path
            elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
                # The body of a class runs when the class is made; the body of a function does not.
                todo += getattr(node, "body", []) if not isinstance(node, ast.FunctionDef) else []


def test_the_model_stays_as_it_was(pruned):
    before = [w.numpy().copy() for w in pruned.weights]
    report(pruned).to_json()
    for old, new in zip(before, pruned.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_not_a_built_model():
    with pytest.raises(ValueError, match="not built"):
        report(keras.Sequential([keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match=r"no weights\.$"):
        report(keras.Sequential([keras.Input((3,)), keras.layers.Flatten()]))
    with pytest.raises(TypeError, match="Expected `model` to be a keras.Model"):
        report(keras.layers.Dense(3))


def test_frozen_kernels_are_named_and_do_not_count(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(4, name="frozen", trainable=False),
            keras.layers.Dense(4, name="adapted"),
            keras.layers.Dense(4, name="quantised"),
            keras.layers.Dense(2, name="free"),
        ]
    )
    model.get_layer("adapted").enable_lora(2)
    model.quantize("int8", filters="quantised")
    found = report(model)
    names = ["frozen/kernel", "adapted/kernel", "quantised/kernel"]
    assert [row.path for row in found.rows] == [f"{model.name}/free/kernel"] and found.weights == 8
    assert [row.path for row in found.frozen] == [f"{model.name}/{name}" for name in names]
    assert [row.macs for row in found.frozen] == [8 * 4, 4 * 4, 4 * 4]
    text = str(found).replace("\n", " ")
    assert f"Left out, as not trainable: {', '.join(f'{model.name}/{name}' for name in names)}" in text
    assert f'{found.largest.path}, in "all else"' in text and found.largest not in found.rows
    assert all(row.gzip_bits <= row.dense_bits for row in found.others)
    assert not report(net()).frozen
    assert [row["frozen"] for row in json.loads(found.to_json())["others"]].count(True) == 3
    plain = keras.Sequential([keras.Input((8,)), model.layers[0], model.layers[3]])
    export_saved_model(plain, tmp_path / "1")
    assert [row.path for row in report(tmp_path / "1").frozen] == [model.layers[0].kernel.path]


def test_a_report_that_was_written_before_frozen_kernels_were_named(tmp_path):
    export_saved_model(net(), tmp_path / "1")
    file = tmp_path / "1" / "assets.extra" / "lc_keras_report.json"
    content = json.loads(file.read_text())
    for row in content["rows"] + content["others"]:
        del row["frozen"]
    file.write_text(json.dumps(content))
    assert report(tmp_path / "1").weights == report(net()).weights


class NeverCalled(keras.Model):
    """A model that holds a net, and has no `call` of its own."""

    def __init__(self, *layers):
        super().__init__()
        self.nets = [keras.Sequential(layers)]


def test_a_model_that_is_never_called_itself():
    built = NeverCalled(keras.Input((3,)), keras.layers.Dense(2))
    assert report(built).weights == 6 and not built.built
    with pytest.raises(ValueError, match="not built"):
        report(NeverCalled(keras.layers.Dense(2)))


@pytest.mark.parametrize("steps", [5, None])
def test_attention_is_read_from_an_export_and_is_left(tmp_path, steps):
    x = keras.Input((steps, 8))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.Attention()([x, x])))
    model.layers[-1].kernel.assign(np.zeros((8, 3)))
    export_saved_model(model, tmp_path / "1")
    assert report(tmp_path / "1").attention_macs == report(model).attention_macs
    assert report(model).attention_macs == (5 * 5 * 16 if steps else None)
    if steps:
        assert (report(model).macs, report(model).remaining_macs) == (5 * 5 * 16 + 5 * 24, 5 * 5 * 16)


@pytest.mark.parametrize("damaged", ["{", "[]", '{"rows": []}', '{"rows": [{}], "others": [], "totals": {}}'])
def test_a_report_that_is_damaged(tmp_path, damaged):
    file = tmp_path / "1" / REPORT_FILE
    file.parent.mkdir(parents=True)
    file.write_text(damaged)
    with pytest.raises(ValueError, match="Expected a report that export_saved_model wrote. .*1/assets"):
        report(tmp_path / "1")


@pytest.mark.parametrize("number, text", [(None, "-"), (999, "999"), (999.7, "1k"), (999_700, "1M")])
def test_short_numbers(number, text):
    assert _short(number) == text


def test_a_net_without_kernels_has_no_kernel_without_zeros():
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    assert "No kernel has zeros" not in str(report(model))


def test_whole_numbers_are_finite():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5), keras.layers.Dense(2)])
    model.layers[0].seed_generator.state.assign([2, 3])
    assert all(row.finite for row in (*report(model).rows, *report(model).others))
