"""Data sets of the paper on miniature replicas, made here from their documented formats.

The scene is a wall in the world, whose depth is worked out from poses and intrinsics without the readers' code; a
reader that takes poses, axes, units or clocks otherwise finds another wall.
"""

import json
import pickle
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from egom2p.config import load_config
from egom2p.data.clips.clip_store import ClipStore
from egom2p.data.recordings.reader_choice import AnySource, open_reader, recognised
from egom2p.pipelines.prepare import PrepareConfig, prepare

T, H, W = 70, 36, 64
K = np.array([[60.0, 0, 31.5], [0, 60.0, 17.5], [0, 0, 1]])


def copied(source, target):
    """A copy that may be written, of files that may not."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder in (target, *filter(Path.is_dir, target.rglob("*"))):
        folder.chmod(0o755)


def trajectory(count=T):
    """world_from_cam: walks to the right and turns, looking along the world's z."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    k = np.arange(count)
    poses[:, :3, :3] = Rotation.from_euler("yx", np.stack([0.004 * k, 0.1 + 0 * k], 1)).as_matrix()
    poses[:, 0, 3], poses[:, 2, 3] = 0.01 * k, 0.002 * k
    return poses


def wall_depth(world_from_cam, wall_z=2.0):
    """z depth (H, W) of the plane z = wall_z of the world, ray by ray."""
    u, v = np.meshgrid(np.arange(W), np.arange(H))
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1)
    world = rays @ world_from_cam[:3, :3].T
    return (wall_z - world_from_cam[2, 3]) / world[..., 2]


def write_video(path, count=T, rate=30, depth=None, pix_fmt="yuv420p"):
    """Grey level 2k in frame k; or 16-bit depth with FFV1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if depth is None else "ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = W, H, pix_fmt if depth is None else "gray16le"
        for k in range(count):
            if depth is None:
                frame = av.VideoFrame.from_ndarray(np.full((H, W, 3), 2 * k, np.uint8), format="rgb24")
            else:
                frame = av.VideoFrame.from_ndarray(depth[k], format="gray16le")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read_any(root, kind, tmp_path, **options):
    """Recognised without a kind, and read."""
    source = recognised(AnySource(kind="any", root=str(root)))
    assert source.kind == kind
    reader = open_reader(type(source)(kind=kind, root=str(root), **options), dataset="d")
    return reader.read(0)


def check_wall(recording, poses, depth_atol):
    """Poses are the walk's, and depth is the wall's."""
    camera = recording.streams["camera"]
    np.testing.assert_allclose(camera.values, poses, atol=1e-6)
    depth = recording.streams["depth"]
    for row in (0, 30):
        pose = camera.values[np.abs(camera.times_s - depth.times_s[row]).argmin()]
        np.testing.assert_allclose(depth.values.read(np.array([row]))[0], wall_depth(pose), atol=depth_atol)


@pytest.fixture
def h2o(tmp_path):
    folder = tmp_path / "h2o/subject1/h1/0/cam4"
    for name in ("rgb", "depth", "cam_pose", "hand_pose"):
        (folder / name).mkdir(parents=True)
    (folder / "cam_intrinsics.txt").write_text(f"60 60 31.5 17.5 {W} {H}")
    for k, pose in enumerate(trajectory()):
        Image.fromarray(np.full((H, W, 3), 2 * k, np.uint8)).save(folder / f"rgb/{k:06d}.png")
        Image.fromarray(np.round(wall_depth(pose) * 1000).astype(np.uint16)).save(folder / f"depth/{k:06d}.png")
        (folder / f"cam_pose/{k:06d}.txt").write_text(" ".join(f"{x:.9f}" for x in pose.ravel()))
        hand = [1.0, *np.tile([0.1, 0.2, 0.5], 21)]
        hands = [*hand, *(hand if k != 5 else [0.0] * 64)]
        (folder / f"hand_pose/{k:06d}.txt").write_text(" ".join(map(str, hands)))
    (tmp_path / "h2o/subject1/h1/0/cam0").mkdir()
    return tmp_path / "h2o"


def test_h2o(h2o, tmp_path):
    recording = read_any(h2o, "h2o", tmp_path)
    assert "hands" not in recording.streams and "hand_pose is left out" in recording.notes[0]
    recording = read_any(h2o, "h2o", tmp_path, hand_frame="camera")
    assert recording.notes == ()
    assert recording.name == "subject1_h1_0"
    check_wall(recording, trajectory(), 6e-4)
    rgb, hands = recording.streams["rgb"], recording.streams["hands"]
    assert rgb.times_s[30] == 1.0 and (rgb.values.read(np.array([7]))[0] == 14).all()
    assert hands.values.shape == (T, 126) and not hands.is_valid[5] and hands.is_valid.sum() == T - 1
    assert recording.intrinsics.fx == 60


def test_poses_the_wrong_way_round_are_refused(h2o, tmp_path):
    for file in (h2o / "subject1/h1/0/cam4/cam_pose").iterdir():
        pose = np.loadtxt(file).reshape(4, 4)
        np.savetxt(file, np.linalg.inv(pose).reshape(1, 16))
    with pytest.raises(ValueError, match=r"cam_pose: depth of pictures 0 and 30 differs by .* with their inverse"):
        read_any(h2o, "h2o", tmp_path)


@pytest.fixture
def taco(tmp_path):
    root, below = tmp_path / "taco", "(dust, roller, pan)/20230927_032"
    cameras = root / "Egocentric_Camera_Parameters" / below
    cameras.mkdir(parents=True)
    np.savetxt(cameras / "egocentric_intrinsic.txt", K)
    np.save(cameras / "egocentric_frame_extrinsic.npy", np.linalg.inv(trajectory()))
    write_video(root / "Egocentric_RGB_Videos" / below / "color.mp4")
    depth = [np.round(wall_depth(pose) * 4000).astype(np.uint16) for pose in trajectory()]
    write_video(root / "Egocentric_Depth_Videos" / below / "egocentric_depth.avi", depth=depth)
    (root / "Hand_Poses").mkdir()
    (root / "Hand_Poses/x.npy").write_bytes(b"")
    return root


def test_taco(taco, tmp_path, capsys):
    recording = read_any(taco, "taco", tmp_path)
    assert recording.name == "(dust, roller, pan)_20230927_032" and recording.unused == ()
    assert "no reader takes: Hand_Poses/ (1 files)" in capsys.readouterr().err
    check_wall(recording, trajectory(), 2e-4)
    rgb = recording.streams["rgb"]
    np.testing.assert_allclose(rgb.times_s, np.arange(T) / 30, atol=1e-3)
    assert abs(rgb.values.read(np.array([40]))[0].mean() - 80) < 3


def test_taco_refuses_other_counts_and_eight_bit_depth(taco, tmp_path):
    below = "(dust, roller, pan)/20230927_032"
    write_video(taco / "Egocentric_Depth_Videos" / below / "egocentric_depth.avi")
    with pytest.raises(ValueError, match=r"egocentric_depth\.avi: found pictures of yuv420p, wanted 16-bit grey"):
        read_any(taco, "taco", tmp_path)
    np.save(taco / "Egocentric_Camera_Parameters" / below / "egocentric_frame_extrinsic.npy", trajectory(5))
    with pytest.raises(ValueError, match=r"extrinsic\.npy: found 5 poses, wanted 70 as frames of"):
        read_any(taco, "taco", tmp_path)


@pytest.fixture
def holoassist(tmp_path):
    root = tmp_path / "holo/R007-7July-DSLR"
    folder = root / "Export_py"
    for name in ("Video", "Eyes", "AhatDepth"):
        (folder / name).mkdir(parents=True)
    write_video(folder / "Video_pitchshift.mp4", count=64, rate=28)
    start = 637_933_536_001_234_567  # beyond what float64 counts exactly
    (folder / "Video/VideoMp4Timing.txt").write_text(f"{start}\n{start + 22_500_000}\n")
    (folder / "Video/Instrinsincs.txt").write_text("\t".join(map(str, [*K.ravel(), *[0] * 14, 1, W, H])) + "\n")
    # psi's axes: x forward, y left, z up, each written in those of OpenCV.
    psi_in_opencv = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]).T  # rows: forward, left, up
    opencv_from_psi = np.eye(4)
    opencv_from_psi[:3, :3] = np.stack([psi_in_opencv[:, 0], psi_in_opencv[:, 1], psi_in_opencv[:, 2]], axis=1)
    poses, eyes = [], []
    for k, pose in enumerate(trajectory()):
        ticks = start + round(k * 1e7 / 30)
        psi = pose @ opencv_from_psi
        poses.append([k / 30, ticks, *psi.ravel()])
        origin = pose @ [0.01, -0.02, 0.0, 1]
        aim = pose[:3, :3] @ (np.array([0.1, 0.05, 1.0]) / np.linalg.norm([0.1, 0.05, 1.0]))
        eyes.append([k / 30, ticks, *(origin[:3] if k != 9 else [np.nan] * 3), *aim, 1])
    for name, rows in (("Video/Pose_sync.txt", poses), ("Eyes/Eyes_sync.txt", eyes)):
        (folder / name).write_text("".join("\t".join(repr(x) for x in map(_plain, row)) + "\n" for row in rows))
    (folder / "AhatDepth/000000.png").write_bytes(b"")
    return root.parent


def _plain(value):
    return value if isinstance(value, int) else float(value)


def test_holoassist(holoassist, tmp_path):
    recording = read_any(holoassist, "holoassist", tmp_path)
    camera, gaze, rgb = (recording.streams[name] for name in ("camera", "gaze", "rgb"))
    np.testing.assert_allclose(camera.values, trajectory(), atol=1e-9)
    np.testing.assert_allclose(camera.times_s, np.arange(T) / 30, atol=1e-7)
    np.testing.assert_allclose(rgb.times_s, np.arange(64) / 28, atol=1e-3)
    point = np.array([0.01, -0.02, 0]) + 0.5 * np.array([0.1, 0.05, 1.0]) / np.linalg.norm([0.1, 0.05, 1.0])
    u, v, w = K @ point
    expected = [(u / w + 0.5) / W, (v / w + 0.5) / H]
    np.testing.assert_allclose(gaze.values[gaze.is_valid], np.tile(expected, (T - 1, 1)), atol=1e-9)
    assert not gaze.is_valid[9]
    assert recording.unused == ("Export_py/AhatDepth/ (1 files)",)


def test_holoassist_of_another_rate_is_refused(holoassist, tmp_path):
    with pytest.raises(ValueError, match=r"Pose_sync\.txt: found rows 0\.03333 s apart, wanted 10 a second"):
        read_any(holoassist, "holoassist", tmp_path, rate_hz=10.0)


@pytest.fixture
def arctic(tmp_path):
    root = tmp_path / "arctic"
    (root / "raw_seqs/s01").mkdir(parents=True)
    (root / "meta").mkdir()
    (root / "meta/misc.json").write_text(json.dumps({"s01": {"ioi_offset": 3, "gender": "female"}}))
    cam_from_world = np.linalg.inv(trajectory())
    held = {"R_k_cam_np": cam_from_world[:, :3, :3], "T_k_cam_np": cam_from_world[:, :3, 3:], "intrinsics": K}
    held["dist8"] = np.array([0.01, -0.02, 0.001, 0.002, 0.0, 0.1, 0.0, 0.0])
    held |= {"K_markers": [1, 2], "R0": np.eye(3), "count": np.int64(4)}
    np.save(root / "raw_seqs/s01/box_grab_01.egocam.dist.npy", held, allow_pickle=True)
    folder = root / "images/s01/box_grab_01/0"
    folder.mkdir(parents=True)
    for k in range(1, T + 3):
        Image.fromarray(np.full((H, W, 3), k, np.uint8)).save(folder / f"{k:05d}.jpg")
    return root


def test_arctic(arctic, tmp_path):
    recording = read_any(arctic, "arctic", tmp_path)
    camera, rgb = recording.streams["camera"], recording.streams["rgb"]
    np.testing.assert_allclose(camera.values, trajectory(), atol=1e-9)
    row = int(np.abs(rgb.times_s - camera.times_s[10]).argmin())
    assert abs(rgb.values.read(np.array([row]))[0].mean() - 13) < 2  # pose 10 is of picture 13
    assert recording.intrinsics.model == "opencv" and recording.intrinsics.distortion[5] == 0.1


def test_arctic_runs_no_code_of_its_files(arctic, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = arctic / "raw_seqs/s01/box_grab_01.egocam.dist.npy"
    for value in (Evil(), {"R_k_cam_np": Evil()}):
        np.save(path, value, allow_pickle=True)
        with pytest.raises(ValueError, match=r"refused, it wants to load (_?io|builtins)\.open"):
            read_any(arctic, "arctic", tmp_path)
        assert not (tmp_path / "owned").exists()
    hidden = pickle.dumps(Evil())
    scalar = np.float64(0).__reduce__()[0]

    class Nested:
        def __reduce__(self):
            return (scalar, (np.dtype("O"), hidden))

    np.save(path, {"intrinsics": Nested()}, allow_pickle=True)
    with pytest.raises(ValueError, match="scalar of objects"):
        read_any(arctic, "arctic", tmp_path)
    assert not (tmp_path / "owned").exists()


def test_hoi4d(tmp_path):
    folder = tmp_path / "hoi4d/ZY20210800001/H1/C1/N19/S100/s02/T1"
    (folder / "3Dseg").mkdir(parents=True)
    camera = tmp_path / "hoi4d/camera_params/ZY20210800001"
    camera.mkdir(parents=True)
    np.save(camera / "intrin.npy", K)
    write_video(folder / "align_rgb/image.mp4", rate=15)
    depth = [np.round(wall_depth(pose) * 1000).astype(np.uint16) for pose in trajectory()]
    write_video(folder / "align_depth/depth_video.avi", depth=depth, rate=15)
    lines = []
    for k, pose in enumerate(trajectory()):
        lines += [f"{k}\t{k}\t{k + 1}", *(" ".join(f"{x:.8f}" for x in row) for row in pose)]
    (folder / "3Dseg/output.log").write_text("\n".join(lines) + "\n")
    recording = read_any(tmp_path / "hoi4d", "hoi4d", tmp_path)
    assert recording.name == "ZY20210800001_H1_C1_N19_S100_s02_T1" and recording.intrinsics.fx == 60
    check_wall(recording, trajectory(), 6e-4)
    np.testing.assert_allclose(recording.streams["camera"].times_s, np.arange(T) / 15)
    with pytest.raises(ValueError, match=r"output\.log: found 70 poses, 2\.33 s at 30 a second, wanted 4\.60 s"):
        read_any(tmp_path / "hoi4d", "hoi4d", tmp_path, rate_hz=30.0)


ASE = [297.6375381033778, 357.6599197217746, 349.1922497127481, 0.3650890375644368, -0.1738082418112771]
ASE += [-0.7534945484033189, 2.434788882752295, -2.57786220300886, 0.8788483538598834]
ASE_TANGENTIAL = 0.0008005198595407136, -0.000294237814554143


def ase_pixel(points, side):
    """Pixels of points (N, 3) of the camera as stored, by the documented formula, at a picture of this side."""
    a, b = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    r = np.hypot(a, b)
    theta = np.arctan(r)
    bent = theta * (1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate(ASE[3:])))
    x, y = bent * a / r, bent * b / r
    n, dot = x * x + y * y, 2 * (x * ASE_TANGENTIAL[0] + y * ASE_TANGENTIAL[1])
    u = ASE[0] * (x + dot * x + n * ASE_TANGENTIAL[0]) + ASE[1]
    v = ASE[0] * (y + dot * y + n * ASE_TANGENTIAL[1]) + ASE[2]
    return (np.stack([u, v], 1) + 0.5) * side / 704 - 0.5


def test_ase_distances_along_rays_become_depth(tmp_path):
    from scipy.interpolate import griddata

    root, side, count = tmp_path / "ase/12", 88, 24
    for name in ("rgb", "depth"):
        (root / name).mkdir(parents=True)
    device_from_raw = np.eye(4)
    rotation = Rotation.from_quat([0.32640934382849085, 0.029274992008313648, 0.03336105995653155, 0.9441858687689326])
    device_from_raw[:3, :3] = rotation.as_matrix()
    device_from_raw[:3, 3] = -0.007530096566173914, -0.01090854984158026, -0.003598063315542823
    # x down, y left, z forward, in axes x right, y down, z forward
    upright_from_raw = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    header = "graph_uid,tracking_timestamp_us,utc_timestamp_ns"
    for name, axes in (("t", "xyz"), ("q", "xyzw")):
        header += "," + ",".join(f"{name}{axis}_world_device" for axis in axes)
    lines, poses = [header], trajectory(count)
    wall = np.stack(np.meshgrid(np.linspace(-9, 9, 181), np.linspace(-9, 9, 181)), -1).reshape(-1, 2)
    wall = np.concatenate([wall + 0.013, np.full((len(wall), 1), 2.0), np.ones((len(wall), 1))], 1)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)
    for k, pose in enumerate(poses):
        device = pose @ upright_from_raw @ np.linalg.inv(device_from_raw)
        q = Rotation.from_matrix(device[:3, :3]).as_quat()
        lines.append(f"g,{k},-1," + ",".join(repr(float(x)) for x in [*device[:3, 3], *q]))
        stored = np.zeros((side, side), np.uint16)
        if k in (0, 20, 23):
            raw = (wall @ np.linalg.inv(pose @ upright_from_raw).T)[:, :3]
            raw = raw[raw[:, 2] > 0.1]
            distance = np.linalg.norm(raw, axis=1)
            found = griddata(ase_pixel(raw, side), distance, grid, fill_value=0)
            stored = np.where(found < 6, np.round(found * 1000), 0).astype(np.uint16)
        Image.fromarray(stored).save(root / f"depth/depth{k:07d}.png")
        Image.fromarray(np.full((side, side, 3), [4 * k, 0, 0], np.uint8)).save(root / f"rgb/vignette{k:07d}.jpg")
    (root / "trajectory.csv").write_text("\n".join(lines) + "\n")
    recording = read_any(tmp_path / "ase", "ase", tmp_path)
    assert recording.name == "12"
    np.testing.assert_allclose(recording.streams["camera"].values, poses, atol=1e-9)
    assert recording.streams["camera"].times_s[20] == 2.0
    depth = recording.streams["depth"].values.read(np.array([20]))[0]
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(-0.8, 0.8, (20, 2)):
        point = np.linalg.inv(poses[20]) @ [poses[20, 0, 3] + x, y, 2.0, 1]  # in the upright camera
        u, v = ase_pixel((np.linalg.inv(upright_from_raw) @ point)[None, :3], side)[0]
        right, down = side - 1 - v, u
        assert depth[round(down), round(right)] == pytest.approx(point[2], abs=0.03)


@pytest.fixture
def egoexo4d(tmp_path, real_data_dir):
    root, sample = tmp_path / "egoexo", real_data_dir / "aria_mps_sample"
    take = root / "takes/cmu_bike01_5"
    copied(sample / "trajectory", take / "trajectory")
    copied(sample / "eye_gaze", take / "eye_gaze")
    write_video(take / "frame_aligned_videos/aria01_214-1.mp4", count=64)
    stamps = [149_300_000_001 + round(i * 1e9 / 30) for i in range(90)]
    (root / "captures/cmu_bike01").mkdir(parents=True)
    rows = ["cam01_pts,aria01_214-1_capture_timestamp_ns", *(f"{i},{ns}" for i, ns in enumerate(stamps))]
    (root / "captures/cmu_bike01/timesync.csv").write_text("\n".join(rows) + "\n")
    about = {"take_name": "cmu_bike01_5", "timesync_start_idx": 5, "timesync_end_idx": 70}
    (root / "takes.json").write_text(json.dumps([about | {"capture": {"capture_name": "cmu_bike01"}}]))
    return root, np.array(stamps), sample


def test_egoexo4d(egoexo4d, tmp_path):
    root, stamps, sample = egoexo4d
    recording = read_any(root, "egoexo4d", tmp_path)
    rgb, camera = recording.streams["rgb"], recording.streams["camera"]
    np.testing.assert_allclose(rgb.times_s, stamps[6:70] / 1e9, atol=1e-9)
    reference = np.load(sample / "reference_cam2world_30fps.npz")
    from egom2p.geometry import interpolate_poses

    poses, is_known = interpolate_poses(camera.times_s, camera.values, reference["grid_us"] / 1e6, max_gap_s=0.1)
    assert is_known.sum() > 330
    np.testing.assert_allclose(poses[is_known], reference["T_world_camera_opencv"][is_known], atol=1e-4)
    assert recording.streams["gaze"].is_valid.any()
    other = read_any(root, "egoexo4d", tmp_path, first_row="start")
    np.testing.assert_allclose(other.streams["rgb"].times_s, stamps[5:69] / 1e9, atol=1e-9)


def test_egoexo4d_refuses_other_counts_and_several_headsets(egoexo4d, tmp_path):
    root, _, _ = egoexo4d
    takes = json.loads((root / "takes.json").read_text())
    (root / "takes.json").write_text(json.dumps([takes[0] | {"timesync_end_idx": 80}]))
    with pytest.raises(ValueError, match=r"aria01_214-1\.mp4: found 64 frames, wanted 74 as rows 5 to 80"):
        read_any(root, "egoexo4d", tmp_path)
    for wrong in ({"timesync_start_idx": -3}, {"timesync_end_idx": None}, {"timesync_start_idx": "a"}):
        (root / "takes.json").write_text(json.dumps([takes[0] | wrong]))
        with pytest.raises(ValueError, match=r"takes\.json: cmu_bike01_5: found timesync_start_idx .*wanted rows"):
            read_any(root, "egoexo4d", tmp_path)
    video = root / "takes/cmu_bike01_5/frame_aligned_videos/aria01_214-1.mp4"
    shutil.copy(video, video.with_name("aria02_214-1.mp4"))
    with pytest.raises(ValueError, match=r"say source\.camera to choose one"):
        read_any(root, "egoexo4d", tmp_path)


def test_egogen_turns_the_axes_of_opengl(tmp_path, real_data_dir):
    root = tmp_path / "egogen"
    (root / "cam").mkdir(parents=True)
    published = np.load(real_data_dir / "egom2p_example_data/cam.npy")  # OpenCV axes, z up
    opengl = published.copy()
    opengl[:, :3, 1:3] *= -1  # y up and z back
    np.savez(root / "cam/walk_0.npz", opengl)
    write_video(root / "rgb/walk_0.mp4", count=60)
    recording = read_any(root, "egogen", tmp_path)
    np.testing.assert_allclose(recording.streams["camera"].values, published, atol=1e-12)
    assert recording.name == "walk_0" and len(recording.streams["rgb"].values) == 60
    np.savez(root / "cam/walk_0.npz", np.linalg.inv(opengl))
    other = read_any(root, "egogen", tmp_path, maps="cam_from_world")
    np.testing.assert_allclose(other.streams["camera"].values, published, atol=1e-9)


def test_clips_of_h2o_have_its_hands(h2o, tmp_path):
    overrides = [f"source.root={h2o}", f"output={tmp_path}/clips", "dataset=h2o", "num_workers=0", "clip.height=36"]
    overrides.append("source.hand_frame=camera")
    config = load_config(PrepareConfig, "default/data_preparation/h2o.yaml", [*overrides, "clip.width=36"])
    report = prepare(config)
    assert report.num_clips == 1 and report.absent == {}
    clip = ClipStore(tmp_path / "clips", "h2o")[0]
    assert set(clip.streams) == {"rgb", "depth", "camera", "hands"}
    assert clip.streams["hands"].values.shape == (60, 126) and clip.streams["hands"].unit == "m, in the camera"
    assert clip.streams["hands"].is_valid[8] and np.allclose(clip.streams["hands"].values[8, :3], [0.1, 0.2, 0.5])
