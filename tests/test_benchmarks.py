"""Each benchmark, once through with little of everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "script",
    ["any_model", "automatic_mu", "c_step", "error", "kill", "l_step", "on_device", "serving", "shrink"],
)
def test_a_tiny_pass(script, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "benchmarks" / f"{script}.py",
            "--tiny",
            "--output",
            tmp_path / "result.json",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    rows = result["rows"]
    assert result["environment"]["tensorflow"] and result["environment"]["cores"] > 0
    if script == "error":
        assert [row["contender"] for row in rows] == ["LC", "gradual", "magnitude"]
        assert len({row["kept"] for row in rows}) == 1
        assert all(0 <= row["error"] < 90 and row["contender"] in done.stdout for row in rows)
    elif script == "any_model":
        assert [row["model"] for row in rows] == ["nested three deep", "MobileNet"]
        assert all(row["outcome"] == "ok" and 0 < row["kept"] < row["compressed"] for row in rows)
    elif script == "automatic_mu":
        assert [row["mu"] for row in rows] == ["auto", "0.0001 … 0.01"]
    elif script == "c_step":
        assert [row["tensors"] for row in rows] == [1, 50]
        assert all(time > 0 for row in rows for time in row["median_ms"].values())
    elif script == "kill":
        killed_in = [phase for row in rows for phase in row["killed_in"]]
        assert len(killed_in) >= 6 and set(killed_in) == {"L step", "C step", "checkpoint"}
        assert all(row["same"] for row in rows)
    elif script == "on_device":
        assert rows[0]["smaller"] > 2
    elif script == "serving":
        assert {row["variant"] for row in rows} == {"dense", "packed", "sparse", "auto"}
        assert all(row["ratio"] > 0 for row in rows)
    elif script == "shrink":
        assert rows[0]["macs_fraction"] <= 0.5
    else:
        assert rows[0]["l_step_ratio"] > 0 and rows[0]["c_step_ms"] > 0
