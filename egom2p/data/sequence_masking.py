"""Span masking of text: hidden spans become sentinels on the input side and are spelled out on the target side.

Input  `a S0 d e S1`      the kept tokens, one sentinel for each hidden span
Target `S0 b c S1 f eos`  each sentinel with its span, then eos; the first sentinel is given, the rest is predicted
"""

from typing import Literal, NamedTuple

import numpy as np

from egom2p.contracts import ModalitySpec

KeepScheme = Literal["random", "all", "binary"]


class SequenceParts(NamedTuple):
    """Both sides of one sequence, int32; positions count from 0; `query_ids[i]` stands before `target_ids[i]`."""

    input_ids: np.ndarray
    target_ids: np.ndarray
    query_ids: np.ndarray


def mask_sequence(
    ids: np.ndarray,
    spec: ModalitySpec,
    num_input: int,
    num_target: int,
    scheme: KeepScheme,
    rng: np.random.Generator,
) -> SequenceParts:
    """Keep at most `num_input` input ids (sentinels included) and predict at most `num_target` ids of the rest.

    With no input, or a spec without sentinels, the whole text is one hidden span and nothing of it is input.
    """
    words = spec.words(ids)
    num_keep = min(len(words), num_input)
    if scheme == "random":
        num_keep = int(rng.integers(0, num_keep + 1))
    elif scheme == "binary":
        num_keep *= int(rng.integers(0, 2))
    if num_input == 0 or num_keep == 0 or not spec.sentinel_ids:
        return SequenceParts(np.zeros(0, dtype=np.int32), *_teacher_forced([words], spec, num_target))
    is_kept = np.zeros(len(words), dtype=bool)
    is_kept[rng.choice(len(words), num_keep, replace=False)] = True
    spans = _fit_spans(is_kept, num_input, len(spec.sentinel_ids))
    pieces, start = [], 0
    for sentinel, (first, end) in zip(spec.sentinel_ids, spans, strict=False):
        pieces += [words[start:first], np.array([sentinel])]
        start = end
    pieces.append(words[start:])
    inputs = np.concatenate(pieces).astype(np.int32)
    hidden = [words[first:end] for first, end in spans]
    return SequenceParts(inputs, *_teacher_forced(hidden, spec, num_target))


def _fit_spans(is_kept: np.ndarray, num_input: int, num_sentinels: int) -> list[tuple[int, int]]:
    """Hidden spans (first, end); the shortest kept segments are hidden too until length and sentinels suffice."""
    is_kept = is_kept.copy()
    while True:
        spans = _segments(~is_kept)
        if len(spans) <= num_sentinels and is_kept.sum() + len(spans) <= num_input:
            return spans
        first, end = min(_segments(is_kept), key=lambda segment: segment[1] - segment[0])
        is_kept[first:end] = False


def _segments(is_member: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_member, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _teacher_forced(hidden: list[np.ndarray], spec: ModalitySpec, num_target: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and the tokens before them, cut to `num_target`; nothing hidden gives nothing to predict."""
    if not hidden:
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
    sentinels = spec.sentinel_ids or (spec.pad_id,)
    pieces = [piece for i, span in enumerate(hidden) for piece in (np.array([sentinels[i]]), span)]
    chain = np.concatenate([*pieces, np.array([spec.eos_id])]).astype(np.int32)
    return chain[1 : num_target + 1], chain[:-1][:num_target]
