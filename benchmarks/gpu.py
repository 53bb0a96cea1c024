"""Everything for the first day on a GPU, in one command of at most eight minutes.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json
    python benchmarks/gpu.py --json gpu.json --rows "dense 32"     (rows that begin so)
    python benchmarks/gpu.py --json cpu.json --tiny                (any machine: does every row run?)

Writes after every row, so nothing is lost when time or memory runs out; the same command goes on where it stopped.
A row that fails is noted with its error and not tried again unless --again is given. Rates are medians of three rounds
after a warm-up; `share_of_limit` is model arithmetic per second against one large product in the same run.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gpu_rows as rows
import torch
from environment import environment
from gpu_rows import Bench

_RELEASED = {"alphas": (0.01, 0.1, 1.0, 10.0), "policy": "clamp"}
# In the order of what one wants to know first. Seconds are estimates for one H200 (27 steps of a training row, what the
# compiler has not made for a row before it, building models), 480 together: a row begins while so many are left.
ROWS: dict[str, tuple[Callable[[Bench], dict], float]] = {
    "limit": (rows.limit, 3),
    "tests": (rows.tests, 44),
    "dense 32": (partial(rows.training, batch_size=32), 45),
    "dense 32, not compiled": (partial(rows.training, batch_size=32, compile=False), 15),
    "released mixture, 4 clips": (partial(rows.training, batch_size=4, **_RELEASED), 15),
    "released mixture, 131072 tokens": (
        partial(rows.training, batching="tokens", batch_tokens=131072, **_RELEASED),
        22,
    ),
    "rgb to cam": (partial(rows.generation, target="tok_cam"), 4),
    "rgb to depth": (partial(rows.generation, target="tok_depth"), 4),
    "reference_like, 4 clips": (rows.reference_training, 18),
    "reference_like, released mixture, 4 clips": (partial(rows.reference_training, **_RELEASED), 18),
    "reference_like, rgb to cam": (partial(rows.reference_generation, target="tok_cam"), 6),
    "reference_like, rgb to depth": (partial(rows.reference_generation, target="tok_depth"), 10),
    "attention, rectangles": (rows.attention, 3),
    "attention, rectangles, flash": (partial(rows.attention, kernel="FLASH_ATTENTION"), 2),
    "attention, rectangles, cudnn": (partial(rows.attention, kernel="CUDNN_ATTENTION"), 2),
    "attention, ragged": (partial(rows.attention, is_ragged=True), 2),
    "attention, ragged, heads of 128": (partial(rows.attention, is_ragged=True, num_heads=6), 2),
    "head, compiled": (rows.head, 8),
    "head, not compiled": (partial(rows.head, kind="eager"), 3),
    "head, torch": (partial(rows.head, kind="torch"), 6),
    "dense 32, mlp recomputed": (partial(rows.training, batch_size=32, activation_checkpointing="mlp"), 30),
    "dense 32, muon": (partial(rows.training, batch_size=32, optimizer="muon"), 22),
    "dense 32, heads of 128": (partial(rows.training, batch_size=32, model={"num_heads": 6}), 30),
    "dense 4": (partial(rows.training, batch_size=4), 14),
    "dense 64": (partial(rows.training, batch_size=64), 28),
    "rgb to cam, no graph": (partial(rows.generation, target="tok_cam", graphs=False), 4),
    "rgb to cam, fp32": (partial(rows.generation, target="tok_cam", dtype="fp32"), 4),
    "rgb to cam, 8 clips": (partial(rows.generation, target="tok_cam", num_clips=8), 4),
    "rgb to cam, token by token": (
        partial(rows.generation, target="tok_cam", scheme="autoregressive", guidance=1.0),
        6,
    ),
    "rgb to depth, hot": (partial(rows.generation, target="tok_depth", temperature=1.0, top_p=1.0), 4),
    "rgb to depth, maskgit": (
        partial(rows.generation, target="tok_depth", scheme="maskgit", num_steps=8, temperature=1.0, top_k=100),
        6,
    ),
    "checkpoint": (rows.checkpoint, 9),
    "any-to-any 135M": (partial(rows.anytoany, shape="135M"), 14),
    "tokenizers": (rows.tokenizers, 38),
    "any-to-any 8B": (partial(rows.anytoany, shape="8B"), 35),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results; rows that stand there are not run again")
    parser.add_argument("--rows", default="", help="only rows whose names begin so")
    parser.add_argument("--seconds", type=float, default=480.0, help="no row begins that would end later")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this program")
    parser.add_argument("--again", action="store_true", help="also rows that failed before")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("published sizes take a GPU; here is none, so say --tiny")
    begin = float(os.environ.get("EGOM2P_BENCH_BEGIN", time.time()))
    found = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {"rows": {}}
    found = {**environment(), "size": "tiny" if arguments.tiny else "published", "rows": found["rows"]}
    bench = Bench(torch.device(arguments.device), arguments.tiny)
    for name, (measure, expected_s) in ROWS.items():
        known = found["rows"].get(name)
        if not name.startswith(arguments.rows) or (known and not (arguments.again and "error" in known)):
            continue
        if time.time() - begin + expected_s * (not arguments.tiny) > arguments.seconds:
            print(f"{name}: no time is left for it; the same command goes on here", flush=True)
            continue
        bench.limit_tflops = found["rows"].get("limit", {}).get("product_tflops")
        started = time.time()
        row = _measured(measure, bench)
        found["rows"][name] = {**row, "took_s": round(time.time() - started, 1)}
        _write(arguments.json, found)
        print(name, json.dumps(found["rows"][name]), flush=True)
        if "CUDA error" in row.get("error", ""):
            # The device is unusable for this process from here on; a new one goes on with the next row.
            os.environ["EGOM2P_BENCH_BEGIN"] = str(begin)
            again = [argument for argument in sys.argv[1:] if argument != "--again"]
            os.execv(sys.executable, [sys.executable, __file__, *again])


def _measured(measure: Callable[[Bench], dict], bench: Bench) -> dict:
    try:
        return {key: _rounded(value) for key, value in measure(bench).items()}
    except Exception as error:  # noqa: BLE001 (one row must not cost the others; its error is the result)
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    finally:
        bench.forget_peak()


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _write(path: Path, found: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)


if __name__ == "__main__":
    main()
