import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras.__main__ import main

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())


@pytest.fixture
def saved(tmp_path):
    layers = [keras.layers.Dense(300, "relu"), keras.layers.Dense(10, name="logits")]
    model = keras.Sequential([keras.Input((200,), name="pixels"), *layers])
    for layer in model.layers:
        layer.kernel.assign(layer.kernel * (np.random.random(layer.kernel.shape) < 0.05))
    model.save(tmp_path / "net.keras")
    return model, str(tmp_path / "net.keras")


def test_report_of_a_model_and_of_its_export(saved, tmp_path, capsys):
    model, path = saved
    kept = sum(np.count_nonzero(layer.kernel) for layer in model.layers)
    assert main(["report", path]) == 0
    assert f"{kept:,}" in capsys.readouterr().out
    assert main(["export", path, str(tmp_path / "out")]) == 0
    assert "Weights packed: 2;" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "out"), "--json", "--plot", str(tmp_path / "kept.png")]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["kept"] == kept
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")


def test_export_of_versions(saved, tmp_path, capsys):
    model, path = saved
    base, x = str(tmp_path / "base"), np.random.normal(size=(3, 200)).astype("float32")
    options = ["--compute", "auto", "--expected-batch", "1", "128", "--float16"]
    assert main(["export", path, base, "--version", "next", *options]) == 0
    assert main(["export", path, base, "--storage", "dense", "--compute", "dense"]) == 0
    assert "Weights packed: 0; multiplied sparse: 0" in capsys.readouterr().out
    assert main(["export", path, base, "--version", "7", "--compute", "sparse"]) == 0
    assert "multiplied sparse: 2" in capsys.readouterr().out
    assert main(["export", path, base, "--version", "7"]) == 1
    assert "pass --overwrite to" in capsys.readouterr().err
    assert main(["export", path, base, "--version", "7", "--overwrite"]) == 0
    for version in (1, 2, 7):
        served = tf.saved_model.load(f"{base}/{version}")
        np.testing.assert_allclose(served.serve(x), model(x), atol=1e-3)


def fails(model, path, **options):
    Path(path).write_text("half of it")
    raise MemoryError


def test_shrink(tmp_path, capsys, monkeypatch):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(2)])
    model.layers[0].kernel.assign(model.layers[0].kernel.numpy() * [0, 1, 0, 1, 1])
    path, target = str(tmp_path / "net.keras"), str(tmp_path / "new" / "small.keras")
    model.save(path)
    assert main(["shrink", path, target, "--batch-size", "2"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"dense\w* +5 +3\n", printed) and "milliseconds" in printed
    small, x = keras.saving.load_model(target), np.random.normal(size=(3, 6)).astype("float32")
    assert small.layers[0].units == 3
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-6)
    for arguments, message in (([path, target], "--overwrite"), ([path, "small.h5"], "end in .keras")):
        assert main(["shrink", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert main(["shrink", path, target, "--overwrite"]) == 0
    before = os.path.getsize(path)
    assert main(["shrink", path, path, "--overwrite", "--batch-size", "0"]) == 1
    assert os.path.getsize(path) == before
    with monkeypatch.context() as patched:
        patched.setattr(keras.Model, "save", fails)
        with pytest.raises(MemoryError):
            main(["shrink", path, path, "--overwrite"])
    assert keras.saving.load_model(path).layers[0].units == 5
    assert sorted(os.listdir(tmp_path)) == ["net.keras", "new"]
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "link.keras").symlink_to("nothing")
    for name, message in (("folder", "to be a file"), ("link", "pass --overwrite")):
        assert main(["shrink", path, str(tmp_path / f"{name}.keras")]) == 1
        assert message in capsys.readouterr().err
    assert main(["shrink", path, path, "--overwrite"]) == 0
    assert keras.saving.load_model(path).layers[0].units == 3


def test_the_script_of_the_package_is_this():
    (name, value), *others = PROJECT["project"]["scripts"].items()
    script = importlib.metadata.EntryPoint(name, value, "console_scripts")
    assert script.name == "lc-keras" and script.load() is main and not others


def test_export_to_litert(saved, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    _, path = saved
    np.save(tmp_path / "x.npy", np.random.normal(size=(20, 200)))
    quantised = [str(tmp_path / "net8.tflite"), "--quantize", "int8"]
    assert main(["export", path, *quantised]) == 1
    assert "Expected --data for --quantize int8. Received: None" in capsys.readouterr().err
    assert main(["export", path, *quantised, "--data", str(tmp_path / "x.npy")]) == 0
    assert (tmp_path / "net8.tflite").stat().st_size > 0 and "if dense" in capsys.readouterr().out


def test_several_inputs_to_calibrate_int8_with_are_in_one_file(tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    inputs = {name: keras.Input((size,), name=name) for name, size in (("a", 3), ("b", 5))}
    joined = keras.layers.Concatenate()(list(inputs.values()))
    keras.Model(inputs, keras.layers.Dense(2)(joined)).save(tmp_path / "net.keras")
    np.savez(tmp_path / "x.npz", a=np.ones((9, 3), "float32"), b=np.ones((9, 5), "float32"))
    paths = [str(tmp_path / name) for name in ("net.keras", "net.tflite", "x.npz")]
    assert main(["export", *paths[:2], "--quantize", "int8", "--data", paths[2]]) == 0, (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "target, options, wrong, right",
    [
        ("out", ["--quantize", "int8", "--overwrite"], "--quantize", "--float16"),
        ("net.tflite", ["--float16", "--version", "3", "--overwrite"], "--version, --float16", "--quantize"),
    ],
)
def test_options_for_another_kind_of_target(saved, tmp_path, capsys, target, options, wrong, right):
    assert main(["export", saved[1], str(tmp_path / target), *options]) == 1
    said = capsys.readouterr().err
    assert said.endswith(f"Received: {wrong}\n") and right in said.split("Received")[0]
    assert not (tmp_path / target).exists()


class Own(keras.Sequential):
    pass


def test_what_is_no_model(tmp_path, capsys):
    (tmp_path / "text.keras").write_text("not a model")
    (tmp_path / "folder").mkdir()
    for name in ("net.tflite", "net.h5"):
        (tmp_path / name).write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as other:
        other.writestr("readme.txt", "an archive")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "net.keras")
    (tmp_path / "empty.npy").write_bytes(b"")
    damaged = bytearray((tmp_path / "net.keras").read_bytes())
    start = zipfile.ZipFile(tmp_path / "net.keras").getinfo("config.json").header_offset
    damaged[start + 60 : start + 70] = b"X" * 10
    (tmp_path / "damaged.keras").write_bytes(damaged)
    np.savez(tmp_path / "several.npz", np.ones((3, 2)))
    to_int8 = [str(tmp_path / "new.tflite"), "--quantize", "int8", "--data"]
    Own([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "own.keras")
    for arguments, message in (
        (
            ["report", "missing"],
            ".keras file, or the directory of a SavedModel. Received: 'missing', which does",
        ),
        (["report", str(tmp_path / "net.tflite")], "is a LiteRT file: take the model"),
        (["report", str(tmp_path / "net.h5")], "is in an older format"),
        (["report", str(tmp_path / "own.keras")], "has classes or functions that Keras does not have"),
        (["export", str(tmp_path / "net.keras"), *to_int8, str(tmp_path / "empty.npy")], "No data left"),
        (
            ["export", str(tmp_path / "net.keras"), *to_int8, str(tmp_path / "text.keras")],
            "a .npy or .npz file",
        ),
        (["export", str(tmp_path / "net.keras"), *to_int8, str(tmp_path / "several.npz")], "arr_0"),
        (["report", str(tmp_path / "text.keras")], "which is not one"),
        (["report", str(tmp_path / "other.keras")], "config.json"),
        (["report", str(tmp_path / "damaged.keras")], "Bad CRC-32"),
        (["report", str(tmp_path / "folder")], "export_saved_model wrote"),
        (["export", str(tmp_path / "folder"), "out"], "Expected a .keras file. Received: '"),
    ):
        assert main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


def test_lambda_layers_only_on_request(tmp_path, capsys):
    path = str(tmp_path / "net.keras")
    layers = [keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(2)]
    keras.Sequential([keras.Input((3,)), *layers]).save(path)
    assert main(["report", path]) == 1
    assert "--unsafe" in capsys.readouterr().err
    assert main(["report", path, "--unsafe"]) == 0
    assert main(["export", path, str(tmp_path / "out"), "--unsafe"]) == 0


@pytest.mark.parametrize(
    "arguments", [["--help"], ["report", "--help"], ["shrink", "--help"], ["export", "--help"]]
)
def test_help(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "usage: lc-keras" in text and max(map(len, text.splitlines())) <= 100


def test_wrong_options(capsys):
    for arguments in ([], ["prune"], ["export", "a.keras", "b", "--version", "²"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    assert 'expected "next" or a number' in capsys.readouterr().err


def test_runs_as_a_module_without_a_word_of_others(saved):
    _, path = saved
    command = [sys.executable, "-m", "lc_keras", "report", path]
    # An output that cannot show the lines of a table.
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=ascii_only)
    assert "all kernels" in run.stdout and run.stderr == ""


def own_loss(y, prediction):
    return keras.ops.mean(keras.ops.abs(y - prediction))


def test_a_model_with_a_loss_of_the_users_own(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", own_loss)
    model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0)
    model.save(tmp_path / "net.keras")
    assert main(["report", str(tmp_path / "net.keras")]) == 0


def test_a_target_that_cannot_be_made(saved, capsys):
    assert main(["export", saved[1], "/proc/x/y"]) == 1
    assert capsys.readouterr().err.startswith("lc_keras: /proc/x")
