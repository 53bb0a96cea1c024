"""Speed and memory of the any-to-any half, each way beside the one it replaces, taken in turn in one run.

    OMP_NUM_THREADS=1 python benchmarks/anytoany.py --json benchmarks/results/anytoany_cpu.json
    python benchmarks/anytoany.py --shape 135M --device cuda --dtype bfloat16 --json anytoany_gpu.json
    python benchmarks/anytoany.py --parts generation,merged

Ratios are what to look at. Times on a CPU are seconds of processor time of one thread, medians of `--repeats`; the load
of the machine before and after stands in the file. All weights are random: speed is the same. `1B` and `8B` need a GPU.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from anytoany_parts import perceiving, speaking, starting, training
from anytoany_parts.setting import SHAPES, Setting
from environment import environment

from egom2p.training.throughput import peak_flops


def _utilisation(setting: Setting) -> dict:
    kind = torch.bfloat16 if setting.dtype == "bfloat16" else torch.float32
    return training.utilisation(setting, peak_flops=peak_flops(setting.device, kind))


PARTS: dict[str, Callable[[Setting], dict]] = {
    "packing": training.packing,
    "loss": training.loss,
    "utilisation": _utilisation,
    "generation": speaking.generation,
    "prompts": speaking.prompts,
    "merged": speaking.merged,
    "connectors": perceiving.connectors,
    "splicing": perceiving.splicing,
    "start_up": starting.start_up,
    "loader": starting.loader,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, default=None, help="write the tables here too; other parts in it stay")
    arguments = parser.parse_args()
    names = arguments.parts.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"--parts knows {', '.join(PARTS)}, got {', '.join(unknown)}")
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    setting = Setting(arguments.shape, torch.device(arguments.device), arguments.dtype, arguments.repeats)
    about = {**environment(), "shape": setting.shape, "dtype": setting.dtype, "repeats": setting.repeats}
    if setting.device.type == "cpu":
        about["device"] = "cpu"
    for name in names:
        load = os.getloadavg()[0]
        found = _rounded(PARTS[name](setting)) | {"load_average": [round(load, 1), round(os.getloadavg()[0], 1)]}
        print(name, json.dumps(found, indent=1), flush=True)
        if arguments.json:
            known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
            arguments.json.write_text(json.dumps({**known, **about, name: found}, indent=1) + "\n")


def _rounded(values: object) -> object:
    """Four digits are more than a shared machine repeats."""
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    return float(f"{values:.4g}") if isinstance(values, float) else values


if __name__ == "__main__":
    main()
