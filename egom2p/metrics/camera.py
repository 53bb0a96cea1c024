"""Errors of a camera trajectory; also a command that compares two trajectory files.

    python -m egom2p.metrics.camera ESTIMATE REFERENCE --format tum --align sim3 --json
    python -m egom2p.metrics.camera ESTIMATE REFERENCE --estimate-format tum --reference-format euroc

A header that names the columns of a file is obeyed; times in another unit than the format's: `--time-unit`, of
both files, or `--estimate-time-unit` and `--reference-time-unit`.

S poses, paired by index. ATE is the RMSE of position after the named alignment; RPE the RMSE over the motions from
one frame to the next, of their translation (m) and of their rotation angle (degrees).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np

from egom2p.geometry import (
    ALIGNMENTS,
    FORMATS,
    TimeUnit,
    align_poses,
    check_poses,
    frame_to_frame,
    inverse_poses,
    match_times,
    read_trajectory,
    rotation_angle,
)

CAMERA_METRICS = ("ate_m", "rpe_t_m", "rpe_r_deg")


def camera_errors(estimate: np.ndarray, reference: np.ndarray, alignment: str = "sim3") -> dict[str, Any]:
    """Errors of `estimate` (S, 4, 4) against `reference` (S, 4, 4), both world_from_cam in metres.

    ate_m, rpe_t_m   metres; rpe_t_m is measured after alignment, so it feels the scale of sim3
    rpe_r_deg        degrees
    scale            of the alignment (1 unless sim3)
    reference_spread_m   RMS distance of the reference's positions from their mean: an alignment fitted to a head that
                         moves by less than a few centimetres says little, even when `problem` is None
    num_poses        S
    alignment        one of geometry.ALIGNMENTS; `rotation` wants trajectories relative to their first pose
    problem          what the alignment could not determine (None: nothing), e.g. that the reference does not move
    With one pose the two RPEs are None. A pose with NaN raises ValueError.
    """
    estimate, reference = check_poses("estimate", estimate), check_poses("reference", reference)
    found = align_poses(estimate, reference, alignment)
    aligned = found.apply(estimate)
    distances_m = np.linalg.norm(aligned[:, :3, 3] - reference[:, :3, 3], axis=-1)
    rpe_t_m = rpe_r_deg = None
    if len(estimate) > 1:
        error = inverse_poses(frame_to_frame(reference)) @ frame_to_frame(aligned)
        rpe_t_m = _rms(np.linalg.norm(error[:, :3, 3], axis=-1))
        rpe_r_deg = _rms(np.degrees(rotation_angle(error[:, :3, :3])))
    return {
        "ate_m": _rms(distances_m),
        "rpe_t_m": rpe_t_m,
        "rpe_r_deg": rpe_r_deg,
        "scale": found.scale,
        "reference_spread_m": _rms(np.linalg.norm(reference[:, :3, 3] - reference[:, :3, 3].mean(axis=0), axis=-1)),
        "num_poses": len(estimate),
        "alignment": alignment,
        "problem": found.problem,
    }


def compare_files(
    estimate_path: str | Path,
    reference_path: str | Path,
    *,
    file_formats: tuple[str, str],
    alignment: str,
    max_difference_s: float = 0.01,
    time_units: tuple[TimeUnit | None, TimeUnit | None] = (None, None),
) -> dict[str, Any]:
    """`camera_errors` of two trajectory files; poses are paired by time (KITTI, without times, by line).

    file_formats, time_units   of the estimate and of the reference; unit None: the header's, else the format's

    Adds num_estimate and num_reference (poses in the files) and num_unmatched: poses of the shorter file that have no
    partner within `max_difference_s`.
    """
    paths = (estimate_path, reference_path)
    (estimate_times_s, estimate), (reference_times_s, reference) = (
        read_trajectory(path, file_format, time_unit=unit, say="--time-unit")
        for path, file_format, unit in zip(paths, file_formats, time_units, strict=True)
    )
    shorter = min(len(estimate), len(reference))
    counts = {"num_estimate": len(estimate), "num_reference": len(reference)}
    if estimate_times_s is None or reference_times_s is None:
        if len(estimate) != len(reference):
            raise ValueError(
                f"{estimate_path} has {len(estimate)} poses, {reference_path} {len(reference)}; "
                "files without times need as many"
            )
    else:
        pairs = match_times(estimate_times_s, reference_times_s, max_difference_s=max_difference_s)
        estimate, reference = estimate[pairs[0]], reference[pairs[1]]
    if len(estimate) == 0:
        raise ValueError(f"no pose of {estimate_path} is within {max_difference_s} s of one of {reference_path}")
    return camera_errors(estimate, reference, alignment) | counts | {"num_unmatched": shorter - len(estimate)}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code (2: bad input)."""
    parser = argparse.ArgumentParser(prog="python -m egom2p.metrics.camera", description="Errors of a trajectory file.")
    parser.add_argument("estimate", type=Path)
    parser.add_argument("reference", type=Path)
    files = ("estimate", "reference")
    parser.add_argument("--format", choices=FORMATS, default="tum", help="of both files")
    parser.add_argument("--time-unit", choices=get_args(TimeUnit), help="of both; by default the header's or format's")
    for name in files:
        parser.add_argument(f"--{name}-format", choices=FORMATS, help=f"of the {name}, in place of --format")
        parser.add_argument(f"--{name}-time-unit", choices=get_args(TimeUnit), help="likewise")
    parser.add_argument("--align", choices=ALIGNMENTS, default="sim3")
    parser.add_argument("--max-difference", type=float, default=0.01, metavar="SECONDS", help="for pairing by time")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args(arguments)
    try:
        errors = compare_files(
            options.estimate,
            options.reference,
            file_formats=tuple(getattr(options, f"{name}_format") or options.format for name in files),
            alignment=options.align,
            max_difference_s=options.max_difference,
            time_units=tuple(getattr(options, f"{name}_time_unit") or options.time_unit for name in files),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if options.json:
        print(json.dumps(errors))  # noqa: T201
    else:
        print("\n".join(f"{name:18} {'n/a' if value is None else value}" for name, value in errors.items()))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
