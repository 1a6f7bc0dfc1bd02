"""The notebooks run from top to bottom, end with a picture, and leave a file behind."""

from pathlib import Path

import jupytext
import nbclient
import pytest

TUTORIALS = Path(__file__).parent.parent / "docs/tutorials"
LEFT = {
    "digits": "digits/1/saved_model.pb",
    "images": "images/small.keras",
    "text": "text/int8.tflite",
    "budget": "budget/chosen.keras",
}


def test_these_are_all():
    assert {path.stem for path in TUTORIALS.glob("*.py")} == LEFT.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT)
def test_a_notebook_runs(name, tmp_path, request):
    if name == "images":
        request.getfixturevalue("cifar10_dir")
    notebook = jupytext.read(TUTORIALS / f"{name}.py")
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": tmp_path}}).execute()
    assert (tmp_path / "outputs" / LEFT[name]).stat().st_size > 1000
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 2
    assert not any("Assets written" in output.get("text", "") for output in shown)
