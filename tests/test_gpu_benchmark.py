"""benchmarks/gpu.py on a CPU with tiny sizes: rows run, are written one by one, and are not run twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(results: Path, *arguments: str) -> tuple[dict, str]:
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--device", "cpu", "--json", str(results), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(results.read_text()), done.stdout


def test_rows_are_written_and_not_run_again(tmp_path):
    results = tmp_path / "gpu.json"
    assert list(run(results, "--rows", "limit")[0]["rows"]) == ["limit"]
    found = json.loads(results.read_text())
    found["rows"]["dense 4"] = {"error": "made up"}
    results.write_text(json.dumps(found))
    found, said = run(results, "--rows", "dense 4")
    assert found["rows"]["dense 4"] == {"error": "made up"}, "a row that failed is not tried again unasked"
    found, said = run(results, "--rows", "dense 4", "--again")
    assert list(found["rows"]) == ["limit", "dense 4"]
    assert found["rows"]["dense 4"]["clips_per_s"] > 0 and not said.startswith("limit")
    found, said = run(results, "--rows", "dense 64", "--seconds", "0")
    assert "dense 64" not in found["rows"] and "no time is left" in said


@pytest.mark.slow
def test_every_row_runs(tmp_path):
    found, _ = run(tmp_path / "gpu.json", "--seconds", "800")
    assert len(found["rows"]) >= 25
    assert not {name: row["error"] for name, row in found["rows"].items() if "error" in row}
