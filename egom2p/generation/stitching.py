"""Join overlapping windows of one signal into one sequence: pure functions of arrays, window after window.

T samples or frames of the whole sequence, S of one window, n of an overlap, H, W pixels. Windows come in the order of
their starts; each is first *aligned* (brought into the frame or scale of what is there, from the overlap alone), then
the overlap fades from the sequence to the window.

Poses: windows know their own world only; the rigid motion (or similarity) is fitted to whole poses, not to positions,
since a head that stands still during the overlap leaves a rotation fitted to positions undetermined.
Depth: metric, with errors that are factors (the codec is logarithmic), so windows are aligned by a factor, fitted in
the logarithm, and fade geometrically. Chained factors walk away at random; `anchor` pulls each towards 1, the scale the
model believes in. By default windows keep their metres: factors gained nothing where measured (docs/results/drift.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from egom2p.config import NotNegative, strict
from egom2p.contracts import Quantity
from egom2p.generation.pose_graph import fused_poses, placed_windows
from egom2p.geometry import (
    frame_to_frame,
    inverse_poses,
    matrix_from_quaternion,
    mean_rotation,
    nearest_rotation,
    poses_from_parts,
    quaternion_from_matrix,
    rotation_angle,
    slerp,
)

# Below this spread of the overlap's positions a scale would be fitted to noise.
_MIN_SPREAD_M = 0.02
_SMALLEST_DEPTH_M = 1e-3  # 0 means "no depth": a shift must not turn a surface that is very near into nothing


@strict
class StitchConfig:
    """How windows are aligned onto the windows before them.

    camera   se3: rigid, least squares over the poses of the overlap; sim3: the same with scale; one_pose: rigid,
             through the first pose of the overlap alone; motion: the motions from sample to sample are averaged
             instead of the poses, and summed up; graph: all windows at once (`pose_graph`), which gains where
             windows overlap by more than half; none
    depth    scale: one factor per window (least squares in the logarithm); scale_shift: factor and metres (least
             squares of relative errors); none
    anchor   pull of a window's depth scale towards 1, in units of the overlap's evidence: 0 chains the windows,
             large keeps each window's own metres
    """

    camera: Literal["se3", "sim3", "one_pose", "motion", "graph", "none"] = "se3"
    depth: Literal["scale", "scale_shift", "none"] = "none"
    anchor: NotNegative = 1.0


Part = tuple[np.ndarray, np.ndarray]
"""Values (n, ...) and validity (n,) of a part of a stream."""

Report = dict[str, float]
Align = Callable[[Part, Part, Part], tuple[np.ndarray, Report]]
"""(the sequence so far, its part in the overlap, the window) -> values of the aligned window, what the overlap says."""

Blend = Callable[[Part, Part, np.ndarray], Part]
"""(sequence, window, weight of the window (n,)) on the overlap -> what stands there."""


@dataclass
class JoinedStream:
    """A sequence that grows by windows; `end` samples are known.

    reports   one per overlap: `start`, `num_overlap`, and what the aligning says
    """

    length: int
    align: Align
    blend: Blend
    end: int = 0
    reports: list[Report] = field(default_factory=list)
    _values: np.ndarray | None = None
    _is_valid: np.ndarray | None = None

    def add(self, start: int, values: np.ndarray, is_valid: np.ndarray) -> None:
        """Append a window (S, ...) whose first sample is number `start` of the sequence. ValueError for a gap."""
        is_valid = np.asarray(is_valid, bool)
        stop = start + len(values)
        if start > self.end or stop > self.length or stop < self.end:
            raise ValueError(
                f"window {start}..{stop} does not continue a sequence of {self.end} of {self.length} samples"
            )
        if self._values is None:
            self._values = np.zeros((self.length, *values.shape[1:]), values.dtype)
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
        """Values and validity of all that is known."""
        return self.part(0, self.end)


class GraphStream(JoinedStream):
    """Poses that are joined when asked for; until then each window lies where the one before it puts it."""

    def __init__(self, length: int) -> None:
        super().__init__(length, self._place, blend_poses)
        self._windows: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._placements = [np.eye(4)]

    def add(self, start: int, values: np.ndarray, is_valid: np.ndarray) -> None:
        super().add(start, values, is_valid)
        self._windows.append((start, np.asarray(values, np.float64), np.asarray(is_valid, bool)))

    def _place(self, sequence: Part, known: Part, window: Part) -> tuple[np.ndarray, Report]:
        aligned, report = align_poses(sequence, known, window)
        self._placements.append(aligned[0] @ inverse_poses(window[0][0]))
        return aligned, report

    def result(self) -> Part:
        """Values and validity of all samples, from all windows at once."""
        starts, windows, is_valid = (list(column) for column in zip(*self._windows, strict=True))
        values_WSCC, is_valid_WS = np.stack(windows), np.stack(is_valid)
        placed = placed_windows(starts, values_WSCC, is_valid_WS, np.stack(self._placements))
        return fused_poses(starts, placed[:, None] @ values_WSCC, is_valid_WS, self.end)


def joined_stream(quantity: Quantity, length: int, config: StitchConfig) -> JoinedStream:
    """An empty sequence of `length` samples with the rules of a quantity."""
    if quantity.is_relative and config.camera == "graph":
        return GraphStream(length)
    if quantity.is_relative:
        blend = blend_motions if config.camera == "motion" else blend_poses
        return JoinedStream(length, lambda *parts: align_poses(*parts, mode=config.camera), blend)
    if quantity.is_logarithmic:
        return JoinedStream(
            length, lambda *parts: align_depth(*parts, mode=config.depth, anchor=config.anchor), blend_depth
        )
    return JoinedStream(length, align_nothing, blend_pictures if quantity.layout == "picture" else blend_track)


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
    if mode == "motion":
        # Blending motions ends at a pose of its own; the rest of the window is hung onto that one.
        blended, _ = blend_motions(known, (estimate, window[1][: len(estimate)]), fade_in(len(estimate)))
        aligned = blended[-1] @ inverse_poses(estimate[-1]) @ poses
        return aligned, _pose_overlap(reference, aligned[: len(reference)]) | {"scale": scale}
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


def align_depth(
    sequence: Part, known: Part, window: Part, *, mode: str = "scale", anchor: float = 0.0
) -> tuple[np.ndarray, Report]:
    """Depth (S, H, W) metres of the window on the scale of the sequence; 0 stays 0, invalid.

    Report: scale, shift_m, overlap_log (mean |log ratio| on the overlap before aligning), overlap_log_aligned (after).
    """
    del sequence
    depth_m, count = np.asarray(window[0], np.float32), len(known[0])
    both_nHW = (known[0] > 0) & (depth_m[:count] > 0)
    if not both_nHW.any():
        return depth_m, {"scale": 1.0, "shift_m": 0.0}
    wanted, found = known[0][both_nHW].astype(np.float64), depth_m[:count][both_nHW].astype(np.float64)
    scale, shift_m = 1.0, 0.0
    if mode == "scale":
        # Least squares of n (log s - m)^2 + anchor n (log s)^2, with m the mean log ratio: the anchor shrinks m.
        scale = float(np.exp(np.log(wanted / found).mean() / (1 + anchor)))
    elif mode == "scale_shift":
        scale, shift_m = _scale_shift(found, wanted, anchor)
    aligned = np.where(depth_m > 0, np.maximum(scale * depth_m + shift_m, _SMALLEST_DEPTH_M), 0.0).astype(np.float32)
    return aligned, {
        "scale": scale,
        "shift_m": shift_m,
        "overlap_log": float(np.abs(np.log(wanted / found)).mean()),
        "overlap_log_aligned": float(np.abs(np.log(wanted / aligned[:count][both_nHW])).mean()),
    }


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


def blend_motions(sequence: Part, window: Part, weight_n: np.ndarray) -> Part:
    """The sequence's first pose, then motions that fade from its own to the window's, in whatever world each is."""
    if len(weight_n) < 2:
        return np.array(sequence[0], np.float64), sequence[1] | window[1]
    motions = [(frame_to_frame(part[0]), part[1][1:]) for part in (sequence, window)]
    faded, _ = blend_poses(*motions, weight_n[1:])
    poses = [np.asarray(sequence[0][0], np.float64)]
    for motion in faded:
        poses.append(poses[-1] @ motion)
    return np.stack(poses), sequence[1] | window[1]


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


def _scale_shift(found_N: np.ndarray, wanted_N: np.ndarray, anchor: float) -> tuple[float, float]:
    """Scale and metres that take `found` to `wanted` with the least relative squared error, pulled to (1, 0)."""
    # Rows divided by the wanted depth: errors are factors, so a metre counts less the farther away it is.
    design_N2 = np.stack([found_N / wanted_N, 1 / wanted_N], axis=1)
    gram, right = design_N2.T @ design_N2, design_N2.sum(axis=0)
    # A prior as strong as `anchor` overlaps that say (1, 0); the second term keeps one single depth solvable.
    pull = anchor * np.diag(np.diag(gram)) + 1e-12 * np.trace(gram) * np.eye(2)
    scale, shift_m = np.linalg.solve(gram + pull, right + pull @ np.array([1.0, 0.0]))
    if scale <= 0:  # near and far swapped: the overlap says nothing about the window
        return 1.0, 0.0
    return float(scale), float(shift_m)


def _pose_overlap(reference: np.ndarray, aligned: np.ndarray) -> Report:
    if len(reference) == 0:
        return {}
    distance_n = np.linalg.norm(reference[:, :3, 3] - aligned[:, :3, 3], axis=1)
    angle_n = np.degrees(rotation_angle(np.swapaxes(reference[:, :3, :3], 1, 2) @ aligned[:, :3, :3]))
    return {
        "overlap_m": float(np.sqrt(np.square(distance_n).mean())),
        "overlap_deg": float(np.sqrt((angle_n**2).mean())),
    }
