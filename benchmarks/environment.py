"""Where a measurement was made; stands beside every result under benchmarks/results."""

import os
import platform
import subprocess
from datetime import date
from pathlib import Path

import torch


def environment() -> dict[str, str | int]:
    """Commit, torch, device, cores and date."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": platform.machine(),
        "cores": os.cpu_count() or 0,
        "date": date.today().isoformat(),
    }
