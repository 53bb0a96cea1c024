"""HOT3D and ADT against real files and the official numbers beside them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from egom2p.config import load_config
from egom2p.data.recordings.adt import AdtReader, AdtSource
from egom2p.data.recordings.aria_mps import read_gaze_angles, read_mps
from egom2p.data.recordings.aria_recordings import AriaSource, NymeriaSource
from egom2p.data.recordings.hot3d import Hot3dAriaReader, Hot3dAriaSource, Hot3dQuestReader, Hot3dQuestSource
from egom2p.data.recordings.reader_choice import AnySource, open_reader, recognised
from egom2p.geometry import is_inside, pixels_from_gaze, project
from egom2p.pipelines.prepare import PrepareConfig, prepare
from egom2p.pipelines.tokenization import TokenizeConfig, tokenize
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig
from egom2p.training.tasks.tokenizer_task import train_tokenizer


def copied(source, target):
    """A copy that may be written, of files that may not."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder in (target, *filter(Path.is_dir, target.rglob("*"))):
        folder.chmod(0o755)


def fisheye624(point, parameters):
    """The formula of the documentation, term by term."""
    fx, fy, cx, cy, *k = parameters
    a, b = point[0] / point[2], point[1] / point[2]
    r = np.hypot(a, b)
    theta = np.arctan(r)
    bent = theta * (1 + sum(k[i] * theta ** (2 * i + 2) for i in range(6)))
    x, y = bent * a / r, bent * b / r
    n, (p0, p1, s0, s1, s2, s3) = x * x + y * y, k[6:]
    dot = 2 * (x * p0 + y * p1)
    u = x + dot * x + n * p0 + s0 * n + s1 * n * n
    v = y + dot * y + n * p1 + s2 * n + s3 * n * n
    return np.array([fx * u + cx, fy * v + cy])


def se3(quaternion_wxyz, position):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat([*quaternion_wxyz[1:], quaternion_wxyz[0]]).as_matrix()
    pose[:3, 3] = position
    return pose


@pytest.mark.parametrize("stream", ["1201-1", "1201-2"])
def test_quest_objects_are_where_the_documented_camera_sees_them(real_data_dir, stream):
    root = real_data_dir / "hot3d_quest3_sample"
    reader = Hot3dQuestReader(Hot3dQuestSource(kind="hot3d_quest", root=str(root), camera=stream), dataset="hot3d")
    recording = reader.read(0)
    camera, intrinsics = recording.streams["camera"], recording.intrinsics
    assert (intrinsics.width, intrinsics.height) == (1024, 1280)  # upright
    assert camera.times_s[0] == 43124.4 and camera.is_valid.all() and len(camera.times_s) == 15
    np.testing.assert_allclose(np.diff(camera.times_s), 1 / 30, atol=1e-6)
    model = next(c for c in json.loads((root / "camera_models.json").read_text()) if c["stream_id"] == stream)
    pose = model["T_Device_Camera"]
    device_from_raw = se3(pose["quaternion_wxyz"], pose["translation_xyz"])
    head = [line.split(",") for line in (root / "headset_trajectory.csv").read_text().splitlines()[1:]]
    num_inside = 0
    for line in (root / "dynamic_objects.csv").read_text().splitlines()[1:]:
        _, stamp, *numbers = line.split(",")
        row = next(i for i, cells in enumerate(head) if cells[1] == stamp)
        values = [float(cell) for cell in head[row][2:]]
        point = np.array([*map(float, numbers[:3]), 1.0])
        in_raw = np.linalg.inv(se3(values[3:], values[:3]) @ device_from_raw) @ point
        u, v = fisheye624(in_raw[:3], model["projectionParams"])
        in_cam = np.linalg.inv(camera.values[row]) @ point
        pixel, is_seen = project(in_cam[:3], intrinsics)
        assert is_seen
        np.testing.assert_allclose(pixel, [1024 - 1 - v, u], atol=1e-6)
        num_inside += bool(is_inside(pixel, intrinsics))
    assert num_inside > 0.8 * len(head)
    # Gravity is down in the upright picture: the world's y axis points to its top.
    assert (camera.values[:, 1, 1] < -0.3).all()


def test_quest_pictures_taken_out_of_the_vrs_file_are_turned(real_data_dir, tmp_path):
    root = tmp_path / "P0002_273c2819"
    copied(real_data_dir / "hot3d_quest3_sample", root)
    folder = root / "images/1201-1"
    folder.mkdir(parents=True)
    for k in range(15):
        picture = np.zeros((4, 5), np.uint8)
        picture[3, 0] = 200 + k  # the lower left corner as stored is the upper left one upright
        Image.fromarray(picture).save(folder / f"{k}.png")
    mask = root / "masks/mask_headset_pose_available.csv"
    mask.write_text(mask.read_text().replace("43124433333333,1201-1,True", "43124433333333,1201-1,False"))
    recording = Hot3dQuestReader(Hot3dQuestSource(kind="hot3d_quest", root=str(tmp_path))).read(0)
    rgb, camera = recording.streams["rgb"], recording.streams["camera"]
    np.testing.assert_allclose(rgb.times_s, camera.times_s, atol=1e-6)
    pictures = rgb.values.read(np.array([0, 7]))
    assert pictures.shape == (2, 5, 4, 3) and pictures[0, 0, 0, 0] == 200 and pictures[1, 0, 0, 0] == 207
    assert list(np.flatnonzero(~camera.is_valid)) == [1]
    (folder / "14.png").unlink()
    with pytest.raises(ValueError, match="1201-1: found 14 pictures, wanted 15, one for each time"):
        Hot3dQuestReader(Hot3dQuestSource(kind="hot3d_quest", root=str(tmp_path))).read(0)


@pytest.fixture
def aria_replica(real_data_dir, tmp_path):
    """The real MPS sample laid out as a HOT3D recording; headset rows are rows of it on another clock."""
    folder = tmp_path / "P0001_replica"
    for source, target in (("trajectory", "slam"), ("eye_gaze_vergence", "eye_gaze")):
        copied(real_data_dir / "aria_mps_sample" / source, folder / "mps" / target)
    (folder / "mps/eye_gaze/generalized_gaze.csv").rename(folder / "mps/eye_gaze/general_eye_gaze.csv")
    (folder / "metadata.json").write_text('{"headset": "Aria", "participant_id": "P0001"}')
    rows = (folder / "mps/slam/closed_loop_trajectory.csv").read_text().splitlines()
    header, offset_ns = rows[0].split(","), 56_833_060_907_000
    lines = ["object_uid,timestamp[ns],t_wo_x[m],t_wo_y[m],t_wo_z[m],q_wo_w,q_wo_x,q_wo_y,q_wo_z"]
    hands, device = [], []
    for row in rows[100:-100:33]:
        cells = dict(zip(header, row.split(","), strict=True))
        t = [cells[f"t{a}_world_device"] for a in "xyz"]
        q = [cells[f"q{a}_world_device"] for a in "wxyz"]
        stamp = int(cells["tracking_timestamp_us"]) * 1000 + offset_ns
        lines.append(",".join(["1", str(stamp), *t, *q]))
        wrists = {
            side: {"wrist_xform": {"t_xyz": [0.1, 0.2, float(side)], "q_wxyz": [0.6, 0, 0.8, 0]}} for side in "01"
        }
        hands.append(json.dumps({"timestamp_ns": stamp, "hand_poses": wrists if len(hands) != 3 else {}}))
        device.append(int(cells["tracking_timestamp_us"]) * 1e-6)
    (folder / "headset_trajectory.csv").write_text("\n".join(lines) + "\n")
    (folder / "mano_hand_pose_trajectory.jsonl").write_text("\n".join(hands) + "\n")
    return folder, np.array(device)


def test_hot3d_aria_is_on_the_clock_of_the_device(aria_replica, real_data_dir):
    folder, device_times_s = aria_replica
    recording = Hot3dAriaReader(Hot3dAriaSource(kind="hot3d_aria", root=str(folder.parent), hands=True)).read(0)
    assert recording.name == "P0001_replica" and recording.streams.keys() == {"camera", "gaze", "hands"}
    reference = np.load(real_data_dir / "aria_mps_sample/reference_cam2world_30fps.npz")
    camera = recording.streams["camera"]
    nearest = np.abs(camera.times_s[:, None] * 1e6 - reference["grid_us"]).argmin(axis=0)
    near = np.abs(camera.times_s[nearest] * 1e6 - reference["grid_us"]) < 50
    assert near.sum() > 5
    np.testing.assert_allclose(
        camera.values[nearest][near], reference["T_world_camera_opencv"][near], atol=2e-3
    )  # within 50 us
    hands = recording.streams["hands"]
    np.testing.assert_allclose(hands.times_s, device_times_s, atol=1e-6)
    assert hands.is_valid.sum() == len(hands.times_s) - 1 and not hands.is_valid[3]
    row = 10
    world_from_cam = camera.values[np.abs(camera.times_s - hands.times_s[row]).argmin()]
    wrist = np.linalg.inv(world_from_cam) @ se3([0.6, 0, 0.8, 0], [0.1, 0.2, 1.0])
    np.testing.assert_allclose(hands.values[row, 9:], [*wrist[:3, 3], *wrist[:3, 0], *wrist[:3, 1]], atol=1e-6)
    assert recording.unused == ("mps/slam/summary.json",)


def test_hot3d_clocks_that_do_not_meet_are_refused(aria_replica):
    folder, _ = aria_replica
    path = folder / "headset_trajectory.csv"
    lines = path.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    slow = [",".join([row[0], str(int(int(row[1]) * 1.02)), *row[2:]]) for row in rows]
    path.write_text("\n".join([lines[0], *slow]))
    with pytest.raises(ValueError, match=r"headset_trajectory\.csv: found .* poses that are in mps/slam"):
        Hot3dAriaReader(Hot3dAriaSource(kind="hot3d_aria", root=str(folder), hands=True)).read(0)


@pytest.mark.parametrize(("sample", "kind"), [("hot3d_quest3_sample", "hot3d_quest"), ("aria_adt_sample", "adt")])
def test_recognised(real_data_dir, capsys, sample, kind):
    source = recognised(AnySource(kind="any", root=str(real_data_dir / sample)))
    assert source.kind == kind and f"source.kind={kind}" in capsys.readouterr().err


def test_adt_gives_the_official_poses_depth_and_gaze(real_data_dir):
    pytest.importorskip("projectaria_tools", reason="the pictures of ADT are read by projectaria-tools")
    root = real_data_dir / "aria_adt_sample"
    reference = json.loads((root / "reference.json").read_text())
    recording = open_reader(AnySource(kind="any", root=str(root)), dataset="adt").read(0)
    streams, intrinsics = recording.streams, recording.intrinsics
    assert streams.keys() == {"rgb", "depth", "gaze", "camera"}
    for row, pose in enumerate(reference["poses"]):
        assert abs(streams["camera"].times_s[row] * 1e9 - pose["device_time_ns"]) < 1e3
        np.testing.assert_allclose(streams["camera"].values[row], pose["T_world_camera_opencv"], atol=1e-6)
    np.testing.assert_allclose(streams["rgb"].times_s * 1e9, reference["rgb_timestamps_ns"], atol=1e2)
    np.testing.assert_allclose(streams["depth"].times_s * 1e9, reference["depth_timestamps_ns"], atol=1e2)
    depth = streams["depth"].values.read(np.array([0]))[0]
    assert depth.shape == (1408, 1408) and np.median(depth[depth > 0]) == pytest.approx(1.884, abs=1e-6)
    stored = np.asarray(Image.open(next((root / "derived").glob("depth_0_*.png"))))
    np.testing.assert_allclose(depth, stored[::-1].T / 1000, atol=1e-6)  # rows from the bottom become columns
    picture = np.asarray(Image.open(next((root / "derived").glob("rgb_0_*.jpg"))))[::-1].swapaxes(0, 1)
    assert np.abs(streams["rgb"].values.read(np.array([0]))[0].astype(int) - picture).mean() < 3  # JPEG
    # A gaze without distance is taken at 1 m, as in the official numbers; one with its distance is where it meets.
    gaze = pixels_from_gaze(streams["gaze"].values, intrinsics.width, intrinsics.height)
    official = np.array([row["gaze_px_upright"] for row in reference["gaze_projected_at_1m"]])
    distances = np.array([row["depth_m"] for row in reference["gaze_projected_at_1m"]], dtype=float)
    assert distances[0] == 0
    np.testing.assert_allclose(gaze[0], official[0], atol=0.01)
    assert 0.1 < np.abs(gaze[1:] - official[1:]).max() < 60
    from egom2p.data.recordings.aria_vrs import read_vrs_camera

    vrs = read_vrs_camera(root / "video.vrs")
    at_one_metre = root / "mps/eye_gaze/general_eye_gaze.csv"
    _, gaze, is_valid = read_gaze_angles(at_one_metre, vrs.calibration, (1408, 1408), vrs.device_from_cpf)
    np.testing.assert_allclose(pixels_from_gaze(gaze, 1408, 1408), official, atol=0.01)
    assert is_valid.all()


def test_adt_without_pictures(real_data_dir):
    pytest.importorskip("projectaria_tools", reason="the calibration of ADT is in its VRS file")
    source = AdtSource(kind="adt", root=str(real_data_dir / "aria_adt_sample"), pictures=False)
    assert AdtReader(source).read(0).streams.keys() == {"gaze", "camera"}


def test_hands_of_hot3d_become_a_modality_by_configs_alone(aria_replica, tmp_path):
    folder, _ = aria_replica
    clips, tokens, trained = tmp_path / "clips", tmp_path / "tokens", tmp_path / "tokenizer"
    overrides = [
        f"source.root={folder.parent}",
        f"output={clips}",
        "dataset=hot3d_aria",
        "num_workers=0",
        "source.hands=true",
    ]
    report = prepare(load_config(PrepareConfig, "default/data_preparation/hot3d_aria.yaml", overrides))
    assert sum("hands" in about["streams"] for about in report.datasets.values()) == 1 and report.num_clips >= 3
    name = next(name for name, about in report.datasets.items() if "hands" in about["streams"])
    about = [f"output_dir={trained}", "training.num_steps=2", "training.warmup=0", "training.device=cpu"]
    about += [f"{part}.root={clips}" for part in ("train", "validation")]
    about += [f"{part}.datasets=[{name}]" for part in ("train", "validation")]
    about += ["training.batch_size=2", "network.dim=16", "network.num_codes=8"]
    train_tokenizer(load_config(TokenizerTrainingConfig, "default/tokenization/vqvae/hands/hot3d.yaml", about))
    about = [f"clips={clips}", f"output={tokens}", f"tokenizers_root={tmp_path}", "modalities=[tok_hands]"]
    about += ["tokenizers.tok_hands=tokenizer/final", "device=cpu"]
    tokenize(load_config(TokenizeConfig, "default/tokenize/clips.yaml", about))
    assert list(tokens.glob("hands/*/shard-*.tar"))


SAMPLE, CPF = "aria_mps_sample", se3([0.8, 0.0, 0.6, 0.0], [0.01, 0.02, -0.03])


def mps_folders(sample, folder, *, gaze="eye_gaze"):
    copied(sample / "trajectory", folder / "mps/slam")
    copied(sample / gaze, folder / "mps/eye_gaze")


def hand_row(stamp, confidences, points):
    """A line of MPS's hand tracking and its header: left then right."""
    header, cells = ["tracking_timestamp_us"], [str(stamp)]
    for side, confidence, shift in zip(("left", "right"), confidences, (0.0, 1.0), strict=True):
        header.append(f"{side}_tracking_confidence")
        cells.append(str(confidence))
        for number in range(21):
            header += [f"t{axis}_{side}_landmark_{number}_device" for axis in "xyz"]
            cells += [str(value) for value in points[number] + shift]
    return ",".join(header), ",".join(cells)


def test_aria_recordings_are_found_wherever_they_lie(real_data_dir, tmp_path):
    root = tmp_path / "Everyday äctivities"
    for name in ("loc1_script1_seq1_rec1", "loc2/rec 2"):
        mps_folders(real_data_dir / SAMPLE, root / name)
    (root / "loc1_script1_seq1_rec1/metadata.json").write_text("{}")
    (tmp_path / "link").symlink_to(root)
    reference = np.load(real_data_dir / SAMPLE / "reference_cam2world_30fps.npz")
    for folder in (root, tmp_path / "link"):
        reader = open_reader(AnySource(kind="any", root=str(folder)))
        assert reader.names == ("loc1_script1_seq1_rec1", "loc2_rec 2")
        recording = reader.read(1)
        assert recording.streams.keys() == {"camera", "gaze"} and recording.intrinsics.width == 2880
        camera = recording.streams["camera"]
        nearest = np.abs(camera.times_s[:, None] * 1e6 - reference["grid_us"]).argmin(axis=0)
        distance_m = np.linalg.norm(
            camera.values[nearest, :3, 3] - reference["T_world_camera_opencv"][:, :3, 3], axis=1
        )
        assert distance_m.max() < 1e-3  # half a millisecond of walking
    assert reader.read(0).unused == (
        "metadata.json",
        "mps/eye_gaze/eyegaze.csv",
        "mps/eye_gaze/summary.json",
        "mps/slam/summary.json",
    )
    shutil.copy(root / "loc2/rec 2/mps/slam/closed_loop_trajectory.csv", root / "loc2/rec 2/mps")
    with pytest.raises(ValueError, match="rec 2: found trajectories .* wanted one of a recording"):
        open_reader(AnySource(kind="any", root=str(root)))


@pytest.mark.parametrize("sizes", [{"camera-rgb": [2016, 1512]}, "listed", None])
def test_aria_gen2_is_upright_as_stored(real_data_dir, tmp_path, sizes):
    """A replica: Gen 1's poses as those of a camera that is mounted upright, with names and gaze of Gen 2."""
    folder = tmp_path / "gen2"
    mps_folders(real_data_dir / SAMPLE, folder)
    turn = np.array([[0, 1.0, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    path = folder / "mps/slam/online_calibration.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lens = [610.0, 1010.0, 750.0, 0.3, -0.1, 0.05, 0.01, 0.0, 0.0, 0.001, -0.002, 0.0, 0.0, 0.0, 0.0]
    for line in lines:
        for camera in line["CameraCalibrations"]:
            camera["Label"] = camera["Label"].replace("slam-left", "slam-front-left")
            if camera["Label"] == "camera-rgb":
                pose = camera["T_Device_Camera"]
                w, xyz = pose["UnitQuaternion"]
                x, y, z, w = Rotation.from_matrix((se3([w, *xyz], [0, 0, 0]) @ turn)[:3, :3]).as_quat()
                pose["UnitQuaternion"], camera["Projection"]["Params"] = [w, [x, y, z]], lens
        labels = [camera["Label"] for camera in line["CameraCalibrations"]]
        if sizes:
            listed = [[2016, 1512] if label == "camera-rgb" else [512, 512] for label in labels]
            line["ImageSizes"] = listed if sizes == "listed" else sizes
    path.write_text("\n".join(map(json.dumps, lines)))
    (folder / "mps/eye_gaze/eyegaze.csv").unlink()
    (folder / "mps/eye_gaze/generalized_eye_gaze.csv").unlink()
    names = ("yaw_rads_cpf", "pitch_rads_cpf", "left_yaw_rads_cpf", "right_yaw_rads_cpf")
    header = ["tracking_timestamp_us", *names, "left_pitch_rads_cpf", "right_pitch_rads_cpf"]
    rows = [[str(150_000_000 + k * 11_111), "0.1", "-0.3", "0.05", "0.15", "-0.3", "-0.3"] for k in range(100)]
    (folder / "mps/eye_gaze/general_eye_gaze.csv").write_text("\n".join(",".join(r) for r in [header, *rows]))
    points = np.arange(63.0).reshape(21, 3) / 50
    hands = [hand_row(150_000_000 + 33_333 * k, (-1 if k == 3 else 0.9, 0.5), points) for k in range(60)]
    (folder / "mps/hand_tracking").mkdir()
    text = "\n".join([hands[0][0], *(cells for _, cells in hands)])
    (folder / "mps/hand_tracking/hand_tracking_results.csv").write_text(text)
    source = {"kind": "aria_mps", "root": str(folder)}
    if sizes is None:
        with pytest.raises(ValueError, match=r"says no size of the pictures of Aria Gen 2.*source\.image_size"):
            open_reader(AriaSource(**source)).read(0)
        source["image_size"] = (2016, 1512)
    recording = open_reader(AriaSource(**source)).read(0)
    assert (recording.intrinsics.width, recording.intrinsics.height) == (2016, 1512)
    assert recording.notes[0].startswith("general_eye_gaze.csv is left out: where the eyes of Gen 2 are")
    reference = np.load(real_data_dir / SAMPLE / "reference_cam2world_30fps.npz")
    camera = recording.streams["camera"]
    near = np.abs(camera.times_s - reference["grid_us"][40] / 1e6).argmin()
    np.testing.assert_allclose(camera.values[near], reference["T_world_camera_opencv"][40], atol=3e-3)
    assert not recording.streams["hand_left"].is_valid[3] and recording.streams["hand_right"].is_valid.all()
    first = next(c for c in lines[0]["CameraCalibrations"] if c["Label"] == "camera-rgb")["T_Device_Camera"]
    w, xyz = first["UnitQuaternion"]
    device_from_cam = se3([w, *xyz], first["Translation"])
    tip = np.linalg.inv(device_from_cam) @ [*(points[4] + 1.0), 1.0]
    np.testing.assert_allclose(recording.streams["hand_right"].values[7, 12:15], tip[:3], atol=1e-9)
    # With the place of the eyes, as a VRS file says it, gaze is where the documented lens sees it.
    mps = read_mps(folder, image_size=(2016, 1512), device_from_cpf=CPF)
    ray = np.array([np.tan(0.1), np.tan(-0.3), 1.0])
    row = np.abs([line["tracking_timestamp_us"] - 150_000_000 for line in lines]).argmin()
    pose = next(c for c in lines[row]["CameraCalibrations"] if c["Label"] == "camera-rgb")["T_Device_Camera"]
    w, xyz = pose["UnitQuaternion"]
    point = np.linalg.inv(se3([w, *xyz], pose["Translation"])) @ CPF @ [*(ray / np.linalg.norm(ray)), 1.0]
    if point[2] > 0:
        pixel = fisheye624(point[:3], [lens[0], *lens])
        np.testing.assert_allclose(pixels_from_gaze(mps.gaze[:1], 2016, 1512)[0], pixel, atol=0.01)


def test_nymeria_has_a_recording_of_each_headset(real_data_dir, tmp_path):
    sequence = tmp_path / "20230607_s0_a_b_act0_x1"
    for name in ("head", "observer", "lwrist"):
        mps_folders(real_data_dir / SAMPLE, sequence / f"recording_{name}")
    (sequence / "body").mkdir()
    np.savez(sequence / "body/xdata.npz", timestamps_us=np.arange(10), segment_tXYZ=np.zeros((10, 69)))
    reader = open_reader(AnySource(kind="any", root=str(tmp_path)))
    assert isinstance(reader.config, NymeriaSource)
    assert reader.names == (sequence.name, f"{sequence.name}_observer")
    recording = reader.read(0)
    assert recording.streams.keys() == {"camera", "gaze"} and recording.notes[0].startswith(
        "body is left out: its clock"
    )
    assert reader.unused == [f"{sequence.name}/recording_lwrist/ (6 files)"]
    only = open_reader(NymeriaSource(kind="nymeria", root=str(sequence), headsets=("observer",)))
    assert only.names == (f"{sequence.name}_observer",)
    pytest.importorskip("projectaria_tools", reason="clocks between devices are in VRS files")
    vrs = real_data_dir / "aria_adt_sample/video.vrs"
    (sequence / "recording_head/data").mkdir()
    (sequence / "recording_head/data/data.vrs").symlink_to(vrs)
    shared_us = 73_852_895_637 + np.arange(10) * 4_167  # of device time 87551.204 s, by the file's own map
    positions = np.arange(690.0).reshape(10, 69)
    np.savez(sequence / "body/xdata.npz", timestamps_us=shared_us, segment_tXYZ=positions)
    streams = open_reader(NymeriaSource(kind="nymeria", root=str(tmp_path), headsets=("head",))).read(0).streams
    np.testing.assert_allclose(streams["body"].times_s, 87551.2041523 + np.arange(10) * 4.167e-3, atol=2e-5)
    np.testing.assert_array_equal(streams["body"].values, positions)
    assert len(streams["rgb"].values) == 3


def test_aria_with_a_vrs_file_has_the_official_gaze_and_poses(real_data_dir, tmp_path):
    """The real ADT recording laid out as MPS does, without an online calibration: the factory's is taken."""
    pytest.importorskip("projectaria_tools", reason="calibrations of the factory are in VRS files")
    sample, folder = real_data_dir / "aria_adt_sample", tmp_path / "loc1_script1_seq1_rec1"
    (folder / "mps/slam").mkdir(parents=True)
    copied(sample / "mps/eye_gaze", folder / "mps/eye_gaze")
    shutil.copy(sample / "aria_trajectory.csv", folder / "mps/slam/closed_loop_trajectory.csv")
    (folder / "recording.vrs").symlink_to(sample / "video.vrs")
    reference = json.loads((sample / "reference.json").read_text())
    recording = open_reader(AnySource(kind="any", root=str(tmp_path))).read(0)
    streams = recording.streams
    for row, pose in enumerate(reference["poses"]):
        np.testing.assert_allclose(streams["camera"].values[row], pose["T_world_camera_opencv"], atol=1e-6)
    official = np.array([row["gaze_px_upright"] for row in reference["gaze_projected_at_1m"]])
    np.testing.assert_allclose(pixels_from_gaze(streams["gaze"].values, 1408, 1408), official, atol=0.01)
    assert len(streams["rgb"].values) == 3
    # An online calibration beside it rules, with the eyes where the VRS file has them; and may be set aside.
    shutil.copy(real_data_dir / SAMPLE / "trajectory/online_calibration.jsonl", folder / "mps/slam")
    source = {"kind": "aria_mps", "root": str(folder)}
    with pytest.raises(ValueError, match="the camera would lie on its side|gravity lies at"):
        bad = (folder / "mps/slam/closed_loop_trajectory.csv").read_text()
        (folder / "mps/slam/closed_loop_trajectory.csv").write_text(bad.replace("-9.81", "9.81"))
        open_reader(AriaSource(**source)).read(0)
    (folder / "mps/slam/closed_loop_trajectory.csv").write_text(bad)
    online = open_reader(AriaSource(**source)).read(0).streams["gaze"].values
    assert np.abs(online - streams["gaze"].values).max() > 1e-3
    factory = open_reader(AriaSource(**source, calibration="factory")).read(0).streams["gaze"].values
    np.testing.assert_array_equal(factory, streams["gaze"].values)
    (folder / "recording.vrs").unlink()
    with pytest.raises(ValueError, match="found no VRS file"):
        open_reader(AriaSource(**source, calibration="factory")).read(0)
