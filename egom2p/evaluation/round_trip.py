"""The round trip of track tokenizers: what encoding and decoding loses, on clips nobody trained on.

    python -m egom2p.evaluation.round_trip --config cfgs/default/egom2p/evaluation/tracks.yaml

One table for every data set, and one for every class of speed over all of them; rows are trivial estimates, the
tokenizers, and residual tokenizers of which only the first codes are kept: bits against error. S samples.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.config import Count, Natural, NotNegative, run_main, strict, to_plain
from egom2p.contracts import AlignedClip
from egom2p.data.clips.clip_store import ClipStore
from egom2p.geometry import (
    canonicalise,
    inverse_poses,
    matrix_from_quaternion,
    poses_from_parts,
    quaternion_from_matrix,
    slerp,
)
from egom2p.jobs.progress import say
from egom2p.metrics.drift import path_length_m
from egom2p.metrics.measurements import Measured, Method, write_results
from egom2p.metrics.result_table import Metric
from egom2p.tokenizers.pretrained import load_tokenizer
from egom2p.tokenizers.trajectory.track_representations import camera_clip_errors, gaze_clip_errors
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae

_METRICS = {
    "camera": (
        Metric("ate_m", "ATE", "m", "RMS distance of positions in the frame of the first pose", False, True),
        Metric("rpe_m", "RPE-t", "m", "RMS of motion over one sample", decimals=4),
        Metric("rpe_deg", "RPE-r", "deg", "RMS of rotation over one sample"),
    ),
    "gaze": (Metric("gaze_error", "error", "image sizes", "mean distance of valid samples", False, True, 4),),
}
_BATCH = 64


@strict
class RoundTripConfig:
    """Clips, tokenizers, and how far to cut.

    clips        root of aligned clips
    sets         data sets of it, one table each
    tokenizers   label -> folder
    streams      of every residual tokenizer also the first so many codes of each step alone
    speeds_m_s   bounds of classes of mean speed, cameras only
    """

    clips: str
    sets: tuple[str, ...]
    tokenizers: dict[str, str]
    output: str
    streams: tuple[Count, ...] = ()
    speeds_m_s: tuple[NotNegative, ...] = (0.15, 0.4, 0.8)
    max_clips: Count | None = None  # of each set, evenly spread
    seed: Natural = 0
    description: str = ""


def run_round_trip(config: RoundTripConfig) -> Path:
    """Measure and write results.json, results.md (means) and per_clip.csv; returns the folder."""
    tokenizers = {label: load_tokenizer(folder).network for label, folder in config.tokenizers.items()}
    quantities = {network.spec.quantity for network in tokenizers.values()}
    if len(quantities) != 1 or not quantities <= set(_METRICS):
        raise ValueError(f"tokenizers: found {sorted(quantities)}, wanted those of one of {sorted(_METRICS)}")
    quantity = quantities.pop()
    groups: dict[str, list[tuple[AlignedClip, dict[str, dict[str, float]]]]] = {}
    for name in config.sets:
        clips = _clips(config, name, quantity)
        rows = _trivial(clips, quantity)
        for label, network in tokenizers.items():
            rows |= _round_trips(label, network, clips, config.streams)
        for number, clip in enumerate(clips):
            errors = {label: per_clip[number] for label, per_clip in rows.items()}
            groups.setdefault(name, []).append((clip, errors))
            if quantity == "camera":
                groups.setdefault(_speed_class(clip, config.speeds_m_s), []).append((clip, errors))
        say(f"{name}: {len(clips)} clips")
    labels = [*config.sets, *sorted(set(groups) - set(config.sets))]
    measured = [_measured(label, groups[label], quantity) for label in labels]
    folder = Path(config.output)
    write_results(folder, config.description, {"config": to_plain(config)}, measured, seed=config.seed)
    say(f"wrote {folder}/results.md, results.json, per_clip.csv")
    return folder


def _clips(config: RoundTripConfig, name: str, quantity: str) -> list[AlignedClip]:
    store = ClipStore(config.clips, name, streams=[quantity])
    count = min(len(store), config.max_clips or len(store))
    if not count:
        raise ValueError(f"{config.clips}: data set {name} holds no clips")
    return [store[index] for index in np.linspace(0, len(store) - 1, count).round().astype(int)]


def _trivial(clips: Sequence[AlignedClip], quantity: str) -> dict[str, list[dict[str, float]]]:
    """Standing still, and going on as in the first tenth of a second; gaze at the middle."""
    if quantity == "gaze":
        shape = clips[0].streams["gaze"].values.shape
        centre, is_valid = np.full(shape, 0.5), np.ones(len(clips[0].streams["gaze"].values), bool)
        return {"image centre": [gaze_clip_errors(centre, is_valid, clip) for clip in clips]}
    rows: dict[str, list[dict[str, float]]] = {"standing still": [], "constant velocity": []}
    for clip in clips:
        stream = clip.streams["camera"]
        poses = stream.values[stream.is_valid]
        rows["standing still"].append(camera_clip_errors(np.tile(np.eye(4), (len(poses), 1, 1)), poses))
        rows["constant velocity"].append(camera_clip_errors(going_on(poses, 3), poses))
    return rows


def going_on(poses: np.ndarray, lead: int) -> np.ndarray:
    """Poses (S, 4, 4) from the first one on, each the same motion after the one before: that of `lead` samples."""
    lead = max(1, min(lead, len(poses) - 1))
    if len(poses) == 1:
        return np.eye(4)[None]
    motion = inverse_poses(poses[:1])[0] @ poses[lead]
    # The step whose `lead`-th power the motion is: an equal part of its rotation, and sum of r^i t = its translation.
    whole = quaternion_from_matrix(motion[None, :3, :3])
    turn = matrix_from_quaternion(slerp(np.array([[0.0, 0.0, 0.0, 1.0]]), whole, np.array([1 / lead])))[0]
    powers = sum(np.linalg.matrix_power(turn, power) for power in range(lead))
    step = poses_from_parts(turn, np.linalg.solve(powers, motion[:3, 3]))
    found = [np.eye(4)]
    for _ in range(len(poses) - 1):
        found.append(found[-1] @ step)
    return np.stack(found)


def _round_trips(
    label: str, network: Any, clips: Sequence[AlignedClip], streams: Sequence[int]
) -> dict[str, list[dict[str, float]]]:
    network.eval()
    spec = network.spec
    batches = [clips[first : first + _BATCH] for first in range(0, len(clips), _BATCH)]
    ids = [network.encode_clips(batch) for batch in batches]
    kept = [None]
    if isinstance(network, TrajectoryVqVae) and network.config.quantizer.kind == "residual_vq":
        kept += [count for count in streams if count < spec.num_streams]
    rows = {}
    for count in kept:
        tokens = spec.num_tokens if count is None else spec.num_tokens // spec.num_streams * count
        errors: list[dict[str, float]] = []
        for batch, ids_BL in zip(batches, ids, strict=True):
            if count is not None:
                ids_BL = np.where(np.arange(spec.num_tokens) % spec.num_streams < count, ids_BL, -1)
            errors += network.clip_errors(batch, ids_BL)
        rows[f"{label}, {tokens * math.log2(spec.vocab_size):.0f} bits"] = errors
    return rows


def _speed_class(clip: AlignedClip, bounds_m_s: Sequence[float]) -> str:
    stream = clip.streams["camera"]
    poses, times_s = canonicalise(stream.values[stream.is_valid]), stream.times_s[stream.is_valid]
    speed = path_length_m(poses) / max(times_s[-1] - times_s[0], 1e-9)
    low = max((bound for bound in bounds_m_s if speed >= bound), default=None)
    high = min((bound for bound in bounds_m_s if speed < bound), default=None)
    return f"speed {f'from {low:g} ' if low else ''}{f'below {high:g} ' if high else ''}m/s"


def _measured(
    label: str, rows: Sequence[tuple[AlignedClip, Mapping[str, Mapping[str, float]]]], quantity: str
) -> Measured:
    metrics = _METRICS[quantity]
    methods = []
    for name in rows[0][1]:
        values = {metric.key: [_known(errors[name][metric.key]) for _, errors in rows] for metric in metrics}
        is_trivial = name in ("standing still", "constant velocity", "image centre")
        methods.append(Method(name, "baseline" if is_trivial else "model", values))
    keys = [clip.key for clip, _ in rows]
    return Measured(label, quantity, keys, [clip.provenance.recording for clip, _ in rows], metrics, methods)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


if __name__ == "__main__":
    run_main(
        RoundTripConfig,
        run_round_trip,
        default_config="default/egom2p/evaluation/tracks.yaml",
        description="What encoding and decoding tracks loses.",
    )
