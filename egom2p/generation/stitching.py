"""Join overlapping windows of one signal into one sequence: pure functions of arrays, window after window.

T samples or frames of the whole sequence, S of one window, n of an overlap, H, W pixels. Windows come in the order of
their starts; each is first *aligned* (brought into the frame or scale of what is there, from the overlap alone), then
the overlap fades from the sequence to the window.

Poses: windows know their own world only; the rigid motion (or similarity) is fitted to whole poses, not to positions,
since a head that stands still during the overlap leaves a rotation fitted to positions undetermined.
Depth: metric, with errors that are factors (the codec is logarithmic), so windows are aligned by a factor, fitted in
the logarithm, and fade geometrically. Chained factors would walk away at random; `anchor` pulls each towards 1, the
scale the model believes in. By default windows keep their metres: factors gained nothing where measured
(docs/results/drift.md).
A window may begin between two samples of the whole: it is then resampled (poses by slerp, tracks linearly).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.linalg import solveh_banded

from egom2p.config import NotNegative, strict
from egom2p.contracts import Quantity
from egom2p.generation.pose_graph import MotionErrors, joined_motions
from egom2p.geometry import (
    inverse_poses,
    matrix_from_quaternion,
    mean_rotation,
    nearest_rotation,
    poses_from_parts,
    quaternion_from_matrix,
    rotation_angle,
    slerp,
)
from egom2p.storage import array_on_disk

# Below this spread of the overlap's positions a scale would be fitted to noise.
_MIN_SPREAD_M = 0.02
_SAME_SAMPLE = 1e-4  # two clocks agree on a sample that is no further off
_ROUNDS = 10


@strict
class StitchConfig:
    """How windows are aligned onto the windows before them.

    camera   se3: rigid, least squares over the poses of the overlap; sim3: the same with scale; one_pose: rigid,
             through the first pose of the overlap alone; graph: all windows at once, weighed by how their motions
             err (`pose_graph`); none
    depth    scale: one factor per window, of all overlaps at once (robust least squares in the logarithm); none
    anchor   pull of a window's depth scale towards 1, in units of an overlap's evidence: 0 leaves the factors free
             but for their median, which stays 1; large keeps each window's own metres
    """

    camera: Literal["se3", "sim3", "one_pose", "graph", "none"] = "graph"
    depth: Literal["scale", "none"] = "none"
    anchor: NotNegative = 0.1


Part = tuple[np.ndarray, np.ndarray]
"""Values (n, ...) and validity (n,) of a part of a stream."""

Report = dict[str, float]
Align = Callable[[Part, Part, Part], tuple[np.ndarray, Report]]
"""(the sequence so far, its part in the overlap, the window) -> values of the aligned window, what the overlap says."""

Blend = Callable[[Part, Part, np.ndarray], Part]
"""(sequence, window, weight of the window (n,)) on the overlap -> what stands there."""


ErrorsOf = Callable[[np.ndarray], MotionErrors]

Between = Callable[[np.ndarray, np.ndarray, float], Part]
"""Values (S, ...), validity (S,), fraction of a sample -> what stands that far behind each sample but the last."""


@dataclass
class JoinedStream:
    """A sequence that grows by windows; `end` samples are known.

    between   for windows that begin between two samples; None: they cannot
    folder    the values lie in a file without a name below it, not in memory, and vanish with the process
    reports   one per overlap: `start`, `num_overlap`, and what the aligning says
    """

    length: int
    align: Align
    blend: Blend
    between: Between | None = None
    folder: Path | None = None
    end: int = 0
    reports: list[Report] = field(default_factory=list)
    _values: np.ndarray | None = None
    _is_valid: np.ndarray | None = None

    def add(self, start: float, values: np.ndarray, is_valid: np.ndarray) -> None:
        """Append a window (S, ...) whose first sample is number `start` of the sequence. ValueError for a gap."""
        is_valid, first = np.asarray(is_valid, bool), round(start)
        if abs(start - first) > _SAME_SAMPLE:
            if self.between is None:
                raise ValueError(f"a window begins at picture {start:g} of the whole; pictures are not resampled")
            first = math.ceil(start)
            values, is_valid = self.between(values, is_valid, first - start)
        self._append(first, values, is_valid)

    def _append(self, start: int, values: np.ndarray, is_valid: np.ndarray) -> None:
        stop = start + len(values)
        if start > self.end or stop > self.length or stop < self.end:
            raise ValueError(
                f"window {start}..{stop} does not continue a sequence of {self.end} of {self.length} samples"
            )
        if self._values is None:
            shape = (self.length, *values.shape[1:])
            on_disk = self.folder is not None
            self._values = array_on_disk(self.folder, shape, values.dtype) if on_disk else np.zeros(shape, values.dtype)
            self._is_valid = np.zeros(self.length, bool)
        num_overlap = self.end - start
        if self.end > 0:
            sequence, known = self.part(0, self.end), self.part(start, self.end)
            # The whole window is moved, not only its overlap: what comes behind must fit what was moved.
            values, report = self.align(sequence, known, (values, is_valid))
            self.reports.append({"start": start, "num_overlap": num_overlap} | report)
            if num_overlap:
                window = (values[:num_overlap], is_valid[:num_overlap])
                blended, blended_is_valid = self.blend(known, window, fade_in(num_overlap))
                self._values[start : self.end] = blended
                self._is_valid[start : self.end] = blended_is_valid
        self._values[self.end : stop] = values[num_overlap:]
        self._is_valid[self.end : stop] = is_valid[num_overlap:]
        self.end = stop

    def part(self, start: int, stop: int) -> Part:
        """Values and validity between two samples; views, not copies."""
        assert self._values is not None and self._is_valid is not None, "no window was added"
        return self._values[start:stop], self._is_valid[start:stop]

    def result(self) -> Part:
        """Values and validity of all that is known; the last thing that is asked of a sequence."""
        return self.part(0, self.end)


class GraphStream(JoinedStream):
    """Poses that are joined when asked for; until then each window lies where the one before it puts it."""

    def __init__(self, length: int, errors: ErrorsOf | None) -> None:
        super().__init__(length, align_poses, blend_poses, between=poses_between)
        self._errors = errors
        self._windows: list[tuple[int, np.ndarray, np.ndarray]] = []

    def _append(self, start: int, values: np.ndarray, is_valid: np.ndarray) -> None:
        super()._append(start, values, is_valid)
        self._windows.append((start, np.asarray(values, np.float64), is_valid))

    def result(self) -> Part:
        """Values and validity of all samples, from all windows at once."""
        chained, is_valid = self.part(0, self.end)
        starts, windows, are_valid = zip(*self._windows, strict=True)
        if len(windows) == 1:
            return chained, is_valid
        errors = self._errors(chained) if self._errors else MotionErrors.independent(max(map(len, windows)))
        return joined_motions(starts, windows, are_valid, chained, errors), is_valid


class ScaledStream(JoinedStream):
    """Depth whose windows get one factor each when it is asked for, from all pairs of windows that overlap."""

    def __init__(self, length: int, anchor: float, folder: Path | None) -> None:
        super().__init__(length, align_depth, blend_depth, folder=folder)
        self._anchor = anchor
        self._spans: list[tuple[int, int]] = []
        self._recent: list[tuple[int, int, np.ndarray]] = []  # number, start and depth of windows that still overlap
        self._pairs: list[tuple[int, int, float, float]] = []
        self._logs = np.zeros(0)

    def _append(self, start: int, values: np.ndarray, is_valid: np.ndarray) -> None:
        super()._append(start, values, is_valid)
        number, depth_m = len(self._spans), np.asarray(values, np.float32)
        self._recent = [entry for entry in self._recent if entry[1] + len(entry[2]) > start]
        for other, other_start, other_m in self._recent:
            known_m = other_m[start - other_start :]
            ratios = _log_ratios(known_m, depth_m[: len(known_m)])
            if len(ratios):
                self._pairs.append((other, number, float(np.median(ratios)), len(known_m) / len(depth_m)))
        self._recent.append((number, start, depth_m))
        self._spans.append((start, start + len(depth_m)))

    def result(self) -> Part:
        """Values and validity, every frame in its scale.

        Windows fade in the logarithm, so a frame's factor fades between those of its windows, and is applied to what
        is joined: no window has to be kept.
        """
        logs_W = window_scales(len(self._spans), self._pairs, self._anchor)
        for report, log in zip(self.reports, logs_W[1:], strict=True):
            report["scale"] = float(np.exp(log))
        logs_T, end = np.zeros(self.end), 0
        for (start, stop), log in zip(self._spans, logs_W, strict=True):
            shared = slice(start, end)
            logs_T[shared] += fade_in(max(end - start, 0)) * (log - logs_T[shared])
            logs_T[end:stop] = log
            end = stop
        self._logs = logs_T
        depth_m, is_valid = self.part(0, self.end)
        self.scale(depth_m)
        return depth_m, is_valid

    def scale(self, depth_m: np.ndarray) -> None:
        """Bring other depth of the same frames to the scales of the result."""
        for row, log in enumerate(self._logs):
            depth_m[row] *= np.exp(log)


def joined_stream(
    quantity: Quantity,
    length: int,
    config: StitchConfig,
    *,
    errors: ErrorsOf | None = None,
    folder: Path | None = None,
) -> JoinedStream:
    """An empty sequence of `length` samples with the rules of a quantity.

    errors   for `camera: graph`, of windows of poses that move like those given; None: windows are averaged
    folder   for the values of pictures, see `JoinedStream`
    """
    if quantity.is_relative and config.camera == "graph":
        return GraphStream(length, errors)
    if quantity.is_relative:
        return JoinedStream(
            length, lambda *parts: align_poses(*parts, mode=config.camera), blend_poses, between=poses_between
        )
    if quantity.layout == "track":
        return JoinedStream(length, align_nothing, blend_track, between=track_between)
    if quantity.is_logarithmic and config.depth == "scale":
        return ScaledStream(length, config.anchor, folder)
    if quantity.is_logarithmic:
        return JoinedStream(length, align_depth, blend_depth, folder=folder)
    return JoinedStream(length, align_nothing, blend_pictures, folder=folder)


def poses_between(poses: np.ndarray, is_valid: np.ndarray, fraction: float) -> Part:
    """Poses (S - 1, 4, 4) between neighbours; valid where both are."""
    quaternions, positions = quaternion_from_matrix(poses[:, :3, :3]), poses[:, :3, 3]
    rotations = matrix_from_quaternion(slerp(quaternions[:-1], quaternions[1:], np.full(len(poses) - 1, fraction)))
    moved = positions[:-1] + fraction * (positions[1:] - positions[:-1])
    return poses_from_parts(rotations, moved), is_valid[:-1] & is_valid[1:]


def track_between(values: np.ndarray, is_valid: np.ndarray, fraction: float) -> Part:
    """Values (S - 1, C) between neighbours; valid where both are."""
    mixed = values[:-1] + fraction * (values[1:] - values[:-1])
    return mixed.astype(values.dtype), is_valid[:-1] & is_valid[1:]


def fade_in(num_samples: int) -> np.ndarray:
    """Weights (n,) of the later window over an overlap: rising evenly, neither end 0 or 1.

    Each window is least sure at its ends, where it sees the least around a sample; evenly, so that no step remains.
    """
    return np.arange(1, num_samples + 1) / (num_samples + 1)


def align_poses(sequence: Part, known: Part, window: Part, *, mode: str = "se3") -> tuple[np.ndarray, Report]:
    """Poses (S, 4, 4) of the window in the world of the sequence.

    Without overlap the sequence goes on as it moved last. Report: overlap_m, overlap_deg (RMS disagreement there after
    aligning), scale.
    """
    poses, reference = np.asarray(window[0], np.float64), np.asarray(known[0], np.float64)
    if mode == "none":
        return poses, _pose_overlap(reference, poses[: len(reference)]) | {"scale": 1.0}
    if len(reference) == 0:
        last = sequence[0][-2:]  # nothing is shared: the motion of the last sample is the best guess of the next one's
        ahead = last[-1] @ inverse_poses(last[0]) @ last[-1] if len(last) == 2 else last[-1]
        # Three factors of the last pose: rounding would triple from window to window, and overflow after forty.
        ahead = poses_from_parts(nearest_rotation(ahead[:3, :3]), ahead[:3, 3])
        return ahead @ inverse_poses(poses[0]) @ poses, {"scale": 1.0}
    estimate, scale = poses[: len(reference)], 1.0
    if mode == "one_pose":
        rotation = reference[0, :3, :3] @ estimate[0, :3, :3].T
        translation = reference[0, :3, 3] - rotation @ estimate[0, :3, 3]
    else:
        # Rotations alone give the rotation (Horn's fit to positions is undetermined for a head that stands still);
        # then the translation of least squares is the difference of the means.
        rotation = mean_rotation(reference[:, :3, :3] @ np.swapaxes(estimate[:, :3, :3], 1, 2))
        turned_nC = estimate[:, :3, 3] @ rotation.T
        if mode == "sim3":
            scale = _position_scale(turned_nC, reference[:, :3, 3])
        translation = (reference[:, :3, 3] - scale * turned_nC).mean(axis=0)
    aligned = poses_from_parts(rotation @ poses[:, :3, :3], scale * poses[:, :3, 3] @ rotation.T + translation)
    return aligned, _pose_overlap(reference, aligned[: len(reference)]) | {"scale": scale}


def align_depth(sequence: Part, known: Part, window: Part) -> tuple[np.ndarray, Report]:
    """Depth (S, H, W) metres as it is. Report: overlap_log, the mean |log ratio| of neighbours; scale 1."""
    del sequence
    depth_m = np.asarray(window[0], np.float32)
    ratios = _log_ratios(known[0], depth_m[: len(known[0])])
    return depth_m, {"scale": 1.0} | ({"overlap_log": float(np.abs(ratios).mean())} if len(ratios) else {})


def window_scales(num_windows: int, pairs: Sequence[tuple[int, int, float, float]], anchor: float) -> np.ndarray:
    """Logarithms (W,) of the factors that bring windows of depth to one scale; their median is 0.

    pairs    (first, second, log ratio of their depths where they overlap, weight)
    anchor   weight of a window's own scale

    Least squares with Huber's weights, of pairs and of windows' own scales alike: a window that is wrong gives way to
    its neighbours. Pairs reach a few windows ahead, so the normal equations are a band.
    """
    if not pairs:
        return np.zeros(num_windows)
    firsts, seconds = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    wanted, weights = (np.array([pair[column] for pair in pairs]) for column in (2, 3))
    logs, own_trust, pair_trust = np.zeros(num_windows), np.ones(num_windows), np.ones(len(pairs))
    for _ in range(_ROUNDS):
        band, right = np.zeros((int((seconds - firsts).max()) + 1, num_windows)), np.zeros(num_windows)
        strength = weights * pair_trust
        # The tiny ridge keeps windows solvable that no pair and no anchor holds.
        band[0] += max(anchor, 1e-9) * own_trust
        for side, sign in ((firsts, -1.0), (seconds, 1.0)):
            np.add.at(band[0], side, strength)
            np.add.at(right, side, sign * strength * wanted)
        np.add.at(band, (seconds - firsts, firsts), -strength)
        logs = solveh_banded(band, right, lower=True)
        pair_residual = logs[seconds] - logs[firsts] - wanted
        pair_trust = _huber(pair_residual, pair_residual)
        # Of windows' own scales the ratios tell the usual error, not the factors: those are what is being moved.
        own_trust = _huber(logs, wanted / np.sqrt(2))
    return logs - np.median(logs)


def align_nothing(sequence: Part, known: Part, window: Part) -> tuple[np.ndarray, Report]:
    """Signals with a frame of their own stay. Report: overlap, the mean |difference| where both are valid."""
    del sequence
    count = len(known[0])
    is_both = known[1] & window[1][:count]
    if not is_both.any():
        return window[0], {}
    difference = window[0][:count][is_both].astype(np.float64) - known[0][is_both]
    return window[0], {"overlap": float(np.abs(difference).mean())}


def blend_poses(sequence: Part, window: Part, weight_n: np.ndarray) -> Part:
    """Positions linear, rotations by slerp; where only one side is valid, that one."""
    weight_n = _valid_weight(sequence[1], window[1], weight_n)
    quaternions = [quaternion_from_matrix(part[0][:, :3, :3]) for part in (sequence, window)]
    rotations = matrix_from_quaternion(slerp(*quaternions, weight_n))
    start, end = sequence[0][:, :3, 3], window[0][:, :3, 3]
    return poses_from_parts(rotations, start + weight_n[:, None] * (end - start)), sequence[1] | window[1]


def blend_depth(sequence: Part, window: Part, weight_n: np.ndarray) -> Part:
    """Geometric fade; a pixel that one side does not know is the other's."""
    weight = weight_n[:, None, None]
    a, b = (np.where(part[0] > 0, part[0], 1.0) for part in (sequence, window))
    # In the logarithm, as the codec: the arithmetic mean of 1 m and 4 m would favour the farther one.
    mixed = np.exp((1 - weight) * np.log(a) + weight * np.log(b))
    mixed = np.where(sequence[0] <= 0, window[0], np.where(window[0] <= 0, sequence[0], mixed))
    return mixed.astype(np.float32), sequence[1] | window[1]


def blend_track(sequence: Part, window: Part, weight_n: np.ndarray) -> Part:
    """Mean of what is valid (T, C), by weight; valid where the valid sides weigh at least half."""
    valid_weight_n = _valid_weight(sequence[1], window[1], weight_n).reshape(-1, *[1] * (sequence[0].ndim - 1))
    mixed = (1 - valid_weight_n) * sequence[0] + valid_weight_n * window[0]
    # Validity fades like values do: half the weight decides, so it changes sides once in an overlap.
    is_valid_n = (1 - weight_n) * sequence[1] + weight_n * window[1] >= 0.5
    return mixed.astype(sequence[0].dtype), is_valid_n


def blend_pictures(sequence: Part, window: Part, weight_n: np.ndarray) -> Part:
    """Pictures (n, H, W, 3) uint8 fade."""
    weight = weight_n[:, None, None, None]
    mixed = (1 - weight) * sequence[0] + weight * window[0]
    return np.rint(mixed).astype(sequence[0].dtype), sequence[1] | window[1]


def overlap_summary(reports: list[Report]) -> Mapping[str, float]:
    """Mean of every number over the overlaps, and `num_overlaps`."""
    keys = sorted({key for report in reports for key in report} - {"start", "num_overlap"})
    means = {key: float(np.mean([report[key] for report in reports if key in report])) for key in keys}
    return {"num_overlaps": len(reports)} | means


def _valid_weight(sequence_is_valid: np.ndarray, window_is_valid: np.ndarray, weight_n: np.ndarray) -> np.ndarray:
    """Weight of the window, 0 or 1 where only one side is valid."""
    return np.where(
        sequence_is_valid & ~window_is_valid, 0.0, np.where(window_is_valid & ~sequence_is_valid, 1.0, weight_n)
    )


def _position_scale(estimate_nC: np.ndarray, reference_nC: np.ndarray) -> float:
    """Factor of least squares between centred positions; 1 where they do not spread enough to tell."""
    estimate_nC, reference_nC = estimate_nC - estimate_nC.mean(0), reference_nC - reference_nC.mean(0)
    spreads_m = [np.sqrt(np.square(points).sum(1).mean()) for points in (estimate_nC, reference_nC)]
    if min(spreads_m) < _MIN_SPREAD_M:
        return 1.0
    scale = float((estimate_nC * reference_nC).sum() / np.square(estimate_nC).sum())
    return scale if scale > 0 else 1.0


def _log_ratios(known_m: np.ndarray, found_m: np.ndarray) -> np.ndarray:
    """log(known / found) of the pixels that both know."""
    is_both = (known_m > 0) & (found_m > 0)
    return np.log(known_m[is_both].astype(np.float64) / found_m[is_both])


def _huber(residuals: np.ndarray, usual_ones: np.ndarray) -> np.ndarray:
    """Weights in (0, 1], by residuals in units of the usual one (a normal deviate's median is 1.4826 times less)."""
    usual = max(1.4826 * float(np.median(np.abs(usual_ones))), 1e-6)
    return np.minimum(1.0, 1.345 * usual / np.maximum(np.abs(residuals), 1e-12))


def _pose_overlap(reference: np.ndarray, aligned: np.ndarray) -> Report:
    if len(reference) == 0:
        return {}
    distance_n = np.linalg.norm(reference[:, :3, 3] - aligned[:, :3, 3], axis=1)
    angle_n = np.degrees(rotation_angle(np.swapaxes(reference[:, :3, :3], 1, 2) @ aligned[:, :3, :3]))
    return {
        "overlap_m": float(np.sqrt(np.square(distance_n).mean())),
        "overlap_deg": float(np.sqrt((angle_n**2).mean())),
    }
