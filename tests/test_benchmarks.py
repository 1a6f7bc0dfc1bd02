"""Each benchmark, once through with little of everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("script", ["automatic_mu.py", "c_step.py", "error.py", "l_step.py"])
def test_a_tiny_pass(script, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, "--tiny", "--output", tmp_path / "result.json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    rows = result["rows"]
    assert result["environment"]["tensorflow"] and result["environment"]["cores"] > 0
    if script == "error.py":
        assert [row["contender"] for row in rows] == ["LC", "gradual", "magnitude"]
        assert len({row["kept"] for row in rows}) == 1
        assert all(0 <= row["error"] < 90 and row["contender"] in done.stdout for row in rows)
    elif script == "automatic_mu.py":
        assert [row["mu"] for row in rows] == ["auto", "0.0001 … 0.01"]
    elif script == "c_step.py":
        assert [row["tensors"] for row in rows] == [1, 50]
        assert all(time > 0 for row in rows for time in row["median_ms"].values())
    else:
        assert rows[0]["l_step_ratio"] > 0 and rows[0]["c_step_ms"] > 0
