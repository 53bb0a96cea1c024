"""One comparison, and the few ways to compare."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Check:
    """`error` may be at most `tolerance`; what both are in stands in the name where it is no relative maximum."""

    name: str
    error: float
    tolerance: float = TOLERANCE

    @property
    def is_met(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


@dataclass(frozen=True)
class Skipped:
    """A file or key that nothing compares, and why."""

    name: str
    reason: str


Finding = Check | Skipped
Checks = Callable[[Path], Iterator[Finding]]


def matched(name: str, found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> Check:
    """max |found - wanted| over max(1, max |wanted|); infinite for another shape."""
    if found.shape != wanted.shape:
        return Check(f"{name}: shape {tuple(found.shape)} for {tuple(wanted.shape)}", float("inf"), tolerance)
    if wanted.numel() == 0:
        return Check(name, 0.0, tolerance)
    found, wanted = found.detach().double(), wanted.detach().double()
    # Infinite values (filtered logits) must be infinite on both sides.
    is_equal = found == wanted
    difference = torch.where(is_equal, 0.0, (found - wanted).abs())
    scale = max(1.0, wanted[wanted.isfinite()].abs().max().item()) if wanted.isfinite().any() else 1.0
    return Check(name, (difference.max() / scale).item(), tolerance)


def near(name: str, found: float, wanted: float, tolerance: float = TOLERANCE, *, smallest: float = 1e-12) -> Check:
    """|found - wanted| over |wanted|."""
    return Check(name, abs(found - wanted) / max(abs(wanted), smallest), tolerance)


def failures(findings: Iterable[Finding], *, at_least: int) -> list[Check]:
    """Comparisons that exceed their tolerance, of `at_least` so many; for tests."""
    checks = [finding for finding in findings if isinstance(finding, Check)]
    assert len(checks) >= at_least, f"only {len(checks)} comparisons"
    return [check for check in checks if not check.is_met]


def count(name: str, num_wrong: int) -> Check:
    """Something of which no single one may be wrong."""
    return Check(name, float(num_wrong), 0.0)


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def read_tensors(file: Path) -> dict[str, Tensor]:
    """{} when the folder has no such file."""
    return load_file(file) if file.is_file() else {}
