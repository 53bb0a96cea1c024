"""What a data set of tokens turned out to be: clips, use of the codes, what encode-decode loses. V vocabulary size."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from egom2p.contracts import Tokenizer
from egom2p.pipelines.token_shards import TokenShards
from egom2p.tokenizers.protocol import mean_errors

# How much worse than the tokenizer's own card the round trip may be before a run says so.
_SUSPICIOUS = 3.0
_LARGER_IS_BETTER = ("psnr_db", "delta1", "validity_accuracy", "exact_round_trip")


@dataclass(frozen=True)
class TokenizeReport:
    """One data set, over all ranks and runs: what lies there, how its codes are used, what its tokenizers lose.

    num_shards, num_finished  shards of the clips, and those whose tokens are there; equal when all is done
    modalities   modality -> {"num_clips", "codes_used", "perplexity", "vocab_size", "fingerprint"}
    round_trip   modality -> encode-decode errors in physical units, means over `num_checked` clips
    absent       modalities with a tokenizer whose stream these clips do not have
    untouched    streams of the clips without a tokenizer
    skipped      key -> why the clip was left out
    clips_per_s, waiting_share   of this rank and run: its rate, and the share of time it waited for clips to be read
    time_shares  of this rank and run: activity -> share of the time of all its threads (reading overlaps encoding)
    """

    dataset: str
    num_clips: int
    modalities: dict[str, dict[str, Any]]
    round_trip: dict[str, dict[str, float]]
    absent: tuple[str, ...]
    untouched: tuple[str, ...]
    num_shards: int = 0
    num_finished: int = 0
    num_checked: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    clips_per_s: float | None = None
    waiting_share: float | None = None
    time_shares: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def is_complete(self) -> bool:
        return self.num_finished == self.num_shards


def merged_report(
    shards: TokenShards,
    tokenizers: Mapping[str, Tokenizer],
    *,
    num_shards: int,
    absent: tuple[str, ...],
    untouched: tuple[str, ...],
    clips_per_s: float | None = None,
    waiting_share: float | None = None,
    time_shares: Mapping[str, float] | None = None,
) -> TokenizeReport:
    """The notes of all finished shards as one report."""
    notes = {number: note for number, note in shards.finished().items() if number < num_shards}
    counts = {folder: np.zeros(size, np.int64) for folder, size in shards.vocab_sizes.items()}
    checks: list[Mapping[str, Any]] = []
    skipped: dict[str, str] = {}
    for number, note in notes.items():
        known = shards.counts(number)
        counts = {folder: counts_V + known.get(folder, 0) for folder, counts_V in counts.items()}
        checks += note["checks"].values()
        skipped |= note["refused"]
    num_clips = sum(note["num_clips"] for note in notes.values())
    per_modality = {name: [check[name] for check in checks if name in check] for name in tokenizers}
    return TokenizeReport(
        dataset=shards.dataset,
        num_clips=num_clips,
        modalities={
            name: _usage(counts[tokenizer.spec.folder], num_clips, tokenizer) for name, tokenizer in tokenizers.items()
        },
        round_trip={name: mean_errors(rows) for name, rows in per_modality.items() if rows},
        absent=absent,
        untouched=untouched,
        num_shards=num_shards,
        num_finished=len(notes),
        num_checked=len(checks),
        skipped=skipped,
        clips_per_s=clips_per_s,
        waiting_share=waiting_share,
        time_shares=dict(time_shares or {}),
    )


def summary(report: TokenizeReport) -> str:
    """The report in a few lines."""
    lines = [f"{report.dataset}: {report.num_clips} clips"]
    if not report.is_complete:
        lines[0] += f", {report.num_finished} of {report.num_shards} shards are finished"
    for name, about in report.modalities.items():
        errors = ", ".join(f"{key} {value:.4g}" for key, value in report.round_trip.get(name, {}).items())
        lines.append(
            f"  {name}: {about['codes_used']:.0f} of {about['vocab_size']} codes used, "
            f"perplexity {about['perplexity']:.1f}" + (f"; encode-decode: {errors}" if errors else "")
        )
    for title, names in (("absent here", report.absent), ("streams without tokenizer", report.untouched)):
        if names:
            lines.append(f"  {title}: {', '.join(names)}")
    if report.skipped:
        key, why = next(iter(report.skipped.items()))
        lines.append(f"  {len(report.skipped)} clips left out, e.g. {key}: {why}")
    if report.clips_per_s:
        lines.append(f"  {report.clips_per_s:.1f} clips/s, waited for clips {100 * (report.waiting_share or 0):.0f} %")
    if report.time_shares:
        shares = (f"{name} {100 * share:.0f} %" for name, share in report.time_shares.items())
        lines.append(f"  time: {', '.join(shares)}")
    return "\n".join(lines)


def suspicions(name: str, tokenizer: Tokenizer, errors: Mapping[str, float]) -> list[str]:
    """Errors much larger than the tokenizer's card promises: it may not be made for clips like these."""
    promised = getattr(tokenizer, "card", {}).get("metrics", {})
    found = []
    for metric in errors.keys() & promised.keys():
        value, usual = errors[metric], promised[metric]
        if metric in _LARGER_IS_BETTER:
            is_odd = value < usual - (6.0 if metric == "psnr_db" else 0.25)
        else:
            is_odd = usual > 0 and value > _SUSPICIOUS * usual and not metric.startswith("representation_")
        if is_odd:
            found.append(f"{name}: {metric} is {value:.4g} here, {usual:.4g} on the tokenizer's own held-out clips")
    return sorted(found)


def _usage(counts_V: np.ndarray, num_clips: int, tokenizer: Tokenizer) -> dict[str, Any]:
    share = counts_V[counts_V > 0] / max(counts_V.sum(), 1)
    return {
        "num_clips": num_clips,
        "codes_used": int((counts_V > 0).sum()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "vocab_size": tokenizer.spec.num_codes,
        "fingerprint": tokenizer.fingerprint,
    }
