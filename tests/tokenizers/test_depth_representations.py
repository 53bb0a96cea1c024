"""Metric depth becomes numbers and comes back: exactly, or up to what each way says it forgets."""

import numpy as np
import pytest
from moving_clips import SIZE, moving_clip, with_stream
from tiny_tokenizers import tiny_codec

from egom2p.tokenizers import load_tokenizer, save_tokenizer
from egom2p.tokenizers.video.video_representations import DepthRepresentation, VideoRepresentation

RANGE_M = (0.1, 20.0)
KINDS = ("log_metric", "inverse_per_sequence", "relative_inverse")


def way(kind) -> VideoRepresentation:
    return VideoRepresentation("depth", 1, DepthRepresentation(kind, RANGE_M))


def room(rng) -> np.ndarray:
    return rng.uniform(0.5, 6.0, (4, 16, 16)).astype(np.float32)


def there_and_back(kind, depth_m) -> np.ndarray:
    return way(kind).from_video(way(kind).to_video(depth_m)[None])[0]


def test_metres_come_back_of_the_logarithm(rng):
    depth_m = rng.uniform(*RANGE_M, (4, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(there_and_back("log_metric", depth_m), depth_m, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_stay_in_range_and_near_differs_from_far(kind, rng):
    unit = way(kind).to_video(room(rng)).numpy()
    assert unit.min() >= -1 and unit.max() <= 1 and np.ptp(unit) > 0.5


def test_published_steps_are_those_of_bytes(rng):
    grey = (way("inverse_per_sequence").to_video(room(rng)).numpy() + 1) * 127.5
    np.testing.assert_allclose(grey, np.rint(grey), atol=1e-4)
    assert grey.min() == 0 and grey.max() == 255


@pytest.mark.parametrize(("kind", "error"), [("inverse_per_sequence", 0.01), ("relative_inverse", 0.02)])
def test_aligned_depth_comes_back(kind, error, rng):
    depth_m = room(rng)
    errors = way(kind).own_errors(depth_m)
    assert errors["representation_abs_rel_aligned"] < error
    assert abs(there_and_back(kind, depth_m) / depth_m - 1).mean() > 0.3  # without alignment it is no depth in metres


@pytest.mark.parametrize(
    ("kind", "scale", "shift"), [("inverse_per_sequence", 3.0, 0.2), ("relative_inverse", 3.0, 0.0)]
)
def test_what_is_forgotten_does_not_enter(kind, scale, shift, rng):
    depth_m = room(rng).astype(np.float64)
    other_m = 1 / (scale / depth_m + shift)
    difference = np.abs(way(kind).to_video(depth_m).numpy() - way(kind).to_video(other_m).numpy())
    assert difference.max() <= 2 / 255 + 1e-6  # one step where rounding falls the other way


def test_clamped_depth_is_reported(rng):
    depth_m = room(rng)
    depth_m[0, 0, :8] = 40.0
    errors = way("log_metric").own_errors(depth_m)
    assert errors["representation_outside_range"] == pytest.approx(8 / depth_m.size)
    assert errors["representation_rmse_m"] > 0.5
    inside = way("log_metric").own_errors(room(rng))
    assert inside["representation_outside_range"] == 0 and inside["representation_abs_rel"] < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["unknown", "constant", "hole"])
def test_odd_depth_is_legal(kind, case, rng):
    depth_m = {
        "unknown": np.zeros((2, 8, 8)),
        "constant": np.full((2, 8, 8), 2.0),
        "hole": rng.uniform(1, 4, (2, 8, 8)),
    }[case].astype(np.float32)
    depth_m[0, :4] = 0 if case == "hole" else depth_m[0, :4]
    restored = there_and_back(kind, depth_m)
    assert np.isfinite(restored).all() and (restored > 0).all()
    assert np.isfinite(list(way(kind).own_errors(depth_m).values())).all() == (case != "unknown")


@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_is_part_of_the_card(tmp_path, kind):
    codec = tiny_codec("depth", depth_representation=kind)
    save_tokenizer(codec, tmp_path / "tok")
    tokenizer = load_tokenizer(tmp_path / "tok")
    assert tokenizer.card["config"]["depth_representation"] == kind
    assert tokenizer.spec.conventions == way(kind).conventions
    clip = moving_clip(0)
    depth_m, _ = tokenizer.decode(tokenizer.encode([clip]))
    assert depth_m.shape == (1, 16, SIZE, SIZE) and (depth_m > 0).all()
    errors = tokenizer.network.evaluate([clip, with_stream(clip, "depth", values=np.zeros_like(clip.depth_m))])
    name = "abs_rel" if kind == "log_metric" else "abs_rel_aligned"
    assert {name, f"representation_{name}"} <= errors.keys()


def test_another_representation_is_another_fingerprint(tmp_path):
    prints = [save_tokenizer(tiny_codec("depth", depth_representation=kind), tmp_path / kind) for kind in KINDS]
    assert len(set(prints)) == len(KINDS)
