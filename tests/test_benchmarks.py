"""Each benchmark, once through with little of everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


SCRIPTS = (
    "automatic_mu c_step error l_step on_device resnet serving shrink step_length tune whole_run".split()
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_tiny_pass(script, tmp_path, request):
    if script == "resnet":
        request.getfixturevalue("cifar10_dir")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{script}.py", "--tiny", "--output", tmp_path / "result.json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    rows = result["rows"]
    assert result["environment"]["tensorflow"] and result["environment"]["cores"] > 0
    if script == "error":
        assert [row["contender"] for row in rows] == ["LC", "gradual", "magnitude", "LC ℓ1 constraint"]
        assert len({row["kept"] for row in rows[:3]}) == 1
        assert rows[3]["strength"] == 0.1 and f"@{100 * rows[3]['density']:.3g}" in done.stdout
        assert all(0 <= row["error"] < 90 and row["contender"] in done.stdout for row in rows)
    elif script == "resnet":
        assert [row["contender"] for row in rows] == ["LC", "magnitude, retrained"]
        assert [row["kept"] for row in rows] == [7480, 7480]
        assert "ResNet-8, 74,800 prunable weights, 128 images" in done.stdout
    elif script == "tune":
        assert len({json.dumps(row["settings"]) for row in rows}) == len(rows) == 6
        best = min(rows, key=lambda row: row["error"])
        assert best["measured_on"] == "validation" and f"{best['error']:.2f} *" in done.stdout
    elif script == "step_length":
        assert [row["settings"]["epochs_per_step"] for row in rows] == [0.25, 1.0]
        assert (tmp_path / "result.png").stat().st_size > 5000
    elif script == "whole_run":
        assert rows[0]["c_steps"] == 8 and 0 < rows[0]["c_step_fraction"] < 1
        assert rows[0]["ratio"] > 0 and rows[0]["lc_peak_mb"] > rows[0]["weights_mb"] > 0
    elif script == "automatic_mu":
        assert [row["mu"] for row in rows] == ["auto", "0.0001 … 0.01"]
    elif script == "c_step":
        assert [row["tensors"] for row in rows] == [1, 50]
        assert all(time > 0 for row in rows for time in row["median_ms"].values())
    elif script == "on_device":
        assert rows[0]["smaller"] > 2
    elif script == "serving":
        assert {row["variant"] for row in rows} == {"dense", "packed", "sparse", "auto"}
        assert all(row["ratio"] > 0 for row in rows)
    elif script == "shrink":
        assert rows[0]["macs_fraction"] <= 0.5
    else:
        assert rows[0]["l_step_ratio"] > 0 and rows[0]["c_step_ms"] > 0
