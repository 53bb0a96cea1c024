"""Gaze as devices write it: known headers, units, validity by the chosen columns, and clear refusals."""

import numpy as np
import pytest
import yaml

from egom2p.data.clips.clip_alignment import ClipConfig, cut_clips, plan_clips
from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.geometry import gaze_from_yaw_pitch


def _read(folder, rows, *, settings=None, name="gaze.csv"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    if settings:
        (folder / "recording.yaml").write_text(yaml.safe_dump(settings))
    return PlainFolderReader(folder).read(0).streams["gaze"]


_FIRST_NS = 1_650_316_509_598_345_895


def test_neon_and_invisible_from_the_cloud(tmp_path):
    header = "section id,recording id,timestamp [ns],gaze x [px],gaze y [px],worn,fixation id,blink id,azimuth [deg]"
    rows = [f"a-b,c-d,{_FIRST_NS + k * 5_000_000},{400 + k},{299.5},{int(k != 3)},,,1.5" for k in range(60)]
    rows[5] = f"a-b,c-d,{_FIRST_NS + 5 * 5_000_000},,300,1,,,"
    size = {"gaze": {"width": 1600, "height": 1200, "offset_s": -1_650_316_509.0}}
    gaze = _read(tmp_path / "neon", [header, *rows], settings=size)
    assert (~gaze.is_valid).nonzero()[0].tolist() == [3, 5]
    np.testing.assert_allclose(gaze.times_s, 0.598345895 + np.arange(60) * 0.005, atol=1e-12)
    np.testing.assert_allclose(gaze.values[10], [410.5 / 1600, 300 / 1200])
    with pytest.raises(ValueError, match=r"gaze\.width and gaze\.height"):
        _read(tmp_path / "unknown size", [header, *rows])


def test_pupil_core_has_v_upwards_and_a_confidence(tmp_path):
    header = "gaze_timestamp,world_index,confidence,norm_pos_x,norm_pos_y,base_data"
    rows = [f"{342005.97 + k * 0.004},0,{0.5 if k == 7 else 0.7},0.25,0.9,1-0 2-1" for k in range(60)]
    gaze = _read(tmp_path / "core", [header, *rows])
    assert (~gaze.is_valid).nonzero()[0].tolist() == [7]
    np.testing.assert_allclose(gaze.values[0], [0.25, 0.1])
    assert _read(tmp_path / "low", [header, *rows], settings={"gaze": {"min_confidence": 0.5}}).is_valid.all()
    assert not _read(tmp_path / "high", [header, *rows], settings={"gaze": {"min_confidence": 0.8}}).is_valid.any()


def test_tobii_pro_lab(tmp_path):
    header = "Recording timestamp [\u03bcs]\tSensor\tGaze point X\tGaze point Y\tValidity left\tValidity right\tEvent"
    words = ["Valid\tValid", "Invalid\tValid", "Invalid\tInvalid"]
    rows = []
    for k in range(60):
        rows.append(f"{k * 20_000}\tEye Tracker\t959.5\t{269.5}\t{words[k % 3]}\t")
        rows.append(f"{k * 20_000}\tGyroscope\t\t\t\t\t")
    settings = {"gaze": {"width": 1920, "height": 1080}}
    gaze = _read(tmp_path / "tobii", [header, *rows], name="gaze.tsv", settings=settings)
    assert len(gaze.values) == 60 and gaze.times_s[50] == pytest.approx(1.0)
    np.testing.assert_array_equal(gaze.is_valid, np.arange(60) % 3 != 2)
    np.testing.assert_allclose(gaze.values[0], [0.5, 0.25])


def test_aria_angles_need_to_know_where_the_eyes_sit(tmp_path):
    header = "tracking_timestamp_us,left_yaw_rads_cpf,right_yaw_rads_cpf,pitch_rads_cpf,depth_m"
    rows = [f"{k * 33_333},0.1,0.1,-0.2,{'' if k else 2.0}" for k in range(60)]
    with pytest.raises(ValueError, match=r"gaze\.csv: found Aria's gaze as angles; wanted gaze.camera_from_eyes"):
        _read(tmp_path / "a", [header, *rows])
    # The eyes 5 cm right of the camera; their x left, y up become the camera's x right, y down.
    matrix = [[-1, 0, 0, 0.05], [0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    intrinsics = {"width": 200, "height": 100, "fx": 100.0, "fy": 100.0, "cx": 99.5, "cy": 49.5}
    settings = {"gaze": {"camera_from_eyes": matrix}, "intrinsics": intrinsics}
    gaze = _read(tmp_path / "b", [header, *rows], settings=settings)
    assert gaze.is_valid.all() and gaze.times_s[30] == pytest.approx(0.99999)
    forward = np.array([np.tan(0.1), np.tan(-0.2), 1.0])
    for row, depth_m in ((0, 2.0), (1, 1.0)):
        x, y, z = np.array(matrix)[:3, :3] @ (forward / np.linalg.norm(forward) * depth_m) + [0.05, 0, 0]
        np.testing.assert_allclose(gaze.values[row], [(100 * x / z + 100) / 200, (100 * y / z + 50) / 100])
    assert gaze_from_yaw_pitch is not None


def test_columns_can_be_named_and_empty_ones_beside_them_do_not_count(tmp_path):
    rows = [f"{k / 60},{k},0.25,0.75,,note {k}" for k in range(60)]
    header = "time_s,row,left,down,fixation id,remark"
    with pytest.raises(ValueError, match=r"gaze\.csv: found columns .*gaze\.columns names others"):
        _read(tmp_path / "a", [header, *rows])
    gaze = _read(tmp_path / "b", [header, *rows], settings={"gaze": {"columns": ["left", "down"]}})
    assert gaze.is_valid.all() and gaze.values[3].tolist() == [0.25, 0.75]
    gaze = _read(tmp_path / "c", ["timestamps,u,v,depth_m", *(f"{k / 60},0.5,0.5," for k in range(60))])
    assert gaze.is_valid.all()


@pytest.mark.parametrize(
    ("header", "row", "settings", "message"),
    [
        ("timestamps,u,v", "{s},800,600", {}, r"gaze\.csv: found gaze of 800 .*coordinates: pixel"),
        ("timestamp [ns],u,v", "{ns},0.5,0.5", {"time_unit": "us"}, r"is in ns, time_unit says us"),
        ("timestamps,u,v", "{us},0.5,0.5", {}, r"likely us, say gaze\.time_unit: us"),
        ("timestamps,u,v", "{s},0.5,0.5", {"min_confidence": 0.9}, r"min_confidence .*has no effect"),
        ("timestamps,u,v", "{s},0.5,0.5", {"width": 10}, r"belong together"),
        ("timestamps,gazedirection_x,gazedirection_y", "{s},0,1", {}, r"rays in the world's frame must be projected"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, header, row, settings, message):
    rows = [row.format(s=k / 60, us=round(k / 60 * 1e6), ns=round(k / 60 * 1e9)) for k in range(60)]
    with pytest.raises(ValueError, match=message):
        _read(tmp_path / "a", [header, *rows], settings={"gaze": settings})


def test_a_file_that_is_no_utf8_or_no_table_is_named(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    for content, message in (
        ("timestamps,u,v\n0,0.5,0.5\n".encode("utf-16"), r"gaze\.csv: found UTF-16"),
        (b"timestamps,u,v\n0,0.5,\xb00.5\n", r"gaze\.csv: found no UTF-8 .*0xb0"),
        (b'timestamps,u,v\n0,0.5,"' + b"9" * 200_000 + b'"\n', r"gaze\.csv: not a readable table"),
    ):
        (folder / "gaze.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            PlainFolderReader(folder).read(0)


def test_real_gaze_of_three_devices(collected_dir, tmp_path):
    folder = tmp_path / "core"
    folder.mkdir()
    (folder / "gaze.csv").write_bytes((collected_dir / "gaze/pupil_core/tutorial_gaze_positions.csv").read_bytes())
    gaze = PlainFolderReader(folder).read(0).streams["gaze"]
    assert len(gaze.values) == 9302 and gaze.times_s[0] == 1216.218711
    np.testing.assert_allclose(gaze.values[0], [0.46200690434431324, 1 - 0.285159265953997])
    folder = tmp_path / "invisible"
    folder.mkdir()
    (folder / "gaze.csv").write_bytes((collected_dir / "gaze/pupil_invisible/trampoline_01/gaze.csv").read_bytes())
    (folder / "recording.yaml").write_text("gaze: {width: 1088, height: 1080}")
    gaze = PlainFolderReader(folder).read(0).streams["gaze"]
    assert gaze.is_valid.all() and gaze.times_s[0] == pytest.approx(1650316509.598345895, abs=2e-7)
    np.testing.assert_allclose(gaze.values[0], [(284.451 + 0.5) / 1088, (772.249 + 0.5) / 1080])


def test_recordings_that_once_came_in_wrong(door_dir):
    with pytest.raises(ValueError, match=r"gaze\.csv: found times .*likely us, say gaze\.time_unit: us"):
        PlainFolderReader(door_dir / "clock_units" / "rec_gaze_us").read(0)
    with pytest.raises(ValueError, match=r"gaze\.csv: found times .*likely us"):
        PlainFolderReader(door_dir / "clock_units" / "rec_video_gaze_us").read(0)
    recording = PlainFolderReader(door_dir / "gaze_empty_column" / "rec").read(0)
    assert recording.streams["gaze"].is_valid.all()
    plan = plan_clips(recording, ClipConfig(height=64, width=64))
    assert plan.windows and all("gaze" in window.streams for window in plan.windows)


def test_streams_without_a_common_clock_are_refused_at_once(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    write_video(folder / "video.mp4", np.zeros((90, 16, 16, 3), np.uint8), 30)
    rows = [f"{1_650_316_509 + k / 60},0.5,0.5" for k in range(180)]
    recording = None
    for settings, is_refused in (("", True), ("gaze: {offset_s: -1650316509}", False)):
        _read(folder, ["timestamps,u,v", *rows])
        (folder / "recording.yaml").write_text(settings)
        recording = PlainFolderReader(folder).read(0)
        config = ClipConfig(height=16, width=16, span="any")
        if is_refused:
            with pytest.raises(ValueError, match=r"gaze 1650316509.* days of clips.*.*time_unit and offset_s"):
                plan_clips(recording, config)
        else:
            assert all(clip.gaze_is_valid.all() for clip in cut_clips(recording, config))


@pytest.mark.parametrize(
    ("column", "cells", "problem"),
    [
        ("confidence", ("30", "95"), "confidence up to 95, wanted 0 to 1; say gaze.min_confidence"),
        ("invalid", ("1", "0"), "column 'invalid' may say which samples are valid"),
        ("Confidence [%]", ("30", "95"), r"column 'confidence \[%\]' may say which samples are valid"),
    ],
)
def test_validity_in_words_that_are_not_known_is_refused(tmp_path, column, cells, problem):
    folder = tmp_path / "a"
    folder.mkdir()
    rows = [f"{number / 30},0.5,0.25,{cells[number >= 20]}" for number in range(40)]
    (folder / "gaze.csv").write_text("\n".join([f"timestamps,u,v,{column}", *rows]))
    with pytest.raises(ValueError, match=problem):
        PlainFolderReader(tmp_path).read(0)
    say = "min_confidence: 60" if column == "confidence" else "columns: [u, v]"
    (folder / "recording.yaml").write_text(f"gaze: {{{say}}}\n")
    gaze = PlainFolderReader(tmp_path).read(0).streams["gaze"]
    assert gaze.is_valid.sum() == (20 if column == "confidence" else 40)
