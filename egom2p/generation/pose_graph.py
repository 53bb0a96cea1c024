"""Poses of overlapping windows, all at once: every window says how the camera moved, and how sure it is of it.

W windows, n motions of a window, T samples of the whole; a pose or motion changes in six channels, a rotation vector
and metres, in the frame of its own sample.

The motions of a window do not err one by one. A tokenizer codes the slow motion of a clip nearly exactly and drops the
fast, so that errors of neighbours cancel: over a whole window they sum to far less than independent ones would. Weights
by the inverse covariance of the errors know this (generalised least squares), and gain what averaging poses or motions
does not (docs/results/real_video.md). The covariance is measured, by round trips of what is joined already.

The motions of the whole are the unknowns; each window reaches over n of them, so the normal equations are a band that
one Cholesky factor solves. A window that disagrees with the others counts less (Huber).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from scipy.linalg import solveh_banded
from scipy.spatial.transform import Rotation

from egom2p.contracts import AlignedClip, Provenance, Stream, Tokenizer
from egom2p.geometry import frame_to_frame, inverse_poses, poses_from_parts

_ROTATION, _TRANSLATION = slice(0, 3), slice(3, 6)
_ROUNDS, _HUBER, _ENOUGH = 8, 1.5, 1e-7
# Covariances of a few hundred clips are nearly singular; this share of their mean variance is added to each.
_RIDGE = 1e-3
_NUM_CLIPS = 400


@dataclass(frozen=True)
class MotionErrors:
    """Covariance (n, n) of the errors of a window's motions, of any one axis: rotation and translation.

    Only its shape counts; windows are compared with each other, not with the truth.
    """

    rotation: np.ndarray
    translation: np.ndarray

    @staticmethod
    def independent(num_motions: int) -> "MotionErrors":
        """Of windows of which nothing is known: motions are averaged."""
        return MotionErrors(np.eye(num_motions), np.eye(num_motions))

    @staticmethod
    def measured(decoded_BSCC: np.ndarray, true_BSCC: np.ndarray) -> "MotionErrors":
        """From clips and what became of them."""
        pairs = zip(decoded_BSCC, true_BSCC, strict=True)
        errors_Bn6 = np.stack([_between(frame_to_frame(truth), frame_to_frame(decoded)) for decoded, truth in pairs])
        return MotionErrors(_covariance(errors_Bn6[..., _ROTATION]), _covariance(errors_Bn6[..., _TRANSLATION]))


def motion_errors(tokenizer: Tokenizer, poses_TCC: np.ndarray, rate_hz: float, num_samples: int) -> MotionErrors:
    """Of a camera tokenizer, on motion like this: round trips of windows of these poses, which need no truth.

    As good as errors against the truth, and better than those of other motion, where a tokenizer knows one kind alone
    (docs/results/real_video.md).
    """
    last = len(poses_TCC) - num_samples
    starts = np.random.default_rng(0).integers(0, last + 1, min(_NUM_CLIPS, last + 1))
    true_BSCC = poses_TCC[starts[:, None] + np.arange(num_samples)]
    times_s, is_valid = np.arange(num_samples) / rate_hz, np.ones(num_samples, bool)
    streams = [Stream(poses, is_valid, times_s, tokenizer.spec.signal.unit) for poses in true_BSCC]
    where = Provenance("round trips", "windows")
    clips = [AlignedClip("window", {tokenizer.stream: stream}, None, where) for stream in streams]
    return MotionErrors.measured(tokenizer.decode(tokenizer.encode(clips))[0], true_BSCC)


def joined_motions(
    starts: Sequence[int],
    windows: Sequence[np.ndarray],
    is_valid: Sequence[np.ndarray],
    guess_TCC: np.ndarray,
    errors: MotionErrors,
) -> np.ndarray:
    """Poses (T, 4, 4) whose motions agree with those of all windows; the first one is that of the guess.

    starts    number of each window's first sample, increasing
    windows   poses (S, 4, 4) each, in worlds of their own; is_valid (S,) each
    guess     to begin at, and where no window says anything
    """
    motions_TCC = frame_to_frame(guess_TCC)
    groups = _groups(starts, windows, is_valid, errors)
    if not groups:  # no window has two samples in a row that are valid
        return guess_TCC
    for number in range(_ROUNDS):
        residuals = [_between(_at(motions_TCC, group), group.motions) for group in groups]
        trusts = _trusts(groups, residuals) if number else [np.ones(len(group.starts)) for group in groups]
        step_T6 = np.zeros((len(motions_TCC), 6))
        for channel, part in enumerate((_ROTATION, _TRANSLATION)):
            step_T6[:, part] = _solved(len(motions_TCC), groups, residuals, trusts, channel, part)
        motions_TCC = motions_TCC @ _motion(step_T6)
        if np.abs(step_T6).max() < _ENOUGH:
            break
    return np.stack(list(accumulate(motions_TCC, np.matmul, initial=guess_TCC[0])))


@dataclass(frozen=True)
class _Group:
    """Windows of one length whose valid samples are the same: starts (W,), motions (W, n, 4, 4), and the inverse
    covariances (n, n) of rotation and translation, 0 for motions that are not valid."""

    starts: np.ndarray
    motions: np.ndarray
    informations: tuple[np.ndarray, np.ndarray]


def _groups(
    starts: Sequence[int], windows: Sequence[np.ndarray], is_valid: Sequence[np.ndarray], errors: MotionErrors
) -> list[_Group]:
    rows: dict[bytes, list[int]] = {}
    for row, own_is_valid in enumerate(is_valid):
        rows.setdefault(np.asarray(own_is_valid, bool).tobytes(), []).append(row)
    groups = []
    for key, members in rows.items():
        valid_S = np.frombuffer(key, bool)
        is_known_n = valid_S[1:] & valid_S[:-1]
        if is_known_n.any():
            motions = np.stack([frame_to_frame(np.asarray(windows[row], np.float64)) for row in members])
            informations = [
                _information(covariance, is_known_n) for covariance in (errors.rotation, errors.translation)
            ]
            groups.append(_Group(np.array([starts[row] for row in members]), motions, tuple(informations)))
    return groups


def _information(covariance_nn: np.ndarray, is_known_n: np.ndarray) -> np.ndarray:
    """Inverse of the covariance of the motions that are known, in units of its mean variance."""
    known = np.flatnonzero(is_known_n)
    unit = np.trace(covariance_nn) / len(covariance_nn)
    if unit <= 0:  # nothing errs
        covariance_nn, unit = np.eye(len(covariance_nn)), 1.0
    chosen = covariance_nn[np.ix_(known, known)] / unit + _RIDGE * np.eye(len(known))
    found = np.zeros((len(is_known_n), len(is_known_n)))
    found[np.ix_(known, known)] = np.linalg.inv(chosen)
    return found


def _at(motions_TCC: np.ndarray, group: _Group) -> np.ndarray:
    return motions_TCC[group.starts[:, None] + np.arange(group.motions.shape[1])]


def _trusts(groups: Sequence[_Group], residuals: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Weights (W,) in (0, 1] of the windows of each group: Huber's, of their distances in units of the usual one."""
    sizes = []
    for group, residual in zip(groups, residuals, strict=True):
        parts = (residual[..., part] for part in (_ROTATION, _TRANSLATION))
        pairs = zip(parts, group.informations, strict=True)
        sizes.append(
            np.stack([np.einsum("wkc,kl,wlc->w", part, matrix, part, optimize=True) for part, matrix in pairs])
        )
    usual = np.maximum(np.median(np.concatenate(sizes, axis=1), axis=1, keepdims=True), 1e-20)
    return [np.minimum(1.0, _HUBER / np.sqrt(np.maximum((size / usual).mean(axis=0), 1e-12))) for size in sizes]


def _solved(
    length: int,
    groups: Sequence[_Group],
    residuals: Sequence[np.ndarray],
    trusts: Sequence[np.ndarray],
    channel: int,
    part: slice,
) -> np.ndarray:
    """Steps (length, 3) of least squares; 0 where no window says anything."""
    band = np.zeros((max(group.motions.shape[1] for group in groups), length))
    right = np.zeros((length, 3))
    for group, residual, trust in zip(groups, residuals, trusts, strict=True):
        information, count = group.informations[channel], group.motions.shape[1]
        weighted = trust[:, None, None] * np.einsum("kl,wlc->wkc", information, residual[..., part])
        trust_T = np.zeros(length)
        trust_T[group.starts] = trust
        for row in range(count):
            right[group.starts + row] += weighted[:, row]  # starts differ, so no row comes twice
            diagonal = np.diagonal(information, -row)
            band[row] += np.convolve(trust_T, diagonal)[:length]
    band[0] += 1e-9 * max(float(band[0].max()), 1e-30)
    return solveh_banded(band, right, lower=True)


def _between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """What takes motions (..., 4, 4) to others, (..., 6)."""
    change = inverse_poses(start) @ end
    turned = Rotation.from_matrix(change[..., :3, :3].reshape(-1, 3, 3)).as_rotvec()
    return np.concatenate([turned.reshape(*change.shape[:-2], 3), change[..., :3, 3]], axis=-1)


def _motion(change_T6: np.ndarray) -> np.ndarray:
    return poses_from_parts(Rotation.from_rotvec(change_T6[:, _ROTATION]).as_matrix(), change_T6[:, _TRANSLATION])


def _covariance(errors_Bn3: np.ndarray) -> np.ndarray:
    """About 0, all axes alike: clips show the camera from everywhere."""
    rows = np.swapaxes(errors_Bn3, 1, 2).reshape(-1, errors_Bn3.shape[1])
    return rows.T @ rows / len(rows)
