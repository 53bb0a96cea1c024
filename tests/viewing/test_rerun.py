"""Rerun recordings: what is in the file, read back by rerun's own command."""

import subprocess
import sys

import numpy as np
import pytest

from egom2p.contracts import Intrinsics, Stream
from egom2p.storage import save_json
from egom2p.viewing.rerun_folders import RerunConfig, write_rerun_recordings
from egom2p.viewing.rerun_recording import Source, write_rerun

pytest.importorskip("rerun", reason="rerun-sdk is not installed (the viz extra)")

CAMERA = Intrinsics(16, 12, 10.0, 10.0, 7.5, 5.5)


def _streams(rng: np.random.Generator) -> dict[str, Stream]:
    poses_S44 = np.tile(np.eye(4), (6, 1, 1))
    poses_S44[:, 0, 3] = np.arange(6) + 5.0
    frame_times_s, times_s = np.arange(4) / 8, np.arange(6) / 12
    gaze_is_valid_S = np.arange(6) != 2
    return {
        "rgb": Stream(rng.integers(0, 255, (4, 12, 16, 3)).astype(np.uint8), np.ones(4, bool), frame_times_s, "uint8"),
        "depth": Stream(np.full((4, 12, 16), 2.0, np.float32), np.ones(4, bool), frame_times_s, "m"),
        "gaze": Stream(np.full((6, 2), 0.5, np.float32), gaze_is_valid_S, times_s, "image"),
        "camera": Stream(poses_S44, np.ones(6, bool), times_s, "world_from_cam"),
        "imu": Stream(rng.normal(size=(6, 3)).astype(np.float32), np.ones(6, bool), times_s, "m/s2"),
    }


def _contents(path) -> str:
    """rerun's own account of a file, after its check of it."""
    subprocess.run([sys.executable, "-m", "rerun", "rrd", "verify", str(path)], check=True, capture_output=True)
    command = [sys.executable, "-m", "rerun", "rrd", "print", "-vvv", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_recording_holds_every_stream_of_every_source(tmp_path):
    streams = _streams(np.random.default_rng(0))
    estimate = {"depth": streams["depth"]}
    sources = {"truth": Source(streams), "model": Source(estimate, context=streams)}
    text = _contents(write_rerun(tmp_path / "clip.rrd", sources, intrinsics=CAMERA))
    for entity in (
        "/truth/rgb",
        "/truth/depth",
        "/truth/rgb/gaze_truth",
        "/world/truth/camera",
        "/world/truth/path",
        "/world/truth/points",
        "/world/truth/gaze",
        "/tracks/imu/truth",
        "/model/depth",
        "/world/model/points",
    ):
        assert f" {entity} " in text or f"- {entity} " in text, entity
    assert "/model/rgb" not in text, "context is looked at, not written again"
    assert "not known" not in text


def test_points_of_depth_lie_where_the_camera_says(tmp_path, monkeypatch):
    """2 m in front of a camera that walked 3 m to the right since its first pose."""
    import rerun as rr

    seen = []
    real = rr.Points3D
    monkeypatch.setattr(rr, "Points3D", lambda points, **rest: seen.append(np.asarray(points)) or real(points, **rest))
    write_rerun(tmp_path / "clip.rrd", {"truth": Source(_streams(np.random.default_rng(0)))}, intrinsics=CAMERA)
    first_P3, last_P3 = seen[0], seen[-1]
    np.testing.assert_allclose(first_P3[:, 2], 2.0, rtol=1e-6)
    np.testing.assert_allclose(first_P3[0], [-1.5, -1.1, 2.0], atol=1e-6)  # pixel (0, 0): -7.5 / 10 * 2, -5.5 / 10 * 2
    np.testing.assert_allclose(
        last_P3[0] - first_P3[0], [4.0, 0, 0], atol=1e-6
    )  # frame 3 at 0.375 s: sample 4 of 12 Hz


def test_a_clip_without_intrinsics_says_what_is_assumed(tmp_path):
    streams = {"depth": _streams(np.random.default_rng(0))["depth"]}
    assert "not known" in _contents(write_rerun(tmp_path / "a.rrd", {"made": Source(streams)}, intrinsics=None))


def test_gaze_without_a_picture_is_a_ray_alone(tmp_path):
    streams = _streams(np.random.default_rng(0))
    alone = {"gaze": streams["gaze"], "camera": streams["camera"]}
    text = _contents(write_rerun(tmp_path / "clip.rrd", {"model": Source(alone)}, intrinsics=CAMERA))
    assert "/world/model/gaze" in text and "/None" not in text


def test_a_folder_that_nothing_wrote_is_named(tmp_path):
    save_json(tmp_path / "other.json", {})
    with pytest.raises(ValueError, match="manifest.json"):
        write_rerun_recordings(RerunConfig(folder=str(tmp_path)))
