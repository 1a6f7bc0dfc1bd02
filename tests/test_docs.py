"""The documentation runs, and names everything that is public."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import lc_keras

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"])
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(blocks, names):
    for block in blocks:
        exec(compile(block, block, "exec"), names)


CHECKS = """
np.testing.assert_allclose(compress.density, 0.1, atol=1e-3)
np.testing.assert_allclose(logits, keras.ops.convert_to_numpy(model(x)), atol=1e-5)
"""


def test_every_block_of_the_reference_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run([*BLOCK.findall((ROOT / "docs/by-example.md").read_text()), CHECKS], {})


def test_no_public_function_has_the_name_of_its_module():
    """The site would show the module in its place."""
    functions = [getattr(lc_keras, name) for name in lc_keras.__all__]
    assert not [f for f in functions if getattr(f, "__module__", "").endswith(f".{f.__name__}")]


@pytest.mark.parametrize("name", lc_keras.__all__)
def test_every_public_name_is_in_the_reference_and_documented(name):
    assert f"`{name}`" in (ROOT / "docs/by-example.md").read_text()
    assert f"::: lc_keras.{name}" in (ROOT / "docs/reference.md").read_text()
    assert getattr(lc_keras, name).__doc__


def test_the_site_is_whole(tmp_path):
    """No link, anchor, picture or docstring is missing; the notebooks do not run here."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NOTEBOOKS": "false", "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "reference.html").read_text()
    assert 'aria-label="\\theta \\leftarrow' in api and "arithmatex" not in api
    for page in tmp_path.glob("**/*.html"):
        loaded = re.findall(r'<(?:script|img)[^>]* src="([^"]+)|<link[^>]* href="([^"]+)', page.read_text())
        for place in map("".join, loaded):
            base = tmp_path if place.startswith("/") else page.parent
            assert "//" not in place and (base / place.lstrip("/")).exists(), (page.name, place)


def test_the_readme_is_short_and_the_site_begins_with_its_program():
    readme, start = ((ROOT / name).read_text() for name in ("README.md", "docs/index.md"))
    assert len(readme) <= 8000
    assert BLOCK.findall(readme)[0] == BLOCK.findall(start)[0]


def test_the_program_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(20, "relu"), keras.layers.Dense(2)]).save(
        "trained.keras"
    )
    names = {"train": data, "validation": data, "x": x, "y": y}
    program, *_ = BLOCK.findall((ROOT / "README.md").read_text())
    run([program], names)
    kept = sum(np.count_nonzero(v) for v in names["model"].get_weights() if v.ndim == 2)
    assert kept == 10


def test_the_cost_that_contributors_are_shown_works():
    names = {}
    run(BLOCK.findall((ROOT / "docs/extending.md").read_text()), names)
    box = names["LInfConstraint"](2.0)
    first, second = box.c_step([np.float32([3, -1, -5]), np.float32([[2]])], mu=1.0)
    assert first.numpy().tolist() == [2, -1, -2] and second.numpy().tolist() == [[2]]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="ones")])
    lc_keras.baselines.compress_directly(model, names["LInfConstraint"](0.5))
    assert model.get_weights()[0].tolist() == [[0.5, 0.5]] * 3


def missing(page, text):
    """The files, links and modules that a page names but that do not exist."""
    for path in re.findall(r"`((?:benchmarks|docs|examples|lc_keras|tests)/[\w./-]*)", text):
        if not (ROOT / path).exists():
            yield path
    for link in re.findall(r"\]\(([\w./-]+)[)#]", text):
        if not (page.parent / link).exists():
            yield link
    modules = re.findall(r"-m ((?:benchmarks|examples|lc_keras)(?:\.\w+)*)", text)
    if page.parent.name == "benchmarks":
        modules += [f"benchmarks.{name}" for name in re.findall(r"^\| `([\w.]+)", text, re.MULTILINE)]
    for module in modules:
        if importlib.util.find_spec(module) is None:
            yield module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    assert not list(missing(page, page.read_text()))


def test_what_is_not_there_is_found():
    text = "`lc_keras/costs/l3.py` [gone](gone.md#a) `python -m examples.digit` [there](README.md)"
    text += "\n| `training.eror --tiny` | a row |"
    found = list(missing(ROOT / "benchmarks/README.md", text))
    assert found == ["lc_keras/costs/l3.py", "gone.md", "examples.digit", "benchmarks.training.eror"]
