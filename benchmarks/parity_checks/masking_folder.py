"""Folder `masking`: budgets drawn by us and by the reference are alike as distributions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

from egom2p.data.budgets import draw_budgets
from parity_checks.check import Check, Finding, read_json, read_tensors

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def masking_checks(folder: Path, *, seed: int = 3) -> Iterator[Finding]:
    """Means within 3 % (or three standard errors), quantiles within 5 % of the budget, Kolmogorov-Smirnov 0.03."""
    stats, raw = read_json(folder / "stats.json"), read_tensors(folder / "budgets_raw.safetensors")
    for name, described in stats.items():
        if not (isinstance(described, dict) and "modalities" in described and f"{name}.component" in raw):
            continue
        modalities = described["modalities"]
        ours = _drawn(stats, modalities, raw[f"{name}.component"].numpy(), np.random.default_rng(seed))
        for side in ("input", "target"):
            theirs = raw[f"{name}.{side}"].numpy().astype(np.int64)
            for column, modality in enumerate(modalities):
                limit = min(stats["max_tokens"][modality], stats[f"num_{side}_tokens"])
                label = f"{name} {side} {modality}"
                yield from _alike(label, ours[side][:, column], theirs[:, column], limit)


def _drawn(
    stats: dict, modalities: list[str], components: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Twice as many draws as the reference, with its own components, so that only the Dirichlet draws are compared."""
    limits = [stats["max_tokens"][modality] for modality in modalities]
    mixture = stats["alphas"]["alphas_mixture"]
    inputs, targets = [], []
    for component in np.tile(components, 2):
        alphas = {
            side: [mixture[name][f"{side}_alphas"][component] for name in modalities] for side in ("input", "target")
        }
        drawn = draw_budgets(stats["num_input_tokens"], alphas["input"], limits, policy="clamp", rng=rng)
        room = [limit - number for limit, number in zip(limits, drawn, strict=True)]
        inputs.append(drawn)
        targets.append(draw_budgets(stats["num_target_tokens"], alphas["target"], room, policy="clamp", rng=rng))
    return {"input": np.array(inputs), "target": np.array(targets)}


def _alike(label: str, ours: np.ndarray, theirs: np.ndarray, limit: int) -> Iterator[Check]:
    # Targets of tracks are rare: 3 % of their mean is below two standard errors of the fixture itself.
    noise = 3 * np.hypot(theirs.std() / len(theirs) ** 0.5, ours.std() / len(ours) ** 0.5)
    scale = max(theirs.mean(), noise / 0.03, 1e-9)
    yield Check(f"{label}: mean", abs(ours.mean() - theirs.mean()) / scale, 0.03)
    difference = np.abs(np.quantile(ours, _QUANTILES) - np.quantile(theirs, _QUANTILES)).max()
    yield Check(f"{label}: quantiles (share of the budget)", max(0.0, difference - 1) / limit, 0.05)
    # 0 against 1 token is rounding of the published float32 draws.
    statistic = ks_2samp(np.maximum(ours, 1), np.maximum(theirs, 1)).statistic
    yield Check(f"{label}: Kolmogorov-Smirnov", float(statistic), 0.03)
