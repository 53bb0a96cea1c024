"""Labels of teachers: values, times and directions; what has no scale is never in metres; nothing is lost."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from egom2p.config import load_config
from egom2p.contracts import AlignedClip, Intrinsics, Provenance, Stream
from egom2p.data.clips.clip_store import ClipStore, write_clips
from egom2p.geometry import write_tum
from egom2p.pipelines.teacher_labels import LabelConfig, label_clips

FRAMES_S, SAMPLES_S = np.arange(16) / 8, np.arange(60) / 30
GAZE = np.full((60, 2), 0.5, np.float32)


@pytest.fixture
def clips(tmp_path):
    def clip(recording, index):
        start_s, rgb = 2.0 * index, np.random.default_rng(index).integers(0, 255, (16, 12, 16, 3), np.uint8)
        streams = {
            "rgb": Stream(rgb, np.ones(16, bool), start_s + FRAMES_S, "uint8"),
            "gaze": Stream(GAZE, np.ones(60, bool), start_s + SAMPLES_S, "image"),
        }
        about = Provenance("home", recording, start_s)
        return AlignedClip(f"{recording}_{index:06d}", streams, Intrinsics(16, 12, 9, 9, 7.5, 5.5), about)

    write_clips(tmp_path / "clips", "home", [clip("a", 0), clip("a", 1), clip("b", 0)])
    return tmp_path / "clips"


def config(clips, **changes):
    values = {"clips": str(clips), "dataset": "home", "output": str(clips.parent / "out"), "stream": "depth"}
    values |= {"teacher": {"kind": "callable", "name": "x:y"}, "model": "Oracle 1", "licence": "MIT", "scale": "metric"}
    return LabelConfig(**(values | changes))


def ramp(clip):
    """Metres that tell frame and pixel of a picture of twice the size, with a hole."""
    depth_m = 1 + np.arange(16)[:, None, None] / 10 + np.arange(24)[:, None] / 100 + np.arange(32) / 1000
    depth_m[:, :2, :2], depth_m[5] = np.nan, 0
    return depth_m, np.arange(16) != 9


def test_depth_of_a_callable_is_there_with_who_said_it(clips):
    label_clips(config(clips), ramp)
    store, before = ClipStore(clips.parent / "out", "home"), ClipStore(clips, "home")
    assert store.streams == ("depth", "gaze", "rgb") and store.keys == before.keys
    for labelled, plain in zip(store, before, strict=True):
        np.testing.assert_array_equal(labelled.rgb, plain.rgb)
        assert labelled.intrinsics == plain.intrinsics and labelled.provenance == plain.provenance
        depth = labelled.streams["depth"]
        assert depth.values[2, 0, 0] == 0 and list(np.flatnonzero(~depth.is_valid)) == [5, 9]
        assert depth.values[3, 6, 4] == pytest.approx(
            1 + 0.3 + 0.13 + 0.009, abs=1e-3
        )  # the pixel (13, 9) of the larger
        share = 14 / 16 * (1 - 1 / 192)
        about = {
            "model": "Oracle 1",
            "licence": "MIT",
            "scale": "metric",
            "valid_share": pytest.approx(share, abs=1e-4),
        }
        assert labelled.extra["labels"] == {"depth": about}
    card = json.loads((clips.parent / "out/meta/home/card.json").read_text())
    teacher = {"kind": "callable", "name": "x:y"}
    assert card["labels"] == {"depth": {"model": "Oracle 1", "licence": "MIT", "scale": "metric", "teacher": teacher}}
    with pytest.raises(ValueError, match="labelled otherwise"):
        label_clips(config(clips, model="Oracle 2"), ramp)
    with pytest.raises(ValueError, match="have depth already"):
        label_clips(config(clips.parent / "out", output=str(clips.parent / "twice")), ramp)
    with pytest.raises(ValueError, match=r"a_000000: Oracle 1: found depth of shape \(3, 4\), wanted \(16, H, W\)"):
        label_clips(config(clips, output=str(clips.parent / "bad")), lambda _: (np.ones((3, 4)), np.ones(3, bool)))


def test_what_has_no_scale_is_no_metre(clips):
    label_clips(config(clips, scale="relative"), ramp)
    store = ClipStore(clips.parent / "out", "home")
    assert store.streams == ("depth_unscaled", "gaze", "rgb")
    assert store[0].streams["depth_unscaled"].unit == "no unit; Oracle 1 as it is"
    with pytest.raises(ValueError, match="scale of camera is metric or not, found relative"):
        config(clips, stream="camera", scale="relative")
    poses = np.tile(np.eye(4), (60, 1, 1))
    unscaled = config(clips, stream="camera", scale="up_to_scale", output=str(clips.parent / "poses"))
    label_clips(unscaled, lambda _: (poses, np.ones(60, bool)))
    clip = ClipStore(clips.parent / "poses", "home")[0]
    assert "camera" not in clip.streams and clip.streams["camera_unscaled"].values.shape == (60, 12)


def test_a_run_that_was_stopped_goes_on(clips):
    asked = []

    def failing(clip):
        asked.append(clip.key)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ramp(clip)

    with pytest.raises(KeyboardInterrupt):
        label_clips(config(clips, clips_per_shard=1), failing)
    label_clips(config(clips, clips_per_shard=1), failing)
    assert asked == ["a_000000", "a_000001", "b_000000", "b_000000"]
    assert len(ClipStore(clips.parent / "out", "home")) == 3
    assert not list((clips.parent / "out").rglob("*.tmp"))


def test_depth_beyond_what_clips_hold_is_not_counted_as_valid(clips):
    far = ramp(None)[0] * np.where(np.arange(32) < 8, 50.0, 1.0)
    label_clips(config(clips), lambda _: (far, np.arange(16) != 9))
    for clip in ClipStore(clips.parent / "out", "home"):
        depth = clip.streams["depth"]
        assert clip.extra["labels"]["depth"]["valid_share"] == pytest.approx((depth.values > 0).mean(), abs=1e-4)
        assert 0.5 < (depth.values > 0).mean() < 0.8
    millimetres = np.full((16, 4, 4), 1500.0)
    with pytest.raises(ValueError, match=r"a_000000: Oracle 1: the median depth is 1500, wanted metres"):
        label_clips(config(clips, output=str(clips.parent / "x")), lambda _: (millimetres, np.ones(16, bool)))
    unscaled = config(clips, scale="relative", output=str(clips.parent / "y"))
    label_clips(unscaled, lambda _: (millimetres, np.ones(16, bool)))
    assert (ClipStore(clips.parent / "y", "home")[0].streams["depth_unscaled"].values == 1500).all()


@pytest.mark.parametrize(
    "found",
    [None, np.float32(1), (np.ones((16, 4, 4)), np.ones(3, bool)), (np.ones((16, 0, 4)), np.ones(16, bool)),
     (np.full((16, 4, 4), "a"), np.ones(16, bool)), (np.ones((16, 4, 4)) * 1j, np.ones(16, bool))],
)  # fmt: skip
def test_what_is_no_label_is_one_error(clips, found):
    with pytest.raises(ValueError, match="clip a_000000: Oracle 1: found"):
        label_clips(config(clips), lambda _: found)


@pytest.mark.parametrize("values", [np.float32(1), np.ones((0, 4, 4)), np.full((9, 4, 4), "a"), np.ones((9, 4))])
def test_files_that_are_no_labels_are_one_error(clips, values):
    folder = clips.parent / "labels"
    folder.mkdir()
    np.save(folder / "a.npy", values)
    teacher = {"kind": "folder", "path": str(folder), "rate_hz": 8.0}
    with pytest.raises(ValueError, match=r"a\.npy: found .* of shape .*, wanted numbers of depth"):
        label_clips(config(clips, teacher=teacher))
    (folder / "a.npy").unlink()
    (folder / "a").mkdir()
    with pytest.raises(ValueError, match="labels/a"):
        label_clips(config(clips, teacher=teacher))
    for name in ("0.png", "0.exr"):  # pictures of two kinds are two sequences
        (folder / "a" / name).write_bytes(b"")
    with pytest.raises(ValueError, match="labels/a"):
        label_clips(config(clips, teacher=teacher))


def test_clips_labelled_in_another_way_are_refused(clips):
    folder = clips.parent / "slam"
    folder.mkdir()
    for name in ("a", "b"):
        np.save(folder / f"{name}.npy", turning(np.arange(200) / 20))
    teacher = {"kind": "folder", "path": str(folder), "rate_hz": 20.0}
    label_clips(config(clips, stream="camera", teacher=teacher))
    folder.rename(clips.parent / "moved")
    teacher["path"] = str(clips.parent / "moved")
    label_clips(config(clips, stream="camera", teacher=teacher))
    with pytest.raises(ValueError, match="labelled otherwise"):
        label_clips(config(clips, stream="camera", teacher={**teacher, "maps": "cam_from_world"}))
    with pytest.raises(ValueError, match="are the clips themselves"):
        label_clips(config(clips, output=str(clips)), ramp)


def turning(times_s):
    poses = np.tile(np.eye(4), (len(times_s), 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(np.stack([0 * times_s, 0.3 * times_s, 0 * times_s], 1)).as_matrix()
    poses[:, :3, 3] = np.stack([times_s, 0 * times_s, 2 * times_s], 1)
    return poses


@pytest.mark.parametrize("layout", ["tum", "npz of the recording", "npy of clips"])
def test_poses_of_another_program(clips, layout):
    folder, times_s = clips.parent / "slam", np.arange(200) / 20
    folder.mkdir()
    teacher = {"kind": "folder", "path": str(folder)}
    for name in ("a", "b"):
        if layout == "tum":  # DROID-SLAM and most others
            write_tum(folder / f"{name}.txt", times_s, turning(times_s))
        elif layout == "npz of the recording":  # ViPE: `data` and `inds`, a row a frame
            np.savez(folder / f"{name}.npz", data=np.linalg.inv(turning(times_s))[:, :3], inds=np.arange(200))
            teacher |= {"array": "data", "rate_hz": 20.0, "maps": "cam_from_world"}
    if layout == "npy of clips":
        for key, start_s in (("a_000000", 0), ("a_000001", 2), ("b_000000", 0)):
            poses = turning(start_s + SAMPLES_S)
            poses[7] = np.nan
            np.save(folder / f"{key}.npy", poses)
    label_clips(config(clips, stream="camera", teacher=teacher))
    for clip in ClipStore(clips.parent / "out", "home"):
        camera = clip.streams["camera"]
        expected = turning(clip.provenance.start_s + SAMPLES_S)
        np.testing.assert_allclose(camera.values[camera.is_valid], expected[camera.is_valid], atol=1e-6)
        assert camera.is_valid.sum() == (59 if layout == "npy of clips" else 60)
    (folder / "b.txt").unlink(missing_ok=True)
    for path in folder.glob("b*"):
        path.unlink()
    with pytest.raises(ValueError, match="found nothing for clip b_000000, wanted b_000000 or b as .npz"):
        label_clips(config(clips, stream="camera", teacher=teacher, output=str(clips.parent / "other")))


@pytest.mark.parametrize("layout", ["pictures", "npz"])
def test_depth_of_another_program(clips, layout):
    folder = clips.parent / "depth"
    folder.mkdir()
    teacher = {"kind": "folder", "path": str(folder), "rate_hz": 30.0}
    for name in ("a", "b"):
        frames = np.arange(150)
        if layout == "npz":  # Video-Depth-Anything: `depths`
            depths = np.broadcast_to((1 + frames / 100)[:, None, None], (150, 24, 32)).astype(np.float32)
            np.savez(folder / f"{name}.npz", depths=depths)
            continue
        (folder / name).mkdir()
        for frame in frames:
            Image.fromarray(np.full((24, 32), 1000 + 10 * frame, np.uint16)).save(folder / name / f"{frame:05d}.png")
    label_clips(config(clips, teacher=teacher))
    for clip in ClipStore(clips.parent / "out", "home"):
        nearest = np.round((clip.provenance.start_s + FRAMES_S) * 30 - 1e-4)
        np.testing.assert_allclose(clip.depth_m[:, 5, 5], 1 + nearest / 100, atol=1.1e-3)
    with pytest.raises(ValueError, match="holds 150 rows of a recording, wanted teacher.rate_hz"):
        label_clips(config(clips, teacher={**teacher, "rate_hz": None}, output=str(clips.parent / "x")))


def test_a_tiny_model_of_transformers(clips, capsys):
    transformers = pytest.importorskip("transformers", reason="extra [anytoany]")
    folder, size = clips.parent / "model", 14 * 4
    backbone = transformers.Dinov2Config(
        **{"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 14, "image_size": size},
        **{"out_features": ["stage1", "stage2"], "apply_layernorm": True, "reshape_hidden_states": False},
    )
    made = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        **{"reassemble_hidden_size": 8, "neck_hidden_sizes": [8, 8], "fusion_hidden_size": 8, "patch_size": 14},
        **{"reassemble_factors": [1, 0.5], "head_hidden_size": 4, "depth_estimation_type": "metric", "max_depth": 5},
    )
    transformers.DepthAnythingForDepthEstimation(made).save_pretrained(folder)
    processor = transformers.DPTImageProcessor(size={"height": size, "width": size}, keep_aspect_ratio=False)
    processor.save_pretrained(folder)
    words = [f"clips={clips}", "dataset=home", f"output={clips.parent / 'out'}", f"teacher.path={folder}"]
    words += ["model=Tiny", "licence=none"]
    default = "default/data_preparation/teacher_depth.yaml"
    with pytest.raises(ValueError, match="its config says that its depth is metric, found scale=relative"):
        label_clips(load_config(LabelConfig, default, [*words, "scale=relative"]))
    label_clips(load_config(LabelConfig, default, [*words, "scale=metric"]))
    depth_m = ClipStore(clips.parent / "out", "home")[1].depth_m
    assert depth_m.shape == (16, 12, 16) and (depth_m >= 0).all() and depth_m.max() <= 5
    assert "depth of 3 clips by Tiny (none, metric)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no folder with a model of transformers; none is downloaded"):
        label_clips(config(clips, teacher={"kind": "transformers", "path": "some/name"}))


def own_teacher(clip):
    return ramp(clip)


def test_a_function_of_yours_by_name(clips, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    label_clips(config(clips, teacher={"kind": "callable", "name": "test_teacher_labels:own_teacher"}))
    assert "depth" in ClipStore(clips.parent / "out", "home").streams
    with pytest.raises(ValueError, match="wanted package.module:function"):
        label_clips(config(clips, output="x", teacher={"kind": "callable", "name": "nothing.like_it:x"}))
