import json
import shutil

import numpy as np
import pytest

from egom2p.data.clips.clip_alignment import ClipConfig, cut_clips, plan_clips
from egom2p.data.clips.video_files import write_video
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


def test_what_a_file_is_that_no_converter_reads(tmp_path):
    (tmp_path / "a.mcap").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.mcap: found a file of suffix '\.mcap', wanted one of the formats"):
        detect_format(tmp_path / "a.mcap")
    with pytest.raises(ValueError, match=r"b\.mcap: found no such file or folder"):
        detect_format(tmp_path / "b.mcap")


def _shifted_sequence(real_data_dir, folder, *, times_us):
    """The MPS sample at another time, in the layout of newer data sets."""
    source = real_data_dir / "aria_mps_sample"
    for file, column, target in (
        ("trajectory/closed_loop_trajectory.csv", 1, "mps/slam/closed_loop_trajectory.csv"),
        ("eye_gaze/eyegaze.csv", 0, "mps/eye_gaze/general_eye_gaze.csv"),
    ):
        header, *rows = [line.split(",") for line in (source / file).read_text().splitlines()]
        assert header[column] == "tracking_timestamp_us"
        for row in rows:
            row[column] = str(int(row[column]) + times_us)
        path = folder / target
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(",".join(row) for row in [header, *rows]))
    lines = [json.loads(line) for line in (source / "trajectory/online_calibration.jsonl").read_text().splitlines()]
    for line in lines:
        line["tracking_timestamp_us"] = str(int(line["tracking_timestamp_us"]) + times_us)
    text = "\n".join(map(json.dumps, lines))
    (folder / "mps/slam/online_calibration.jsonl").write_text(text)


def test_several_aria_sequences_are_several_recordings(real_data_dir, tmp_path, capsys):
    root = tmp_path / "root"
    for number, name in enumerate(("P0001", "walk/recording_head", "walk/recording_lwrist")):
        _shifted_sequence(real_data_dir, root / name, times_us=number * 1_000_000_000)
    (root / "P0003_quest").mkdir()
    (root / "P0003_quest" / "headset_trajectory.csv").write_text("x")
    (root / "P0001" / "video.vrs").write_text("x")
    (root / ".cache").mkdir()
    shutil.copy(root / "P0001/mps/slam/closed_loop_trajectory.csv", root / ".cache")
    folders = convert(root, tmp_path / "out")
    assert [folder.name for folder in folders] == ["P0001", "walk_recording_head", "walk_recording_lwrist"]
    shown = capsys.readouterr().err
    assert "P0001/video.vrs" in shown and "P0003_quest/ (1 files)" in shown
    alone = convert(root / "P0001", tmp_path / "alone", name="sample")
    reader, own = PlainFolderReader(tmp_path / "out"), PlainFolderReader(alone[0].parent).read(0)
    for number in range(3):
        found = reader.read(number)
        for name in ("camera", "gaze"):
            stream, wanted = found.streams[name], own.streams[name]
            np.testing.assert_allclose(stream.times_s, wanted.times_s + number * 1000, atol=1e-9)
            np.testing.assert_allclose(stream.values[stream.is_valid], wanted.values[wanted.is_valid], atol=1e-9)
    with pytest.raises(ValueError, match="found 3 sequences; one name"):
        convert(root, tmp_path / "out", name="x")


def test_files_of_two_sequences_in_one_are_refused(real_data_dir, tmp_path):
    _shifted_sequence(real_data_dir, tmp_path / "seq", times_us=0)
    (tmp_path / "seq" / "other").mkdir()
    shutil.copy(tmp_path / "seq/mps/eye_gaze/general_eye_gaze.csv", tmp_path / "seq" / "other")
    with pytest.raises(ValueError, match=r"general_eye_gaze\.csv of several sequences"):
        convert(tmp_path / "seq", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ("gaze", "gaze of Aria Gen 2; wanted that of Gen 1, as its cameras"),
        # Poses of a camera that is turned are no poses of Gen 2.
        ("cameras", "the camera would lie on its side"),
        ("picture", "the camera would lie on its side"),
    ],
)
def test_half_of_another_generation_of_aria_is_refused(real_data_dir, tmp_path, sign, words):
    _shifted_sequence(real_data_dir, tmp_path / "seq", times_us=0)
    if sign == "gaze":
        names = ("yaw_rads_cpf", "pitch_rads_cpf", "left_yaw_rads_cpf", "right_yaw_rads_cpf")
        header = ["tracking_timestamp_us", *names, "left_pitch_rads_cpf", "right_pitch_rads_cpf"]
        rows = [[str(149_000_000 + k * 11_111), *["0.1"] * 6] for k in range(100)]
        path = tmp_path / "seq/mps/eye_gaze/general_eye_gaze.csv"
        path.write_text("\n".join(",".join(row) for row in [header, *rows]))
    else:
        path = tmp_path / "seq/mps/slam/online_calibration.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            cameras = line["CameraCalibrations"]
            if sign == "cameras":
                cameras[0]["Label"] = "slam-front-left"
            else:
                cameras[-1]["Projection"]["Params"][1:3] = [1280.0, 960.0]
        path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=rf"seq/mps/.*{words}"):
        convert(tmp_path / "seq", tmp_path / "out")


@pytest.mark.parametrize(
    ("product", "files"),
    [
        ("Pupil Labs Neon", ["gaze ps1.raw", "gaze ps1.time", "info.json"]),
        ("Pupil Labs Cloud", ["gaze.csv", "world_timestamps.csv"]),
        ("Pupil Core", ["info.player.json", "gaze.pldata", "eye0.mp4"]),
        ("HoloAssist", ["Video_pitchshift.mp4"]),
        ("Tobii Glasses 3", ["recording.g3", "gazedata.gz"]),
    ],
)
def test_videos_of_a_product_are_not_taken_for_unrelated_ones(tmp_path, product, files):
    write_video(tmp_path / "rec" / "scene.mp4", np.zeros((60, 16, 16, 3), np.uint8), 30)
    for name in files:
        (tmp_path / "rec" / name).write_text("x")
    with pytest.raises(ValueError, match=f"rec: found .* a recording of {product}, of which its videos alone"):
        convert(tmp_path / "rec", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_beside_videos_are_listed_and_hidden_ones_are_not_there(tmp_path, capsys):
    source = tmp_path / "rec"
    for name in ("a.mp4", "B.MP4"):
        write_video(tmp_path / "made.mp4", np.zeros((60, 16, 16, 3), np.uint8), 30)
        source.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "made.mp4", source / name)
    (source / "._a.mp4").write_bytes(b"x")
    (source / "notes.txt").write_text("x")
    (source / "old").mkdir()
    (source / "old" / "c.mp4").write_text("x")
    assert [folder.name for folder in convert(source, tmp_path / "out")] == ["B", "a"]
    assert "notes.txt, old/ (1 files)" in capsys.readouterr().err
    shutil.copy(tmp_path / "made.mp4", source / "a.mkv")
    with pytest.raises(ValueError, match=r"several recordings called \['a'\]"):
        convert(source, tmp_path / "out")


def test_rgbd_frames_of_two_sequences_are_no_one_recording(real_data_dir, tmp_path):
    frame = (real_data_dir / "rgbd_7scenes_redkitchen" / "frame-000000.color.jpg").read_bytes()
    for name in ("a-000000", "b-000001"):
        (tmp_path / f"{name}.color.jpg").write_bytes(frame)
    with pytest.raises(ValueError, match=r"several sequences \['a-', 'b-'\]"):
        convert(tmp_path, tmp_path / "out")
