"""Estimates that ignore the input: what any trained model has to beat.

F frames, S samples of a track, H, W pixels.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from egom2p.contracts import AlignedClip, quantity_of_stream
from egom2p.geometry import canonicalise, mean_poses


@dataclass(frozen=True)
class TrainingStatistics:
    """Means over the training split; a field is None where the split lacks the stream.

    mean_frame                (H, W, 3) uint8
    mean_depth_m              (H, W) arithmetic mean over valid pixels of all frames
    geometric_depth_m         (H, W) geometric mean
    mean_gaze                 (2,) over valid samples
    mean_trajectory           (S, 4, 4) mean of the trajectories relative to their first pose
    mean_velocity_m           (3,) mean step from one sample to the next, in the axes of the first camera
    mean_tracks               name of any other track -> (C,) mean over valid samples
    commonest_texts           name of a stream of texts -> the one that most clips have
    """

    num_clips: int
    mean_frame: np.ndarray | None = None
    mean_depth_m: np.ndarray | None = None
    geometric_depth_m: np.ndarray | None = None
    mean_gaze: np.ndarray | None = None
    mean_trajectory: np.ndarray | None = None
    mean_velocity_m: np.ndarray | None = None
    mean_tracks: Mapping[str, np.ndarray] = field(default_factory=dict)
    commonest_texts: Mapping[str, str] = field(default_factory=dict)


def training_statistics(clips: Sequence[AlignedClip], *, max_clips: int | None = None) -> TrainingStatistics:
    """One pass over (evenly spaced) training clips."""
    count = len(clips) if max_clips is None else min(max_clips, len(clips))
    rgb, depth, log_depth, gaze = _Mean(), _Mean(), _Mean(), _Mean()
    trajectories = []
    tracks: dict[str, _Mean] = {}
    texts: dict[str, Counter[str]] = {}
    for index in np.linspace(0, len(clips) - 1, count).astype(int):
        clip = clips[int(index)]
        if "rgb" in clip:
            rgb.add(clip.rgb.astype(np.float64), np.ones(clip.rgb.shape, bool))
        if "depth" in clip:
            is_valid = clip.depth_m > 0
            depth.add(clip.depth_m, is_valid)
            log_depth.add(np.log(np.where(is_valid, clip.depth_m, 1.0)), is_valid)
        if "gaze" in clip:
            is_valid = np.repeat(clip.gaze_is_valid[:, None], 2, axis=1)
            gaze.add(np.where(is_valid, clip.gaze, 0.0), is_valid)
        if "camera" in clip:
            trajectories.append(canonicalise(clip.world_from_cam))
        for name, stream in clip.streams.items():
            if stream.values.dtype.kind == "U":
                texts.setdefault(name, Counter())[str(stream.values[0])] += 1
            elif quantity_of_stream(name).stream is None and stream.values.ndim == 2:
                is_valid = np.repeat(stream.is_valid[:, None], stream.values.shape[1], axis=1)
                tracks.setdefault(name, _Mean()).add(stream.values, is_valid)
    mean_frame, log_depth_m = rgb.value(), log_depth.value()
    poses = np.stack(trajectories) if trajectories else None
    return TrainingStatistics(
        num_clips=count,
        mean_frame=None if mean_frame is None else np.round(mean_frame).astype(np.uint8),
        mean_depth_m=depth.value(),
        geometric_depth_m=None if log_depth_m is None else np.exp(log_depth_m),
        mean_gaze=gaze.value(),
        mean_trajectory=None if poses is None else mean_poses(poses),
        mean_velocity_m=None if poses is None else poses[:, -1, :3, 3].mean(0) / max(poses.shape[1] - 1, 1),
        mean_tracks={name: mean.value() for name, mean in tracks.items() if mean.value() is not None},
        commonest_texts={name: found.most_common(1)[0][0] for name, found in texts.items()},
    )


class _Mean:
    """Mean over the first axis of all arrays added, cell by cell, of valid entries; the overall mean where none is."""

    def __init__(self) -> None:
        self._sum: np.ndarray | float = 0.0
        self._count: np.ndarray | float = 0.0

    def add(self, values: np.ndarray, is_valid: np.ndarray) -> None:
        self._sum = self._sum + np.where(is_valid, values, 0).sum(0, dtype=np.float64)
        self._count = self._count + is_valid.sum(0)

    def value(self) -> np.ndarray | None:
        total = np.sum(self._count)
        if total == 0:
            return None
        return np.where(self._count > 0, self._sum / np.maximum(self._count, 1), np.sum(self._sum) / total)


def baseline_estimates(
    quantity: str, statistics: TrainingStatistics, truth: AlignedClip, *, stream: str = ""
) -> dict[str, np.ndarray]:
    """Label -> estimate in the shape of the clip's stream; only lengths and sizes of `truth` are read.

    stream   name of the stream, for a generic quantity
    """
    if quantity == "depth" and statistics.mean_depth_m is not None:
        num_frames = len(truth.depth_m)
        return {
            "per-pixel mean depth": np.repeat(statistics.mean_depth_m[None], num_frames, axis=0),
            "per-pixel geometric mean depth": np.repeat(statistics.geometric_depth_m[None], num_frames, axis=0),
        }
    if quantity == "gaze" and statistics.mean_gaze is not None:
        num_samples = len(truth.gaze)
        return {
            "mean gaze": np.tile(statistics.mean_gaze, (num_samples, 1)),
            "image centre": np.full((num_samples, 2), 0.5),
        }
    if quantity == "camera" and statistics.mean_trajectory is not None:
        num_samples = len(truth.world_from_cam)
        stationary = np.tile(np.eye(4), (num_samples, 1, 1))
        moving = stationary.copy()
        moving[:, :3, 3] = np.arange(num_samples)[:, None] * statistics.mean_velocity_m
        return {
            "stationary": stationary,
            "mean velocity": moving,
            "mean trajectory": statistics.mean_trajectory[:num_samples],
        }
    if quantity == "rgb" and statistics.mean_frame is not None:
        return {"mean frame": np.repeat(statistics.mean_frame[None], len(truth.rgb), axis=0)}
    if quantity == "generic" and stream in statistics.mean_tracks:
        return {"mean value": np.tile(statistics.mean_tracks[stream], (len(truth.streams[stream].values), 1))}
    if quantity == "text" and stream in statistics.commonest_texts:
        return {"most frequent text": np.array([statistics.commonest_texts[stream]])}
    return {}
