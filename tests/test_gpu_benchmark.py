"""benchmarks/gpu.py on a CPU with tiny sizes: rows run, are written one by one, and are not run twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
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
    known = {"limit": {"product_tflops": 1.0}, "attention, ragged": {"error": "made up"}}
    results.write_text(json.dumps({"rows": known}))
    found, said = run(results, "--rows", "attention, ragged", "--again")
    assert list(found["rows"]) == ["limit", "attention, ragged", "attention, ragged, heads of 128"]
    assert found["rows"]["attention, ragged"]["both_ms"] > 0, "a row that failed is tried again where asked"
    assert found["size"] == "tiny" and found["commit"] and not said.startswith("limit")
    found["rows"]["attention, ragged"] = {"error": "made up"}
    results.write_text(json.dumps(found))
    found, said = run(results, "--rows", "", "--seconds", "0")
    assert len(found["rows"]) == 3 and "error" in found["rows"]["attention, ragged"], "nor unasked"
    assert "dense 64: no time is left for it" in said


def test_all_rows_together_fit_into_eight_minutes():
    assert sum(seconds for _, seconds in gpu.ROWS.values()) <= 480


@pytest.mark.slow
def test_every_row_runs(tmp_path):
    found, _ = run(tmp_path / "gpu.json", "--seconds", "800")
    assert len(found["rows"]) == len(gpu.ROWS)
    assert not {name: row["error"] for name, row in found["rows"].items() if "error" in row}
