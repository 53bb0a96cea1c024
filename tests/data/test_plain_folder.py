import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.data.recordings.reader_choice import (
    AnySource,
    PlainFolderSource,
    SyntheticSource,
    open_reader,
    outline,
    recognised,
)
from egom2p.data.recordings.recording_settings import RecordingSettings, read_settings
from egom2p.geometry import inverse_poses, write_tum


@pytest.fixture
def root(tmp_path):
    """One recording, `kitchen`, with every kind of stream."""
    folder = tmp_path / "kitchen"
    (folder / "depth").mkdir(parents=True)
    write_video(folder / "video.mp4", np.full((75, 24, 32, 3), 90, np.uint8), 30)
    for number in range(75):
        stored = np.full((24, 32), 1500 + number, np.uint16)
        stored[0, 0], stored[0, 1] = 0, 65535
        Image.fromarray(stored).save(folder / "depth" / f"{number:06d}.png")
    write_tum(folder / "trajectory.txt", np.arange(75) / 30, _poses(75))
    rows = [f"{i / 60},{0.25 if i != 5 else ''},0.5,{int(i != 9)}" for i in range(150)]
    (folder / "gaze.csv").write_text("\n".join(["timestamps,u,v,valid", *rows]) + "\n")
    (folder / "heart_rate.csv").write_text("\n".join(["time_s,bpm", *(f"{i},{60 + i}" for i in range(4))]))
    return tmp_path


def _poses(count):
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 0, 3] = np.arange(count) / 30
    return poses


def _settings(root, text):
    (root / "kitchen" / "recording.yaml").write_text(text)


def test_every_stream_is_read_with_defaults(root):
    recording = PlainFolderReader(root, dataset="home").read(0)
    assert recording.name == "kitchen" and recording.provenance.dataset == "home"
    assert sorted(recording.streams) == ["camera", "depth", "gaze", "heart_rate", "rgb"]
    depth = recording.streams["depth"].values.read(np.array([3]))
    assert depth[0, 5, 5] == pytest.approx(1.503) and depth[0, 0, 0] == 0 and depth[0, 0, 1] == 0
    np.testing.assert_allclose(recording.streams["depth"].times_s, recording.streams["rgb"].times_s)
    gaze = recording.streams["gaze"]
    assert (~gaze.is_valid).nonzero()[0].tolist() == [5, 9]
    np.testing.assert_allclose(recording.streams["camera"].values, _poses(75), atol=1e-9)
    assert recording.streams["heart_rate"].values.shape == (4, 1)


def test_settings_bring_clocks_units_and_conventions_together(root):
    _settings(
        root,
        """
intrinsics: {width: 32, height: 24, fx: 30, fy: 30, cx: 15.5, cy: 11.5}
rgb: {offset_s: 100.0}
depth: {metres_per_unit: 0.0002}
gaze: {coordinates: pixel, time_unit: ms, offset_s: 0.7}
camera: {maps: cam_from_world, axes: opengl}
caption: cooks
""",
    )
    gaze = root / "kitchen" / "gaze.csv"
    gaze.write_text(gaze.read_text().replace(",0.25,0.5,", ",8.25,12.5,"))
    recording = PlainFolderReader(root).read(0)
    assert recording.streams["rgb"].times_s[0] == 100.0
    assert recording.streams["depth"].values.read(np.array([0]))[0, 5, 5] == pytest.approx(0.3)
    np.testing.assert_allclose(recording.streams["gaze"].times_s[:2], [0.7, 0.7 + 1 / 60000])
    np.testing.assert_allclose(recording.streams["gaze"].values[0], [8.75 / 32, 13.0 / 24])
    expected = inverse_poses(_poses(75)) @ np.diag([1.0, -1.0, -1.0, 1.0])
    np.testing.assert_allclose(recording.streams["camera"].values, expected, atol=1e-9)
    assert recording.intrinsics.fx == 30 and recording.streams["caption"].values.tolist() == ["cooks"]


def test_a_wrong_key_in_the_settings_is_an_error_that_suggests_the_right_one(root):
    _settings(root, "depth: {metres_per_units: 0.001}")
    with pytest.raises(ValueError, match=r"recording\.yaml: unknown key .*metres_per_unit`"):
        PlainFolderReader(root).read(0)


def test_settings_of_the_root_serve_all_recordings(root):
    (root / "recording.yaml").write_text("rgb: {rate_hz: 10}")
    assert PlainFolderReader(root).read(0).streams["rgb"].times_s[1] == pytest.approx(0.1)


def test_nan_in_a_trajectory_names_file_and_row(root):
    path = root / "kitchen" / "trajectory.txt"
    lines = path.read_text().splitlines()
    lines[8] = lines[8].replace(lines[8].split()[1], "nan", 1)
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"trajectory\.txt, line 9: .*nan"):
        PlainFolderReader(root).read(0)


def test_pose_arrays_may_have_gaps_but_no_unmarked_nan(root):
    folder = root / "kitchen"
    (folder / "trajectory.txt").unlink()
    poses = _poses(75)
    poses[7] = np.nan
    is_valid = np.arange(75) != 7
    np.savez(folder / "trajectory.npz", world_from_camera=poses, timestamps=np.arange(75) / 30, valid=is_valid)
    camera = PlainFolderReader(root).read(0).streams["camera"]
    np.testing.assert_array_equal(camera.is_valid, is_valid)
    np.savez(folder / "trajectory.npz", world_from_camera=poses, timestamps=np.arange(75) / 30)
    with pytest.raises(ValueError, match=r"trajectory\.npz: pose 7 has NaN"):
        PlainFolderReader(root).read(0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["timestamps,u,v", "0,0.5,0.5", "0,0.5,0.5"], r"gaze\.csv, line 3: time 0 follows 0"),
        (["timestamps,u,v", "0,0.5,left"], r"gaze\.csv, line 2: found 'left', wanted a number"),
        (["timestamps,u,v", "0,0.5"], r"gaze\.csv, line 2: found 2 columns, wanted 3"),
        (["u,v", "0.5,0.5"], r"gaze\.csv: found columns .*wanted a time column"),
        (["timestamps,a,b", "0,1,2"], r"gaze\.csv: found columns .*wanted `u` and `v`"),
        (["timestamps,u,v"], r"gaze\.csv: found no rows"),
    ],
)
def test_bad_gaze_files_name_file_and_line(root, rows, message):
    (root / "kitchen" / "gaze.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=message):
        PlainFolderReader(root).read(0)


def test_depth_along_the_ray_becomes_depth_along_the_axis(root):
    _settings(
        root,
        "intrinsics: {width: 32, height: 24, fx: 20, fy: 20, cx: 16, cy: 12}\ndepth: {measured_along: ray}",
    )
    depth = PlainFolderReader(root).read(0).streams["depth"].values.read(np.array([0]))[0]
    assert depth[12, 16] == pytest.approx(1.5)
    assert depth[12, 26] == pytest.approx(1.5 / np.sqrt(1 + 0.25), rel=1e-6)


def test_depth_arrays_in_metres_and_time_files(root):
    folder = root / "kitchen"
    for path in (folder / "depth").iterdir():
        path.unlink()
    (folder / "depth").rmdir()
    np.save(folder / "depth.npy", np.full((4, 24, 32), 2.5, np.float32))
    (folder / "depth_timestamps.txt").write_text("0.0\n0.5\n1.0\n1.5\n")
    depth = PlainFolderReader(root).read(0).streams["depth"]
    np.testing.assert_allclose(depth.times_s, [0, 0.5, 1, 1.5])
    (folder / "depth_timestamps.txt").write_text("0.0\n0.5\n")
    with pytest.raises(ValueError, match=r"depth_timestamps\.txt: found 2 times, wanted 4"):
        PlainFolderReader(root).read(0)


def test_a_folder_that_is_itself_a_recording(root):
    assert PlainFolderReader(root / "kitchen").names == ("kitchen",)


def test_what_is_not_there_is_listed(root, tmp_path):
    with pytest.raises(ValueError, match=r"found recordings \['kitchen'\], wanted \['bath'\]"):
        PlainFolderReader(root, names=["bath"])
    (root / "notes").mkdir()
    (root / "notes" / "readme.md").write_text("x")
    with pytest.raises(ValueError, match=r"notes: found \['readme\.md'\], wanted a video"):
        PlainFolderReader(root).read(1)


def test_sources_open_by_kind(root):
    reader = open_reader(PlainFolderSource(kind="plain_folder", root=str(root)), dataset="d")
    assert reader.read(0).provenance.dataset == "d"
    world = {"num_rooms": 1, "duration_s": 2.0, "camera": {"height": 24, "width": 32}}
    reader = open_reader(SyntheticSource(kind="synthetic", world=world), dataset="d")
    whole, outlined = reader.read(0), outline(reader, 0)
    assert not outlined.streams["rgb"].values.any() and whole.streams["rgb"].values.any()
    for name, stream in whole.streams.items():
        assert outlined.streams[name].values.shape == stream.values.shape
        np.testing.assert_array_equal(outlined.streams[name].is_valid, stream.is_valid)
    np.testing.assert_array_equal(outlined.streams["gaze"].values, whole.streams["gaze"].values)


def test_a_root_without_kind_is_recognised_and_what_is_left_is_said(root, tmp_path, capsys):
    (root / "notes.pdf").write_bytes(b"x")
    source = recognised(AnySource(kind="any", root=str(root)))
    assert source == PlainFolderSource(kind="plain_folder", root=str(root))
    said = capsys.readouterr().err
    assert "source.kind=plain_folder" in said and "no reader takes: notes.pdf" in said
    assert open_reader(AnySource(kind="any", root=str(root))).names == ("kitchen",)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"found \[\], wanted a folder of recordings, plain or in one of the formats"):
        recognised(AnySource(kind="any", root=str(tmp_path / "empty")))


def test_the_readme_shows_a_recording_yaml_that_is_accepted(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "README_DATA.md").read_text(encoding="utf-8")
    (tmp_path / "recording.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    settings = read_settings(tmp_path)
    assert settings.caption == "washes a cup" and settings.tracks["heart_rate"].unit == "bpm"
    shown = set(re.findall(r"^(\w+):", (tmp_path / "recording.yaml").read_text(), re.MULTILINE))
    assert shown == set(RecordingSettings.__dataclass_fields__)


def test_poses_of_a_body_become_those_of_its_camera(root):
    """The body moves along x; the camera sits 10 cm above it and looks along the body's x axis."""
    body_from_camera = np.array([[0.0, 0, 1, 0.02], [-1, 0, 0, 0], [0, -1, 0, 0.1], [0, 0, 0, 1]])
    (qx, qy, qz, qw), expected = Rotation.from_matrix(body_from_camera[:3, :3]).as_quat(), _poses(75) @ body_from_camera
    for text in (
        f"camera: {{body_from_camera: {body_from_camera.tolist()}}}",
        f"camera: {{body_from_camera: {body_from_camera.ravel().tolist()}}}",
        f"camera: {{body_from_camera: {{quaternion_xyzw: [{qx}, {qy}, {qz}, {qw}], translation: [0.02, 0, 0.1]}}}}",
        f"camera: {{body_from_camera: {{quaternion_wxyz: [{qw}, {qx}, {qy}, {qz}], translation: [0.02, 0, 0.1]}}}}",
    ):
        _settings(root, text)
        np.testing.assert_allclose(
            PlainFolderReader(root).read(0).streams["camera"].values, expected, atol=1e-9, err_msg=text
        )
    # World from camera moves with the world: the inverse of a body_from_world file, and OpenGL's camera axes.
    _settings(root, f"camera: {{maps: cam_from_world, axes: opengl, body_from_camera: {body_from_camera.tolist()}}}")
    expected = inverse_poses(_poses(75)) @ body_from_camera @ np.diag([1.0, -1.0, -1.0, 1.0])
    np.testing.assert_allclose(PlainFolderReader(root).read(0).streams["camera"].values, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]", r"body_from_camera: pose 0 has no rotation"),
        ("[1, 0, 0]", r"body_from_camera: found .*wanted 4 rows of 4"),
        ("[[1, 0], [0, 1, 0], [0, 0, 1]]", r"body_from_camera: found .*wanted 4 rows of 4"),
        ("{quaternion_xyzw: [1, 1, 0, 0]}", "wanted length 1"),
        ("{translation: [1, 1, 0]}", "wanted one of quaternion_xyzw and quaternion_wxyz"),
    ],
)
def test_a_transform_that_is_none_is_refused(root, text, message):
    _settings(root, f"camera: {{body_from_camera: {text}}}")
    with pytest.raises(ValueError, match=message):
        PlainFolderReader(root).read(0)


def test_the_body_of_a_euroc_drone(root):
    """Ground truth of the body in ns, `T_BS` of its sensor.yaml: 16 numbers, sensor to body."""
    folder = root / "kitchen"
    (folder / "trajectory.txt").unlink()
    sensor = "0.0148655429818, -0.999880929698, 0.00414029679422, -0.0216401454975, 0.999557249008, 0.0149672133247, "
    sensor += "0.025715529948, -0.064676986768, -0.0257744366974, 0.00375618835797, 0.999660727178, 0.00981073058949, "
    sensor += "0.0, 0.0, 0.0, 1.0"
    _settings(root, f"camera: {{offset_s: -1403715273.0, body_from_camera: [{sensor}]}}")
    header = "#timestamp, p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y [], q_RS_z []"
    rows = [f"{1403715273262142976 + k * 33_333_333},{k / 30},2,3,0.6,0.8,0,0" for k in range(75)]
    (folder / "trajectory.csv").write_text("\n".join([header, *rows]))
    camera = PlainFolderReader(root).read(0).streams["camera"]
    np.testing.assert_allclose(camera.times_s, 0.262142976 + np.arange(75) * 0.033333333, atol=1e-12)
    body = Rotation.from_quat([0.8, 0, 0, 0.6]).as_matrix()
    np.testing.assert_allclose(
        camera.values[30, :3, 3], body @ [-0.0216401454975, -0.064676986768, 0.00981073058949] + [1, 2, 3]
    )
    np.testing.assert_allclose(camera.values[0, :3, 2], body @ [0.00414029679422, 0.025715529948, 0.999660727178])


def test_names_count_without_case_and_what_nothing_took_is_listed(root):
    folder = root / "kitchen"
    (folder / "gaze.csv").rename(folder / "Gaze.CSV")
    (folder / "groundtruth.txt").write_text("0 0 0 0 0 0 0 1\n")
    (folder / "._gaze.csv").write_bytes(b"\x00\xb0\x05")
    (folder / ".DS_Store").write_bytes(b"\x00\xb0\x05")
    (folder / "audio.wav").write_bytes(b"x")
    (folder / "imu").mkdir()
    (folder / "rgb_timestamps.txt").write_text("".join(f"{k * 33_333}\n" for k in range(75)))
    _settings(root, "rgb: {time_unit: us}")
    recording = PlainFolderReader(root).read(0)
    assert recording.unused == ("audio.wav", "groundtruth.txt", "imu/")
    assert sorted(recording.streams) == ["camera", "depth", "gaze", "heart_rate", "rgb"]
    assert recording.streams["rgb"].times_s[30] == pytest.approx(0.99999)
    (folder / "gaze.csv").write_text("timestamps,u,v\n0,0,0\n")
    with pytest.raises(ValueError, match=r"found \['Gaze\.CSV', 'gaze\.csv'\], wanted one of them"):
        PlainFolderReader(root).read(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rgb: {time_unit: us}", r"rgb\.time_unit has no effect: there is no rgb_timestamps\.txt"),
        ("depth: {time_unit: ms}", r"depth\.time_unit has no effect"),
        ("gaze: {file: eyes.csv}", r"eyes\.csv: recording\.yaml names it, found"),
        ("tracks: {pulse: {unit: bpm}}", r"tracks \['pulse'\] are not there"),
        ("tracks: {heart_rate: {columns: [bmp]}}", r"heart_rate\.csv: found columns .*wanted 'bmp'"),
    ],
)
def test_keys_without_effect_are_refused(root, text, message):
    _settings(root, text)
    with pytest.raises(ValueError, match=message):
        PlainFolderReader(root).read(0)


def test_keys_of_a_stream_that_is_not_there_are_refused_in_the_recordings_own_file(root):
    (root / "kitchen" / "gaze.csv").unlink()
    (root / "recording.yaml").write_text("gaze: {coordinates: pixel}")  # serves recordings with gaze beside this one
    assert "gaze" not in PlainFolderReader(root).read(0).streams
    _settings(root, "gaze: {coordinates: pixel}")
    with pytest.raises(ValueError, match="keys of gaze have no effect"):
        PlainFolderReader(root).read(0)


def test_files_of_a_recording_beside_recordings_are_no_mixture(root):
    (root / "gaze.csv").write_text("timestamps,u,v\n0,0,0\n")
    with pytest.raises(ValueError, match=r"folders that are recordings \['kitchen'\]"):
        PlainFolderReader(root)


def test_a_track_with_a_column_that_is_empty_wants_its_columns_named(root):
    rows = ["timestamp [ns],gyro x,yaw", *(f"{k * 10_000_000},{k}," for k in range(50))]
    (root / "kitchen" / "imu.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"imu\.csv: column 'yaw' has no value.*tracks\.imu\.columns"):
        PlainFolderReader(root).read(0)
    _settings(root, "tracks: {imu: {columns: [gyro x], unit: deg/s}}")
    imu = PlainFolderReader(root).read(0).streams["imu"]
    assert imu.is_valid.all() and imu.times_s[10] == pytest.approx(0.1) and imu.values[7, 0] == 7


def test_recordings_of_the_door(door_dir):
    camera = PlainFolderReader(door_dir / "quaternion_header" / "rec").read(0).streams["camera"]
    np.testing.assert_allclose(camera.values[0], np.eye(4), atol=1e-9)  # w first: 1 0 0 0 is no turn
    assert PlainFolderReader(door_dir / "unused_files" / "rec_groundtruth").read(0).unused == ("groundtruth.txt",)
    for name, streams in (("rec_csv", ["gaze", "rgb"]), ("rec_video", ["rgb"])):
        recording = PlainFolderReader(door_dir / "hidden_files" / name).read(0)
        assert sorted(recording.streams) == streams and recording.unused == ()


def test_names_count_without_case_wherever_a_file_is_looked_up(root):
    (root / "kitchen" / "Recording.YAML").write_text("gaze: {offset_s: 0.5}\n")
    (root / "kitchen" / "RGB_Timestamps.txt").write_text("\n".join(str(number / 15) for number in range(75)))
    recording = PlainFolderReader(root).read(0)
    assert recording.streams["gaze"].times_s[0] == 0.5 and recording.unused == ()
    np.testing.assert_allclose(recording.streams["rgb"].times_s, np.arange(75) / 15)
    (root / "kitchen" / "Recording.YAML").rename(root / "kitchen" / "recording.yml")
    with pytest.raises(ValueError, match=r"recording.yml: wanted it to be called recording.yaml"):
        PlainFolderReader(root).read(0)


def test_times_of_a_picture_stream_that_is_not_there_are_unused(root):
    (root / "kitchen" / "trajectory.txt").unlink()
    (root / "kitchen" / "trajectory_timestamps.txt").write_text("0\n1\n")
    assert PlainFolderReader(root).read(0).unused == ("trajectory_timestamps.txt",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gaze: {offset_s: 0.5}\ngaze: {offset_s: 0.0}\n", "found the key 'gaze' twice"),
        ("rgb: {rate_hz: 0}\n", "rgb.rate_hz.*must be positive"),
        (
            "intrinsics: {width: 32, height: 24, fx: 30, fy: 30, cx: 320, cy: 12}\n",
            r"principal point \(320, 12\) outside 32x24",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(root, text, problem):
    _settings(root, text)
    with pytest.raises(ValueError, match=problem):
        PlainFolderReader(root).read(0)


@pytest.mark.parametrize(("name", "per_second"), [("timestamps_ns", 10**9), ("times", 1), ("time_ms", 1000)])
def test_times_and_validity_of_an_npz_are_found_by_any_of_their_names(root, name, per_second):
    folder = root / "kitchen"
    (folder / "trajectory.txt").unlink()
    stamps = np.arange(75) * 2 / 30 * per_second
    np.savez(folder / "trajectory.npz", world_from_camera=_poses(75), is_valid=np.arange(75) < 40, **{name: stamps})
    (folder / "depth").rename(folder / "old")
    np.savez(folder / "depth.npz", depth=np.full((75, 24, 32), 1.5, np.float32), **{name: stamps})
    streams = PlainFolderReader(root).read(0).streams
    np.testing.assert_allclose(streams["camera"].times_s, np.arange(75) * 2 / 30)
    np.testing.assert_allclose(streams["depth"].times_s, np.arange(75) * 2 / 30)
    assert streams["camera"].is_valid.tolist() == [True] * 40 + [False] * 35


def test_poses_without_times_are_those_of_the_frames_or_need_a_rate(root):
    folder = root / "kitchen"
    (folder / "trajectory.txt").unlink()
    _settings(root, "rgb: {rate_hz: 10}\n")
    np.savez(folder / "trajectory.npz", world_from_camera=_poses(75))
    np.testing.assert_allclose(PlainFolderReader(root).read(0).streams["camera"].times_s, np.arange(75) / 10)
    np.savez(folder / "trajectory.npz", world_from_camera=_poses(50))
    with pytest.raises(ValueError, match="50 poses without times and 75 frames of rgb; say camera.rate_hz"):
        PlainFolderReader(root).read(0)
    _settings(root, "camera: {rate_hz: 20}\n")
    np.testing.assert_allclose(PlainFolderReader(root).read(0).streams["camera"].times_s, np.arange(50) / 20)


def test_a_folder_called_like_a_video_is_a_recording_or_unused_but_no_video(root):
    (root / "kitchen").rename(root / "take.mp4")
    (root / "take.mp4" / "cut.mov").mkdir()
    recording = PlainFolderReader(root).read(0)
    assert recording.name == "take.mp4" and len(recording.streams["rgb"].values) == 75
    assert recording.unused == ("cut.mov/",)
