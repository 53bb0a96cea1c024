"""Camera trajectories: positions and motions under an alignment; of long results errors by distance travelled.

S poses.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from egom2p.contracts import AlignedClip, Stream
from egom2p.evaluation.scoring import ALIGNMENT_WORDS, DriftScoring, ProtocolConfig, Scores, Scoring
from egom2p.geometry import canonicalise, mean_poses
from egom2p.metrics.camera import camera_errors
from egom2p.metrics.drift import path_length_m, segment_errors
from egom2p.metrics.result_table import Metric


def _metrics(protocol: ProtocolConfig) -> tuple[Metric, ...]:
    return tuple(metric for name in protocol.camera_alignments for metric in _aligned(name, protocol))


def _aligned(alignment: str, protocol: ProtocolConfig) -> tuple[Metric, ...]:
    words, is_first = ALIGNMENT_WORDS[alignment], alignment == protocol.camera_alignments[0]
    metrics = [Metric(f"ate_m/{alignment}", f"ATE, {alignment}", "m", f"RMSE of positions, {words}", False, is_first)]
    if is_first:
        metrics += [
            Metric(f"rpe_t_m/{alignment}", "RPE-t", "m", f"RMSE of motion over one sample, {words}", decimals=4),
            Metric(f"rpe_r_deg/{alignment}", "RPE-r", "deg", f"RMSE of rotation over one sample, {words}"),
        ]
    return tuple(metrics)


def _score(estimate: np.ndarray, truth: AlignedClip, stream: str, protocol: ProtocolConfig) -> Scores:
    found = {name: _errors(estimate, truth.world_from_cam, name) for name in protocol.camera_alignments}
    values = {f"ate_m/{name}": errors["ate_m"] for name, errors in found.items()}
    first = protocol.camera_alignments[0]
    return values | {f"{metric}/{first}": found[first][metric] for metric in ("rpe_t_m", "rpe_r_deg")}


def _errors(estimate: np.ndarray, truth: np.ndarray, alignment: str) -> dict[str, float]:
    """The rotation-only alignment turns about the origin, which is the first pose only when both start there."""
    if alignment == "rotation":
        estimate, truth = canonicalise(estimate), canonicalise(truth)
    return camera_errors(estimate, truth, alignment)


class _Baselines:
    """No motion; of training clips the mean motion in the axes of the first camera, and the mean trajectory relative to
    the first pose.
    """

    def __init__(self) -> None:
        self._trajectories: list[np.ndarray] = []

    def add(self, stream: Stream) -> None:
        self._trajectories.append(canonicalise(stream.values))

    @cached_property
    def _means(self) -> tuple[np.ndarray, np.ndarray]:
        """Trajectory (S, 4, 4), and step from one sample to the next (3,) metres."""
        poses = np.stack(self._trajectories)
        return mean_poses(poses), poses[:, -1, :3, 3].mean(0) / max(poses.shape[1] - 1, 1)

    def estimates(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        length = shape[0]
        stationary = np.tile(np.eye(4), (length, 1, 1))
        if not self._trajectories:
            return {"stationary": stationary}
        trajectory, velocity_m = self._means
        moving = stationary.copy()
        moving[:, :3, 3] = np.arange(length)[:, None] * velocity_m
        return {"stationary": stationary, "mean velocity": moving, "mean trajectory": trajectory[:length]}


def _comparable(samples: np.ndarray, truth: np.ndarray, is_valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions from the first pose on; the first one is the origin of all."""
    return np.stack([canonicalise(sample) for sample in samples])[:, 1:, :3, 3], canonicalise(truth)[1:, :3, 3]


_DRIFT_METRICS = (
    Metric("translation_percent", "translation", "%", "mean over segments of the lengths named above", False, True, 1),
    Metric("rotation_deg_per_m", "rotation", "deg/m", "mean over the same segments", decimals=2),
    Metric("ate_m", "ATE, first_pose", "m", "RMSE of positions, first poses laid on each other"),
    Metric("ate_se3_m", "ATE, se3", "m", "RMSE of positions, rigidly aligned"),
    Metric("end_percent", "end", "%", "distance of the last positions over the path's length", decimals=1),
    Metric("overlap_m", "overlap", "m", "RMS disagreement of neighbouring windows on their overlap, after aligning"),
    Metric("overlap_deg", "overlap", "deg", "the same, of rotations", decimals=2),
)


def _drift(
    estimate: np.ndarray, truth: np.ndarray, is_valid: np.ndarray, segments_m: Sequence[float], rate_hz: float
) -> Scores:
    """Errors of poses by distance travelled, over the whole, and at the end."""
    first, aligned = (camera_errors(estimate, truth, mode) for mode in ("first_pose", "se3"))
    end_m = float(np.linalg.norm(canonicalise(estimate)[-1, :3, 3] - canonicalise(truth)[-1, :3, 3]))
    length_m = path_length_m(truth)
    return segment_errors(estimate, truth, segments_m) | {
        "ate_m": first["ate_m"],
        "ate_se3_m": aligned["ate_m"],
        "end_percent": 100 * end_m / length_m if length_m > 0 else None,
    }


def _drift_baselines(truth: np.ndarray) -> Mapping[str, np.ndarray]:
    return {"stationary": np.tile(np.eye(4), (len(truth), 1, 1))}


SCORING = Scoring(
    metrics=_metrics,
    score=_score,
    baselines=_Baselines,
    spread_unit="m",
    comparable=_comparable,
    mean=mean_poses,  # the chordal mean of rotations: the mean of matrices is no rotation
    drift=DriftScoring(_DRIFT_METRICS, _drift, _drift_baselines),
)
