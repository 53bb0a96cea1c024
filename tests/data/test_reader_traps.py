"""What lies around recordings and in their listings: copies of a system's notes, links, names that lead out or meet."""

import io
import json
import os
import tarfile
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from egom2p.data.clips.video_files import open_video
from egom2p.data.recordings.arctic import ArcticReader
from egom2p.data.recordings.aria_recordings import AriaReader
from egom2p.data.recordings.egocentric_tar import EgocentricTarReader, EgocentricTarSource
from egom2p.data.recordings.egodex import EgoDexReader, EgoDexSource
from egom2p.data.recordings.egogen import EgoGenReader, EgoGenSource
from egom2p.data.recordings.lerobot import LeRobotReader, LeRobotSource
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.data.recordings.reader_choice import FORMATS
from egom2p.data.recordings.reader_parts import lens, listed_pictures, table_of_numbers
from egom2p.data.recordings.recording_formats import files_signature
from egom2p.data.recordings.taco import TacoReader
from egom2p.data.recordings.track_files import read_track
from egom2p.data.recordings.trajectories import TrajectoriesReader, TrajectoriesSource
from egom2p.data.recordings.unscaled_poses import NerfstudioReader, NerfstudioSource
from egom2p.geometry import project, write_tum
from tests.data.field_replicas import numbered_frames, numbered_picture, numbered_video, numbers_seen, walk
from tests.data.video_cases import write_case

_ARIA = "loc1/mps/slam/closed_loop_trajectory.csv"
_MARKERS = [
    (EgoDexReader, ["fold/7.hdf5", "fold/7.mp4"]),
    (EgoGenReader, ["cam/walk/000000.npz"]),
    (ArcticReader, ["raw_seqs/s01/box_grab_01.egocam.dist.npy"]),
    (TacoReader, ["Egocentric_Camera_Parameters/(a, b, c)/20230927_032/egocentric_frame_extrinsic.npy"]),
    (AriaReader, [_ARIA]),
]


@pytest.mark.parametrize(("reader", "files"), _MARKERS, ids=[reader.__name__ for reader, _ in _MARKERS])
def test_notes_of_a_system_are_no_recordings_and_links_lead_to_some(tmp_path, reader, files):
    for file in files:
        path = tmp_path / "data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
    found = reader.find(tmp_path / "data")
    assert len(found) == 1
    (tmp_path / "links").mkdir()
    for path in (tmp_path / "data").iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
        (tmp_path / "links" / path.name / "up").symlink_to(tmp_path / "links")  # and a link that leads up again
    assert reader.find(tmp_path / "links").keys() == found.keys()


def test_what_lies_behind_a_link_is_part_of_what_a_recording_was(tmp_path):
    (tmp_path / "rec").mkdir()
    numbered_picture(tmp_path / "elsewhere/000000.png", 0)
    (tmp_path / "rec/rgb").symlink_to(tmp_path / "elsewhere")
    before = files_signature(tmp_path, [tmp_path / "rec"], is_whole=True)
    numbered_picture(tmp_path / "elsewhere/000001.png", 1)
    assert files_signature(tmp_path, [tmp_path / "rec"], is_whole=True) != before


def test_a_fisheye_without_bend_is_no_pinhole():
    camera = lens("test", "equidistant", (0.0, 0.0, 0.0, 0.0), (640, 480), (200, 200, 320, 240))
    pixel, _ = project(np.array([1.0, 0.0, 1.0]), camera)  # 45 degrees to the right
    assert pixel[0] == pytest.approx(320 + 200 * np.pi / 4)
    assert lens("test", "radtan", (0.0,) * 4, (640, 480), (200, 200, 320, 240)).model == "pinhole"


def _tar(path, members, end=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as held:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            held.addfile(info, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[:end])


def test_clips_of_equal_numbers_and_of_a_damaged_tar_are_not_lost(tmp_path):
    video = numbered_video(tmp_path / "x.mp4", 5).read_bytes()
    (tmp_path / "x.mp4").unlink()
    for worker in ("w1", "w2"):
        _tar(tmp_path / worker / "part000.tar", {"000001.mp4": video})
    _tar(tmp_path / "w3/part000.tar", {"a.mp4": video, "b.mp4": video}, end=512 + len(video) + 100)
    reader = EgocentricTarReader(EgocentricTarSource(kind="egocentric_tar", root=str(tmp_path)))
    assert reader.names == ("w1_part000_000001", "w2_part000_000001", "w3_part000")
    assert len(reader.read(1).streams["rgb"].values) == 5
    with pytest.raises(ValueError, match=r"w3/part000\.tar: not a complete tar"):
        reader.read(2)
    _tar(tmp_path / "w4/part000.tar", {"k.mp4": video})
    _tar(tmp_path / "w5/part000.tar", {"k.mp4": video})
    with pytest.raises(ValueError, match="found a second recording called k"):
        EgocentricTarReader.find(tmp_path)


def test_what_lies_in_a_tar_and_is_no_clip_is_told(tmp_path):
    video = numbered_video(tmp_path / "x.mp4", 5).read_bytes()
    (tmp_path / "x.mp4").unlink()
    _tar(tmp_path / "a.tar", {"k.mp4": video, "k.json": b"{}", "l.MP4": video, "m.mov": video, "../../n.mp4": video})
    reader = EgocentricTarReader(EgocentricTarSource(kind="egocentric_tar", root=str(tmp_path)))
    assert reader.names == (".._.._n", "k") and reader.unused == ["a.tar: l.MP4", "a.tar: m.mov"]
    _tar(tmp_path / "b.tar", {"o.mp4": video})
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / "b.tar", "w") as held:
            link = tarfile.TarInfo("o.mp4")
            link.type, link.linkname = kind, "/etc/hostname"
            held.addfile(link)
        reader = EgocentricTarReader(EgocentricTarSource(kind="egocentric_tar", root=str(tmp_path)))
        with pytest.raises(ValueError, match=r"b\.tar: o\.mp4 is a link"):
            reader.read(reader.names.index("b"))
    with tarfile.open(tmp_path / "b.tar", "w") as held:
        for content in (video, video[:2000]):
            info = tarfile.TarInfo("o.mp4")
            info.size = len(content)
            held.addfile(info, io.BytesIO(content))
    reader = EgocentricTarReader(EgocentricTarSource(kind="egocentric_tar", root=str(tmp_path)))
    with pytest.raises(ValueError, match=r"b\.tar: o\.mp4 is there twice"):
        reader.read(reader.names.index("b"))


@pytest.mark.parametrize(
    ("settings", "scale", "shift", "wanted"),
    [
        ("gaze: {coordinates: pixel}", 1.0, 0.0, "found gaze of 0.9 at most, wanted pixels"),
        ("gaze: {coordinates: pixel, origin: bottom_left}", 1.0, 0.0, "found gaze of 0.9 at most, wanted pixels"),
        ("", 2.0, -1.0, "75% of its valid samples lie outside of the picture"),
        ("", 1.0, 0.0, ""),
    ],
    ids=["shares as pixels", "upwards", "centred", "right"],
)
def test_gaze_of_another_convention_is_refused_or_told(tmp_path, settings, scale, shift, wanted):
    grid = np.linspace(0.1, 0.9, 10)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2) * scale + shift
    rows = [f"{k / 30},{u},{v}" for k, (u, v) in enumerate(points)]
    (tmp_path / "gaze.csv").write_text("\n".join(["timestamps,u,v", *rows, ""]))
    numbered_video(tmp_path / "video.mp4", 90)
    if settings:
        (tmp_path / "recording.yaml").write_text(settings)
        with pytest.raises(ValueError, match=wanted):
            PlainFolderReader(tmp_path).read(0)
        return
    notes = PlainFolderReader(tmp_path).read(0).notes
    assert len(notes) == bool(wanted) and all(wanted in note for note in notes)


def test_depth_of_an_unlikely_distance_is_told_with_the_unit_it_was_read_in(tmp_path):
    (tmp_path / "depth").mkdir()
    for steps, is_told in ((1500, False), (7500, True), (150, True)):
        Image.fromarray(np.full((24, 32), steps, np.uint16)).save(tmp_path / "depth/0.png")
        (tmp_path / "gaze.csv").write_text("timestamps,u,v\n0,0.5,0.5\n0.1,0.5,0.5\n")
        notes = PlainFolderReader(tmp_path).read(0).notes
        assert len(notes) == is_told and all("read as millimetres" in note for note in notes)


def test_a_key_that_begins_as_its_tar_is_found(tmp_path):
    video = numbered_video(tmp_path / "x.mp4", 5).read_bytes()
    (tmp_path / "x.mp4").unlink()
    _tar(tmp_path / "factory1.tar", {"factory1_worker1.mp4": video})
    reader = EgocentricTarReader(EgocentricTarSource(kind="egocentric_tar", root=str(tmp_path)))
    assert reader.names == ("factory1_worker1",) and len(reader.read(0).streams["rgb"].values) == 5


def test_trajectories_of_one_name_and_nanoseconds_taken_for_seconds_are_refused(tmp_path):
    times_s, poses = np.arange(40) / 10, walk(40)
    write_tum(tmp_path / "a.txt", times_s, poses)
    (tmp_path / "a.tum").write_bytes((tmp_path / "a.txt").read_bytes())
    with pytest.raises(ValueError, match="found a second recording called a"):
        TrajectoriesReader.find(tmp_path)
    (tmp_path / "a.tum").unlink()
    rows = np.column_stack([(1.6e18 + times_s * 1e9).astype(np.int64), poses[:, :3].reshape(-1, 12)])
    np.savetxt(tmp_path / "a.txt", rows)
    source = TrajectoriesSource(kind="trajectories", root=str(tmp_path), file_format="matrix")
    with pytest.raises(ValueError, match=r"cannot be meant; the unit is likely ns, say source.time_unit: ns"):
        TrajectoriesReader(source).read(0)


@pytest.mark.parametrize("name", ["camera.csv", "rgb.csv", "rgb_timestamps.csv", "trajectory_timestamps.npz"])
def test_a_table_takes_no_streams_name(tmp_path, name):
    numbered_video(tmp_path / "rec/video.mp4", 5)
    write_tum(tmp_path / "rec/trajectory.txt", np.arange(5) / 30, walk(5))
    if name.endswith(".csv"):
        (tmp_path / "rec" / name).write_text("timestamp,a\n0,1\n0.1,2\n")
    else:
        np.savez(tmp_path / "rec" / name, timestamps=np.arange(2) / 10, values=np.zeros((2, 1)))
    with pytest.raises(ValueError, match=f"{name}: no further track can be called"):
        PlainFolderReader(tmp_path).read(0)


def test_listings_do_not_lead_out_of_their_folder(tmp_path):
    numbered_picture(tmp_path / "secret/1.png", 0)
    (tmp_path / "rec").mkdir()
    for name in ("../secret/1.png", str(tmp_path / "secret/1.png")):
        (tmp_path / "rec/rgb.txt").write_text(f"# time file\n1.0 {name}\n")
        with pytest.raises(ValueError, match=r"rgb.txt, line 2: names .*lies outside of"):
            listed_pictures(tmp_path / "rec/rgb.txt", tmp_path / "rec", stream="rgb")
    (tmp_path / "rec/rgb.txt").unlink()
    numbered_video(tmp_path / "secret/v.mp4", 3)
    (tmp_path / "rec/recording.yaml").write_text("rgb: {file: ../secret/v.mp4}\n")
    with pytest.raises(ValueError, match=r"recording.yaml: names '../secret/v.mp4'"):
        PlainFolderReader(tmp_path, names=["rec"]).read(0)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"fps": None}, "found fps None and features"),
        ({"features": [1]}, r"found fps 30 and features \[1\]"),
        ({"video_path": "../../x-{video_key}.mp4"}, r"names '../../x-ego.mp4', which lies outside"),
        ({"video_path": "{camera}.mp4"}, r"video_path is '\{camera\}.mp4', wanted a name of \['episode_chunk'"),
    ],
)
def test_what_info_json_says_is_looked_at(tmp_path, changes, wanted):
    info = {"codebase_version": "v2.1", "fps": 30, "features": {"ego": {"dtype": "video"}}}
    info |= {"data_path": "data/chunk-000/episode_{episode_index:06d}.parquet", "video_path": "{video_key}.mp4"}
    (tmp_path / "data/chunk-000").mkdir(parents=True)
    (tmp_path / "data/chunk-000/episode_000003.parquet").write_bytes(b"x")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(json.dumps(info | changes))
    reader = LeRobotReader(LeRobotSource(kind="lerobot", root=str(tmp_path)))
    assert reader.names == ("episode_000003",)
    with pytest.raises(ValueError, match=rf"meta/info.json: {wanted}"):
        reader.files(reader.names[0])


def test_an_npz_calls_nan_no_valid_sample_as_a_table_does(tmp_path):
    times_s, valid = np.arange(4) / 30, np.array([1.0, np.nan, 0.0, -1.0])
    np.savez(tmp_path / "a.npz", timestamps=times_s, values=np.ones((4, 2)), valid=valid)
    lines = [f"{t},1,1,{v}" for t, v in zip(times_s, valid, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["timestamp,x,y,valid", *lines]))
    found = [read_track(tmp_path / name).is_valid.tolist() for name in ("a.npz", "a.csv")]
    assert found == [[True, False, False, False]] * 2


@pytest.mark.parametrize(
    ("arrays", "wanted"),
    [
        ({"timestamps": np.arange(4)[:, None] / 30}, r"found timestamps of shape \(4, 1\)"),
        ({"timestamps_ns": np.array([1, 2, 2**40, 2**39], np.uint64)}, r"row 3: time 549755813888 follows"),
        ({"timestamps": np.float64(1)}, r"found timestamps of shape \(\)"),
        ({"timestamps": np.arange(4).astype("datetime64[ms]")}, "found timestamps of shape .* and type datetime64"),
        ({"values": np.array(["a"] * 4)}, "found values of shape .* and type <U1"),
        ({"values": np.ones((4, 2), complex)}, "found values of shape .* and type complex128"),
    ],
)
def test_an_npz_of_something_else_is_named(tmp_path, arrays, wanted):
    usual = {} if "timestamps_ns" in arrays else {"timestamps": np.arange(4) / 30}
    np.savez(tmp_path / "a.npz", **(usual | {"values": np.ones((4, 2))} | arrays))
    with pytest.raises(ValueError, match=rf"a\.npz[:,] {wanted}"):
        read_track(tmp_path / "a.npz")


def test_a_column_that_is_there_twice_is_not_guessed(tmp_path):
    (tmp_path / "a.csv").write_text("timestamp,u,u\n0,1,2\n1,1,2\n")
    with pytest.raises(ValueError, match="found the column 'u' twice"):
        read_track(tmp_path / "a.csv")


def test_poses_at_one_time_are_one_pose_and_a_note(tmp_path):
    (tmp_path / "rec").mkdir()
    write_tum(tmp_path / "rec/trajectory.txt", np.arange(20) // 2 / 30, walk(20))
    recording = PlainFolderReader(tmp_path).read(0)
    camera = recording.streams["camera"]
    assert (np.diff(camera.times_s) > 0).all() and len(camera.values) == 10
    np.testing.assert_allclose(camera.values, walk(20)[::2], atol=1e-9)
    assert recording.notes == ("trajectory.txt: 10 of 20 samples have the time of another and are left out",)


def test_seconds_since_1970_are_no_numbers_of_frames(tmp_path):
    for second in range(5):
        numbered_picture(tmp_path / f"rec/rgb/{1700000000 + second}.png", second)
    with pytest.raises(ValueError, match="which count no frames"):
        PlainFolderReader(tmp_path).read(0)


def test_a_title_in_another_alphabet_is_no_reason_to_refuse_a_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "AAAA"
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in numbered_frames(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert content.count(b"AAAA") == 1
    path.write_bytes(content.replace(b"AAAA", b"K\xfcch"))  # Latin-1, as older cameras write it
    np.testing.assert_array_equal(numbers_seen(open_video(path).read(np.arange(5))), np.arange(5))


def test_names_given_twice_are_one_recording_and_files_of_none_are_told(tmp_path):
    numbered_video(tmp_path / "rec/video.mp4", 5)
    (tmp_path / "notes.txt").write_text("x")
    reader = PlainFolderReader(tmp_path, names=["rec", "rec"])
    assert reader.names == ("rec",) and reader.unused == ["notes.txt"]
    (tmp_path / "data/fold").mkdir(parents=True)
    for name in ("7.hdf5", "7.mp4", "8.hdf5"):  # 8.mp4 was not copied
        (tmp_path / "data/fold" / name).write_bytes(b"x")
    source = EgoDexSource(kind="egodex", root=str(tmp_path / "data"), names=("fold_7", "fold_7"))
    assert EgoDexReader(source).names == ("fold_7",) and EgoDexReader(source).unused == ["fold/8.hdf5"]


@pytest.mark.parametrize("said", ["turned", "wide pixels"])
def test_poses_of_the_picture_as_stored_do_not_meet_a_turned_one(tmp_path, said):
    """A phone's note turns the video upright; its poses and lens stay those of the sensor."""
    path = tmp_path / "rgb/walk.mp4"
    path.parent.mkdir()
    one = 1 << 16
    how = {
        "turned": {"matrix": (0, one, 0, -one, 0, 0, 0, 0, 1 << 30)},
        "wide pixels": {"sample_aspect_ratio": Fraction(4, 3)},
    }
    write_case(path, "h264", range(30), **how[said])
    (tmp_path / "cam").mkdir()
    np.savez(tmp_path / "cam/walk.npz", walk(30))
    with pytest.raises(ValueError, match=r"cam/walk.npz: found a video that says of itself that it is turned"):
        EgoGenReader(EgoGenSource(kind="egogen", root=str(tmp_path))).read(0)
    write_case(path, "h264", range(30))
    assert set(EgoGenReader(EgoGenSource(kind="egogen", root=str(tmp_path))).read(0).streams) == {"camera", "rgb"}


def test_no_format_trips_over_what_is_no_file(tmp_path):
    """Folders with names of files, links to themselves and to nowhere, a pipe: a root is looked at by every format."""
    names = ("gaze.csv", "takes.json", "transforms.json", "a.mcap", "a.r3d", "a.tar", "a.mp4", "rgb.txt", "cameras.txt")
    for name in names:
        (tmp_path / "folders" / name).mkdir(parents=True)
    (tmp_path / "links").mkdir()
    for name in names:
        (tmp_path / "links" / name).symlink_to("nowhere")
    (tmp_path / "links/itself").symlink_to("itself")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/gaze.csv")
    for reader in FORMATS:
        for folder in ("folders", "links", "pipe"):
            reader.find(tmp_path / folder)


_SECONDS = ["2026-01-01_12-00-{:02d}", "20260101_1200{:02d}", "IMG_20260101_1200{:02d}", "PXL_20260101_1200{:02d}123"]
_SECONDS += ["2026-01-01T12:00:{:02d}.500Z", "Screenshot 2026-01-01 at 12.00.{:02d}", "01.01.2026 12.00.{:02d}"]
_SECONDS += ["20260101_1200{:02d}.250"]


@pytest.mark.parametrize("name", _SECONDS)
def test_dates_in_names_are_no_numbers_of_frames(tmp_path, name):
    for number, second in enumerate((7, 8, 9, 31)):
        numbered_picture(tmp_path / f"rec/rgb/{name.format(second)}.png", number)
    with pytest.raises(ValueError, match=r"07.*png: found pictures called by date and second.*wanted rgb.rate_hz"):
        PlainFolderReader(tmp_path).read(0)
    (tmp_path / "rec/recording.yaml").write_text("rgb: {rate_hz: 2}\n")
    rgb = PlainFolderReader(tmp_path).read(0).streams["rgb"]
    np.testing.assert_allclose(rgb.times_s, np.arange(4) / 2)
    np.testing.assert_array_equal(numbers_seen(rgb.values.read(np.arange(4))), np.arange(4))


def test_a_date_that_all_names_share_is_the_recordings(tmp_path):
    for number in (0, 1, 4):
        numbered_picture(tmp_path / f"rec/rgb/20260101_120000_{number:06d}.png", number)
    np.testing.assert_allclose(PlainFolderReader(tmp_path).read(0).streams["rgb"].times_s * 30, [0, 1, 4])


def test_an_underscore_is_in_no_number(tmp_path):
    table, poses = tmp_path / "rec/gaze.csv", tmp_path / "rec/trajectory.txt"
    table.parent.mkdir()
    for rows in ("0_1,0.5,0.5\n", "0.1,0_1,0.5\n"):
        table.write_text("timestamp,u,v\n0,0.5,0.5\n" + rows)
        with pytest.raises(ValueError, match=r"gaze.csv, line 3: found '0_1', wanted a number"):
            PlainFolderReader(tmp_path).read(0)
    table.unlink()
    poses.write_text("0 0 0 0 0 0 0 1\n0.1 0_1 0 0 0 0 0 1\n")
    with pytest.raises(ValueError, match=r"trajectory.txt, line 2: found .*0_1"):
        PlainFolderReader(tmp_path).read(0)
    poses.write_text("0 1\n0.1 0_1\n")
    with pytest.raises(ValueError, match=r"trajectory.txt, sample 2: found .*0_1"):
        table_of_numbers(poses)


@pytest.mark.parametrize(
    ("end", "is_cut"),
    [("0.2,0.51,0.5", True), ("0.2,0.51,0.", True), ("0.2,0.51,0.5\n", False), ("0.2,0.5,0.514", False)],
)
def test_a_number_that_may_have_been_cut_is_told(tmp_path, end, is_cut):
    path = tmp_path / "rec/gaze.csv"
    path.parent.mkdir()
    path.write_text("timestamp,u,v\n0.0,0.5,0.500\n0.1,0.5,0.5001\n" + end)
    notes = PlainFolderReader(tmp_path).read(0).notes
    assert notes == (f"gaze.csv: its last row ends in '{end[9:]}' and no line end, as in a file that was cut",) * is_cut
    path.write_text("timestamp,u,v\n0.0,0.5,0.500\n0.1,0.5")
    with pytest.raises(ValueError, match=r"gaze.csv, line 3: found 2 columns, wanted 3"):
        PlainFolderReader(tmp_path).read(0)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_poses_are_of_the_picture_that_exif_does_not_turn(tmp_path, suffix, orientation):
    """Square pictures: a turn by 90 or 180 degrees leaves their size as it is, and the lens fits all the same."""
    stored = np.tile(np.arange(0, 192, 4, dtype=np.uint8)[:, None], (1, 48))  # dark at the top
    held = {"w": 48, "h": 48, "fl_x": 50, "fl_y": 50, "cx": 24, "cy": 24, "frames": []}
    (tmp_path / "images").mkdir()
    for number, note in enumerate((1, orientation, orientation)):
        exif = Image.Exif()
        exif[0x0112] = note
        held["frames"].append({"file_path": f"images/{number}{suffix}", "transform_matrix": np.eye(4).tolist()})
        Image.fromarray(np.dstack([stored] * 3)).save(tmp_path / f"images/{number}{suffix}", exif=exif)
    for first in (0, 1):
        (tmp_path / "transforms.json").write_text(json.dumps(held | {"frames": held["frames"][first:]}))
        source = NerfstudioSource(kind="nerfstudio", root=str(tmp_path), rate_hz=10, metres_per_unit=1.0)
        recording = NerfstudioReader(source).read(0)
        pictures = recording.streams["rgb"].values.read(np.arange(3 - first)).astype(int)
        assert np.abs(pictures[..., 0] - stored).max() < 8, "rows of a compressed picture"
        assert sum("EXIF turns it" in note for note in recording.notes) == first


def test_more_episodes_than_a_memory_holds_are_refused(tmp_path):
    (tmp_path / "meta").mkdir()
    for total in (10**12, -1):
        info = {"codebase_version": "v3.0", "fps": 30, "features": {}, "total_episodes": total}
        (tmp_path / "meta/info.json").write_text(json.dumps(info))
        with pytest.raises(ValueError, match=rf"info.json: found total_episodes {total}, wanted 0 \.\.\. 1000000"):
            LeRobotReader.find(tmp_path)
