"""Nothing is unpickled, no code in a model file runs, and an export stays where it belongs."""

import ast
import json
import os
import pickle
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from lc_keras import export_litert, export_saved_model, report
from lc_keras.__main__ import main

ROOT = Path(__file__).parents[1]
FOLDERS = ("lc_keras", "examples", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


class Trap:
    """An object that runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def marker(tmp_path):
    """A path that exists once code from a file has run."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def net(**options):
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, **options)])


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forbidden(tree):
    """Yields whatever in a source file loads objects or code from data."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            roots = {name.split(".")[0] for name in names}
            yield from roots & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in {"eval", "exec", "compile", "__import__"} or "unsafe_deserialization" in name:
                yield name
            given = {f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords}
            yield from given & {"allow_pickle=True", "safe_mode=False", "shell=True"}


def test_no_source_loads_objects_or_code_from_data():
    found = {path.name: list(forbidden(ast.parse(path.read_text()))) for path in SOURCES}
    assert len(found) > 30 and not {name: what for name, what in found.items() if what}
    bad = ["import pickle.x", "from dill import y", "f(allow_pickle=True)", "f(safe_mode=False)", "eval(x)"]
    assert all(list(forbidden(ast.parse(line))) for line in bad)


@pytest.mark.parametrize("kind", ["pickle", "array of objects"])
def test_pickled_data_is_refused(kind, marker, tmp_path, capsys):
    net().save(tmp_path / "net.keras")
    trap = Trap(f"touch {marker}")
    if kind == "pickle":
        (tmp_path / "x.npy").write_bytes(pickle.dumps(trap))
    else:
        np.save(tmp_path / "x.npy", np.array([trap], dtype=object), allow_pickle=True)
    arguments = ["export", "net.keras", "out.tflite", "--quantize", "int8", "--data", "x.npy"]
    arguments = [str(tmp_path / a) if "." in a else a for a in arguments]
    assert main(arguments) == 1
    assert "pickle" in capsys.readouterr().err


def test_no_code_of_a_lambda_layer_runs(marker, tmp_path, capsys):
    command = f"touch {marker}"
    layer = keras.layers.Lambda(lambda x: (__import__("os").system(command), x)[1], output_shape=(3,))
    trapped = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(2)])
    marker.unlink(missing_ok=True)
    for name in ("net.keras", "net.h5"):
        trapped.save(tmp_path / name)
        for command_line in (["report"], ["export"]):
            target = [str(tmp_path / "out")] * (command_line == ["export"])
            assert main([*command_line, str(tmp_path / name), *target]) == 1
            assert "lc_keras: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_format_is_no_keras_file_because_an_archive_is_attached(tmp_path, capsys):
    path = tmp_path / "net.h5"
    net().save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.json", "{}")
    assert zipfile.is_zipfile(path)
    assert main(["report", str(path)]) == 1
    assert "Expected a .keras file" in capsys.readouterr().err


def test_no_function_that_a_config_names_is_called(marker, tmp_path, capsys):
    net().save(tmp_path / "net.keras")
    call = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    trap = {"module": "subprocess", "class_name": "Popen", "config": {"args": ["touch", str(marker)]}}
    for harm in (call, trap | {"registered_name": None}):
        with zipfile.ZipFile(tmp_path / "net.keras") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(parts["config.json"])
        config["config"]["layers"][-1] = harm
        parts["config.json"] = json.dumps(config).encode()
        with zipfile.ZipFile(tmp_path / "trapped.keras", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        assert main(["report", str(tmp_path / "trapped.keras")]) == 1
        assert "lc_keras: " in capsys.readouterr().err


def test_a_report_of_a_saved_model_does_not_load_its_graph(tmp_path):
    export_saved_model(net(), tmp_path / "1")
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"no graph")
    assert report(tmp_path / "1").weights == 6


@pytest.mark.parametrize("path", ["..", ".", "out/..", "out/.", "out/../..", "", "/"])
def test_a_path_that_ends_in_no_name_is_refused(path, tmp_path, monkeypatch):
    inside = tmp_path / "a" / "b"
    (inside / "out").mkdir(parents=True)
    monkeypatch.chdir(inside)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="end in the name of a directory"):
            export_saved_model(net(), path, overwrite=overwrite)
    assert not files(tmp_path) and os.listdir(inside) == ["out"]


def test_an_export_writes_in_its_directory_alone(tmp_path):
    words = keras.layers.StringLookup(vocabulary=["a", "b"], name="..words")
    inputs = keras.Input((4,), dtype="string", name="words")
    embedded = keras.layers.Embedding(3, 2, name="..embedding")(words(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="..out")(embedded), name="..net")
    (tmp_path / "exports").mkdir()
    (tmp_path / "beside").write_text("mine")
    export_saved_model(model, tmp_path / "exports" / "1", compute="dense")
    assert {name.split(os.sep)[0] for name in files(tmp_path)} == {"beside", "exports"}
    assert os.listdir(tmp_path / "exports") == ["1"]


@pytest.mark.parametrize("link", ["in the directory", "the directory"])
def test_what_links_lead_to_is_not_replaced(link, tmp_path):
    outside, path = tmp_path / "outside", tmp_path / "models" / "1"
    export_saved_model(net(), outside)
    (outside / "variables" / "precious").write_text("mine")
    before = files(outside)
    path.parent.mkdir()
    if link == "the directory":
        path.symlink_to(outside, target_is_directory=True)
        with pytest.raises(ValueError, match="a symbolic link; pass overwrite=True"):
            export_saved_model(net(use_bias=False), path)
    else:
        export_saved_model(net(), path)
        (path / "variables" / "link").symlink_to(outside, target_is_directory=True)
    export_saved_model(net(use_bias=False), path, overwrite=True)
    assert files(outside) == before
    assert (
        not path.is_symlink()
        and os.listdir(path.parent) == ["1"]
        and not (path / "variables" / "link").exists()
    )
    assert report(path).weights == 6


def test_a_litert_file_takes_the_place_of_a_link_and_not_of_what_it_leads_to(tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "net.tflite").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="which exists"):
        export_litert(net(), tmp_path / "net.tflite")
    export_litert(net(), tmp_path / "net.tflite", overwrite=True)
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "net.tflite").is_symlink()
