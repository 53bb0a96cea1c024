import numpy as np
import pytest

from egom2p.data.clips.clip_alignment import ClipConfig, cut_clips, plan_clips
from egom2p.data.recordings.conversion import convert, detect_format
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.geometry import inverse_poses, pixel_grid, project, unproject


def test_rgbd_frames_become_one_clip(real_data_dir, tmp_path):
    convert(real_data_dir / "rgbd_7scenes_redkitchen", tmp_path)
    recording = PlainFolderReader(tmp_path).read(0)
    assert len(recording.streams["rgb"].values) == 60 and recording.intrinsics.fx == 585
    (clip,) = cut_clips(recording, ClipConfig(height=96, width=96))
    assert sorted(clip.streams) == ["camera", "depth", "rgb"] and clip.depth_m.shape == (16, 96, 96)
    valid = clip.depth_m[clip.depth_m > 0]
    assert 0.8 < np.percentile(valid, 1) < np.median(valid) < 2.5 and len(valid) > 0.85 * clip.depth_m.size
    assert np.linalg.norm(np.diff(clip.world_from_cam[:, :3, 3], axis=0), axis=1).sum() == pytest.approx(
        0.317, abs=0.01
    )


def test_depth_pose_and_intrinsics_of_the_clip_agree(real_data_dir, tmp_path):
    """Depth of the first frame, moved by the poses, meets the depth of the ninth."""
    convert(real_data_dir / "rgbd_7scenes_redkitchen", tmp_path)
    (clip,) = cut_clips(PlainFolderReader(tmp_path).read(0), ClipConfig(height=96, width=96))
    times_s, samples_s = clip.streams["depth"].times_s, clip.streams["camera"].times_s
    first, later = (clip.world_from_cam[np.abs(samples_s - times_s[frame]).argmin()] for frame in (0, 8))
    points = unproject(pixel_grid(clip.intrinsics), clip.depth_m[0], clip.intrinsics)[0][clip.depth_m[0] > 0]
    later_from_first = inverse_poses(later) @ first
    moved = points @ later_from_first[:3, :3].T + later_from_first[:3, 3]
    pixels = np.rint(project(moved, clip.intrinsics)[0]).astype(int)
    is_inside = ((pixels >= 0) & (pixels < 96)).all(axis=1)
    seen = clip.depth_m[8][pixels[is_inside, 1], pixels[is_inside, 0]]
    error = np.abs(seen - moved[is_inside, 2])[seen > 0]
    assert np.median(error) < 0.03


def test_lost_tracking_becomes_invalid_samples(real_data_dir, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in (real_data_dir / "rgbd_7scenes_redkitchen").glob("frame-00000*"):
        (source / path.name).write_bytes(path.read_bytes())
    (source / "frame-000004.pose.txt").write_text("-inf -inf -inf -inf\n" * 4)
    convert(source, tmp_path / "out")
    camera = PlainFolderReader(tmp_path / "out").read(0).streams["camera"]
    assert (~camera.is_valid).nonzero()[0].tolist() == [4]


def test_aria_output_becomes_five_clips_with_the_reference_poses(real_data_dir, tmp_path):
    convert(real_data_dir / "aria_mps_sample", tmp_path, name="walk")
    recording = PlainFolderReader(tmp_path).read(0)
    # Gaze starts 0.7 s before the first pose.
    assert recording.streams["gaze"].times_s[0] == pytest.approx(recording.streams["camera"].times_s[0] - 0.7, abs=1e-3)
    plan = plan_clips(recording, ClipConfig(height=64, width=64))
    assert len(plan.windows) == 5 and plan.windows[0].start_s == pytest.approx(149.20261)
    assert all(window.streams == ("camera", "gaze") for window in plan.windows)
    reference = np.load(real_data_dir / "aria_mps_sample" / "reference_cam2world_30fps.npz")
    for number, clip in enumerate(cut_clips(recording, ClipConfig(height=64, width=64))):
        expected = reference["T_world_camera_opencv"][60 * number : 60 * (number + 1)]
        np.testing.assert_allclose(clip.world_from_cam, expected, atol=1e-5)
        assert clip.gaze_is_valid.all()
    # The wearer walks and looks about the middle of the picture, a little below it.
    assert np.abs(clip.gaze.mean(axis=0) - [0.5, 0.6]).max() < 0.15


def test_a_folder_of_videos_becomes_a_recording_each(real_data_dir, tmp_path):
    folders = convert(real_data_dir / "egom2p_example_data", tmp_path)
    assert sorted(folder.name for folder in folders) == ["dep2rgb_holo", "rgb2dep_h2o"]
    assert len(plan_clips(PlainFolderReader(tmp_path).read(1), ClipConfig(height=64, width=64)).windows) == 1


def test_a_cut_video_is_refused_before_anything_is_written(real_data_dir, tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    content = (real_data_dir / "egom2p_example_data" / "rgb2dep_h2o.mp4").read_bytes()
    (source / "a.mp4").write_bytes(content)
    (source / "b.mp4").write_bytes(content[:5000])
    with pytest.raises(ValueError, match=r"b\.mp4"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_formats_are_listed(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match=r"found \['x\.txt'\], wanted one of the formats"):
        detect_format(tmp_path)
