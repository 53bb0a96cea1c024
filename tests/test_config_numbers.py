"""Every number of every config says what it may be: negative ones and 0 are refused by key where they mean nothing."""

import dataclasses
import importlib
import math
import pkgutil
import typing

import pytest

import egom2p
from egom2p.config import ConfigError, from_plain

# Angles, shifts, coordinates, layers counted from the end: these may be negative.
SIGNED = {
    "offset_s", "start_s", "cx", "cy", "distortion", "translation", "quaternion_xyzw", "quaternion_wxyz",
    "invalid_values", "body_from_camera", "camera_from_eyes", "layer", "layers", "mean", "guidance", "guidance_weights",
    "ahead_elevation_deg", "head_pitch_deg", "companion_bearing_deg", "companion_elevation_deg",
    "companion_elevation_mean_deg",
}  # fmt: skip
# Where 0 has a meaning: none of it, at once, never, the first.
MAY_BE_0 = {
    "seed", "first_seed", "port", "num_workers", "num_shown", "num_shown_clips", "num_samples", "num_check_clips",
    "num_registers", "num_words", "num_patch_movers", "num_furniture", "baseline_clips", "camera_id", "start",
    "start_step", "size",
    "num_steps", "total_token_budget", "total_tokens", "epochs", "warmup", "lr", "blr", "warmup_start_lr", "min_lr",
    "cooldown", "weight", "sampling_weights", "input_alphas", "target_alphas", "input_dropout", "max_input_tokens",
    "min_input_tokens", "max_target_tokens",
    "min_target_tokens", "drop_path", "dropout", "temperature", "top_k", "top_p",
    "rewrite_fraction",
    "anchor", "overlap_s", "seconds", "box", "penalties", "tolerance", "z_loss", "connector_lr", "new_token_lr",
    "perception_lr", "min_confidence", "min_valid_fraction", "gaze_margin", "cache_gb", "report_every_s", "decay",
    "ema_decay", "code_noise", "dead_code_threshold", "reconstruction_weight", "motion_weight", "path_weight",
    "commitment_weight", "validity_weight", "explained", "weight_decay", "weight_decay_end", "betas", "muon_momentum",
    "embedding_std", "input_embedding_std", "max_frame_offset_s", "max_pose_gap_s", "max_gaze_gap_s",
    "max_track_gap_s",
    "mounts", "mount_noise_m", "max_turn_deg", "offset_m", "columns", "median_deg_s", "median_m_s", "speeds_m_s",
    "min_coverage", "pictures_per_clip", "sheet_pictures", "min_contrast", "skew_s", "fractions", "max_gap_s",
    "cpus", "gpus",
}  # fmt: skip


def configs() -> list[type]:
    modules = [
        entry.name for entry in pkgutil.walk_packages(egom2p.__path__, "egom2p.") if "__main__" not in entry.name
    ]
    held = {kind for name in modules for kind in vars(importlib.import_module(name)).values() if isinstance(kind, type)}
    ours = [kind for kind in held if kind.__module__.startswith("egom2p.") and "__pydantic_config__" in vars(kind)]
    return sorted(ours, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


def filled(hint: object, number: float) -> object:
    """A value of the kind with the number where one belongs; None where there is none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        return number
    if origin in (list, tuple):
        inner = [filled(argument, number) for argument in arguments if argument is not ...]
        return None if None in inner or not inner else inner
    if origin is dict:
        inner = filled(arguments[1], number)
        return None if inner is None else {"a": inner}
    if origin is typing.Literal or dataclasses.is_dataclass(hint):
        return None
    return next((found for argument in arguments if (found := filled(argument, number)) is not None), None)


def refused(kind: type, name: str, value: object) -> bool:
    """Whether this key is named as wrong; others are missing, which is said beside it."""
    try:
        from_plain(kind, {name: value})
    except ConfigError as error:
        return any(f"`{name}" in line and "missing key" not in line for line in str(error).splitlines())
    return False


NUMBERS = [
    (kind, field.name, hint)
    for kind in configs()
    for hints in [typing.get_type_hints(kind)]
    for field in dataclasses.fields(kind)
    for hint in [hints[field.name]]
    if field.init and filled(hint, 1) is not None
]


def test_the_numbers_are_found():
    assert len(NUMBERS) > 300 and {name for _, name, _ in NUMBERS} >= SIGNED


@pytest.mark.parametrize("number", [-1, 0, math.nan, math.inf])
def test_a_number_that_cannot_be_meant_is_refused_by_its_key(number):
    allowed = {-1: SIGNED, 0: SIGNED | MAY_BE_0}.get(number, set()) if math.isfinite(number) else set()
    synthetic = "egom2p.data.recordings.synthetic"  # a world without blinks, jitter, lags and swings is one
    taken = [
        f"{kind.__module__}.{kind.__qualname__}.{name}"
        for kind, name, hint in NUMBERS
        if name not in allowed and not (number == 0 and kind.__module__.startswith(synthetic))
        if not refused(kind, name, filled(hint, number))
    ]
    assert not taken, f"{number} is taken by\n" + "\n".join(taken)
