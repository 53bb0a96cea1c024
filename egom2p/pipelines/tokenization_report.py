"""What a data set of tokens turned out to be: clips, use of the codes, what encode-decode loses. V vocabulary size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.contracts import Tokenizer
from egom2p.data.clip_store import ClipStore
from egom2p.data.shards import ShardSet, shard_pattern


@dataclass(frozen=True)
class TokenizeReport:
    """One data set: what lies on disk, how its codes are used, what its tokenizers lose.

    modalities   modality -> {"num_clips", "codes_used", "perplexity", "vocab_size", "fingerprint"}
    round_trip   modality -> encode-decode errors in physical units over the check clips
    absent       modalities with a tokenizer whose stream these clips do not have
    untouched    streams of the clips without a tokenizer
    num_left_out  clips of the shards on disk that were refused, in earlier runs too
    skipped      key -> why the clip was left out (this run and rank only)
    """

    dataset: str
    num_clips: int
    modalities: dict[str, dict[str, Any]]
    round_trip: dict[str, dict[str, float]]
    absent: tuple[str, ...]
    untouched: tuple[str, ...]
    num_left_out: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def summary(report: TokenizeReport) -> str:
    """The report in a few lines."""
    lines = [f"{report.dataset}: {report.num_clips} clips"]
    for name, about in report.modalities.items():
        errors = ", ".join(f"{key} {value:.4g}" for key, value in report.round_trip.get(name, {}).items())
        lines.append(
            f"  {name}: {about['codes_used']:.0f} of {about['vocab_size']} codes used, "
            f"perplexity {about['perplexity']:.1f}" + (f"; encode-decode: {errors}" if errors else "")
        )
    for title, names in (("absent here", report.absent), ("streams without tokenizer", report.untouched)):
        if names:
            lines.append(f"  {title}: {', '.join(names)}")
    if report.num_left_out:
        lines.append(f"  {report.num_left_out} clips left out: a tokenizer refuses them")
    if report.skipped:
        key, why = next(iter(report.skipped.items()))
        lines.append(f"  {len(report.skipped)} clips skipped, e.g. {key}: {why}")
    return "\n".join(lines)


def measure(
    output: str | Path, store: ClipStore, tokenizers: Mapping[str, Tokenizer], *, num_check_clips: int
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]], set[str]]:
    """Use of codes and encode-decode errors per modality, and the keys that have tokens, of the shards on disk."""
    shards = {
        name: ShardSet(shard_pattern(output, store.dataset, [tokenizer.spec.folder]))
        for name, tokenizer in tokenizers.items()
    }
    keys = set(next(iter(shards.values())).keys)
    usage = {name: _usage(shards[name], tokenizer) for name, tokenizer in tokenizers.items()}
    with_tokens = [index for index, key in enumerate(store.keys) if key in keys]
    check_clips = [store[index] for index in with_tokens[:num_check_clips]]
    return usage, _round_trip(check_clips, tokenizers), keys


def _usage(shards: ShardSet, tokenizer: Tokenizer) -> dict[str, Any]:
    spec = tokenizer.spec
    counts_V = np.zeros(spec.vocab_size, dtype=np.int64)
    for index in range(len(shards)):
        counts_V += np.bincount(shards.read_array(index, spec.folder).reshape(-1), minlength=spec.vocab_size)
    share = counts_V[counts_V > 0] / counts_V.sum()
    return {
        "num_clips": len(shards),
        "codes_used": int((counts_V > 0).sum()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "vocab_size": spec.vocab_size,
        "fingerprint": tokenizer.fingerprint,
    }


def _round_trip(clips: Sequence, tokenizers: Mapping[str, Tokenizer]) -> dict[str, dict[str, float]]:
    """Errors of the tokenizers that can measure themselves; the use of codes over so few clips says nothing."""
    errors = {}
    for name, tokenizer in tokenizers.items():
        network = getattr(tokenizer, "network", None)
        if clips and hasattr(network, "evaluate"):
            measured = network.evaluate(clips)
            errors[name] = {key: measured[key] for key in _without(measured, ("codes_used", "perplexity"))}
    return errors


def _without(names: Iterable[str], left_out: Sequence[str]) -> list[str]:
    return [name for name in names if name not in left_out]
