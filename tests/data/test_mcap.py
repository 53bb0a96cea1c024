"""MCAP replicas: stamps not receipts, order, key frames, calibration, poses only where they are named."""

import base64
import io
import json
from fractions import Fraction

import av
import numpy as np
import pytest
from field_replicas import numbered_frames, numbers_seen, quaternions, real, recognised_as, walk
from PIL import Image

from egom2p.data.recordings.mcap_messages import McapSource
from egom2p.data.recordings.reader_choice import AnySource, open_reader

writer_module = pytest.importorskip("mcap.writer", reason="extra [formats]")
START_NS, LATE_NS = 1_700_000_000 * 10**9, 30_000_000


def _stamp(offset_ns):
    return {"sec": (START_NS + offset_ns) // 10**9, "nsec": (START_NS + offset_ns) % 10**9}


def _write(path, topics):
    """topics: name -> (schema name, encoding, schema bytes, [(offset ns, content)])."""
    with open(path, "wb") as opened:
        writer = writer_module.Writer(opened)
        writer.start()
        for topic, (schema, encoding, data, messages) in topics.items():
            kind = {"json": "jsonschema", "cdr": "ros2msg"}.get(encoding, encoding)
            identity = writer.register_schema(name=schema, encoding=kind, data=data)
            channel = writer.register_channel(topic=topic, message_encoding=encoding, schema_id=identity)
            for offset_ns, content in messages:
                logged = START_NS + offset_ns + LATE_NS
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                writer.add_message(channel_id=channel, log_time=logged, publish_time=logged, data=content)
        writer.finish()


def _packets(frames, every, b_frames=0):
    """Annex B, one frame a packet."""
    stream_bytes = io.BytesIO()
    with av.open(stream_bytes, "w", format="h264") as container:
        options = {"g": str(every), "bf": str(b_frames), "crf": "10", "x264-params": "repeat-headers=1"}
        stream = container.add_stream("libx264", rate=Fraction(30), options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        packets = [bytes(p) for f in frames for p in stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24"))]
        return packets + [bytes(packet) for packet in stream.encode(None)]


def _video_schema():
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

    held = descriptor_pb2.FileDescriptorSet()
    held.file.add().ParseFromString(timestamp_pb2.DESCRIPTOR.serialized_pb)
    file = held.file.add(name="foxglove/CompressedVideo.proto", package="foxglove", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    message = file.message_type.add(name="CompressedVideo")
    kinds = {"timestamp": 11, "frame_id": 9, "data": 12, "format": 9}
    for number, (name, kind) in enumerate(kinds.items(), start=1):
        field = message.field.add(name=name, number=number, type=kind, label=1)
        if name == "timestamp":
            field.type_name = ".google.protobuf.Timestamp"
    pool = descriptor_pool.DescriptorPool()
    for one in held.file:
        pool.Add(one)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("foxglove.CompressedVideo"))
    return held.SerializeToString(), made


def test_video_by_its_stamps_and_transforms_sorted_where_they_are_named(tmp_path):
    schema, message_class = _video_schema()
    period_ns, world_from_body = 33_333_333, walk(80)
    videos = []
    for number, packet in enumerate(_packets(numbered_frames(30), 10)):
        message = message_class(frame_id="cam", data=packet, format="h264")
        message.timestamp.FromNanoseconds(START_NS + number * period_ns)
        videos.append((number * period_ns, message.SerializeToString()))
    xyzw = quaternions(world_from_body)
    transforms = []
    for number in range(80):
        turn = xyzw[number] if number != 9 else np.zeros(4)
        held = {
            "timestamp": _stamp(200_000_000 + number * 10_000_000),
            **{"parent_frame_id": "world", "child_frame_id": "body"},
            "translation": dict(zip("xyz", world_from_body[number, :3, 3].tolist(), strict=True)),
            "rotation": dict(zip("xyzw", turn.tolist(), strict=True)),
        }
        transforms.append((number * 10_000_000 if number != 20 else 900_000_000, held))
    calibration = {**{"width": 64, "height": 48, "distortion_model": "kannala_brandt"}, "D": [0.1, 0, 0, 0.02]}
    calibration["K"] = [50, 0, 31, 0, 51, 23, 0, 0, 1]
    topics = {
        "/cam/video": ("foxglove.CompressedVideo", "protobuf", schema, videos),
        "/cam/info": ("foxglove.CameraCalibration", "json", b"{}", [(0, calibration)]),
        "/tf": ("foxglove.FrameTransform", "json", b"{}", transforms),
    }
    _write(tmp_path / "walk.mcap", topics)
    recording = recognised_as(tmp_path, "mcap")
    rgb = recording.streams["rgb"]
    np.testing.assert_array_equal(numbers_seen(rgb.values.read(np.array([29, 0, 13]))), [29, 0, 13])
    np.testing.assert_allclose(rgb.times_s, 1_700_000_000 + np.arange(30) * period_ns / 1e9, atol=3e-7)
    assert "camera" not in recording.streams and "/tf" in recording.notes[0]
    assert recording.intrinsics.model == "kannala_brandt" and recording.intrinsics.fy == 51
    body_from_cam = walk(5)[4]
    recording = recognised_as(tmp_path, "mcap", pose="/tf", body_from_camera=body_from_cam.tolist())
    camera = recording.streams["camera"]
    assert (np.diff(camera.times_s) > 0).all() and not camera.is_valid[9] and camera.is_valid.sum() == 79
    np.testing.assert_allclose(camera.values[[20, 50]], (world_from_body @ body_from_cam)[[20, 50]], atol=1e-9)


def test_a_video_whose_frames_are_shown_out_of_order_is_refused(tmp_path):
    schema, message_class = _video_schema()
    videos = []
    for number, packet in enumerate(_packets(numbered_frames(12), 10, b_frames=2)):
        message = message_class(frame_id="cam", data=packet, format="h264")
        message.timestamp.FromNanoseconds(START_NS + number * 33_333_333)
        videos.append((number * 33_333_333, message.SerializeToString()))
    _write(tmp_path / "walk.mcap", {"/cam/video": ("foxglove.CompressedVideo", "protobuf", schema, videos)})
    with pytest.raises(ValueError, match=r"walk.mcap: /cam/video has frames that are shown out of order \(B frames\)"):
        recognised_as(tmp_path, "mcap")


def test_pictures_depth_and_imu(tmp_path):
    def jpeg(number):
        buffer = io.BytesIO()
        Image.fromarray(numbered_frames(1, first=number)[0]).save(buffer, "JPEG")
        return {
            "format": "jpeg",
            "data": base64.b64encode(buffer.getvalue()).decode(),
            "timestamp": _stamp(number * 10**8),
        }

    rows = np.zeros((4, 8), "<u2")  # padded: 6 of 8 are pixels
    rows[:, :6] = 1500
    raw = {"width": 6, "height": 4, "step": 16, "encoding": "16UC1", "data": base64.b64encode(rows.tobytes()).decode()}
    metres = np.full((4, 6), 1.25, "<f4").tobytes()
    real_numbers = {**raw, "step": 24, "encoding": "32FC1", "data": base64.b64encode(metres).decode()}
    imu = {
        "header": {"stamp": {"sec": 0, "nanosec": 0}},
        "angular_velocity": {"x": 1, "y": 2, "z": 3},
        "linear_acceleration": {"x": 4, "y": 5, "z": 9.8},
    }
    # The third is logged with the second, each by its own stamp; the fifth is there twice.
    logged = [(0, 0), (1, 1), (1, 2), (3, 3), (4, 4), (5, 4)]
    topics = {
        "/rgb": ("foxglove.CompressedImage", "json", b"{}", [(at * 10**8, jpeg(n)) for at, n in logged]),
        "/depth": ("foxglove.RawImage", "json", b"{}", [(0, {**raw, "timestamp": _stamp(0)})]),
        "/metres": ("foxglove.RawImage", "json", b"{}", [(0, {**real_numbers, "timestamp": _stamp(0)})]),
        "/head/imu": ("sensor_msgs/msg/Imu", "json", b"{}", [(n * 10**7, imu) for n in range(3)]),
    }
    _write(tmp_path / "x.mcap", topics)
    with pytest.raises(ValueError, match=r"source.rgb to name one"):
        recognised_as(tmp_path, "mcap")
    with pytest.raises(ValueError, match="depth_metres_per_unit"):
        recognised_as(tmp_path, "mcap", rgb="/rgb", depth="/depth")
    recording = recognised_as(tmp_path, "mcap", rgb="/rgb", depth="/depth", depth_metres_per_unit=0.001)
    assert recording.notes == ("/rgb: 1 of 6 samples have the time of another and are left out",)
    streams = recording.streams
    np.testing.assert_array_equal(numbers_seen(streams["rgb"].values.read(np.arange(5))), np.arange(5))
    depth = streams["depth"].values.read(np.array([0]))
    assert depth.shape == (1, 4, 6)
    np.testing.assert_allclose(depth, 1.5)
    metres = recognised_as(tmp_path, "mcap", rgb="/rgb", depth="/metres", depth_metres_per_unit=0.001).streams["depth"]
    np.testing.assert_allclose(metres.values.read(np.array([0])), 1.25)  # they have their unit
    np.testing.assert_array_equal(streams["head_imu"].values[1], [1, 2, 3, 4, 5, 9.8])
    assert streams["head_imu"].times_s[0] == pytest.approx(1_700_000_000.03)  # no stamp: when it was received


def test_a_real_ros_file_without_pictures_says_what_it_holds():
    folder = real("formats/mcap_ros2")
    reader = open_reader(AnySource(kind="any", root=str(folder)))
    assert reader.names == ("cdr_test_0", "talker")
    with pytest.raises(ValueError, match="std_msgs/msg/String.*wanted pictures, IMU, or source.pose"):
        reader.read(1)
    pytest.importorskip("mcap_ros2", reason="extra [formats]")
    with pytest.raises(ValueError, match="/topic holds no poses"):
        open_reader(McapSource(kind="mcap", root=str(folder), pose="/topic")).read(1)


def test_ros2_messages_of_another_writer_have_their_values(tmp_path):
    """CDR by rosbags, which shares nothing with the decoder that reads it."""
    pytest.importorskip("mcap_ros2", reason="extra [formats]")
    typesys = pytest.importorskip("rosbags.typesys", reason="extra [dev], by evo")
    types = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)

    def made(kind, **fields):
        return types.types[kind](**fields)

    def xyz(kind, values, axes="xyz"):
        return made(f"geometry_msgs/msg/{kind}", **dict(zip(axes, map(float, values), strict=True)))

    def header(offset_ns):
        stamp = _stamp(offset_ns)
        time = made("builtin_interfaces/msg/Time", sec=stamp["sec"], nanosec=stamp["nsec"])
        return made("std_msgs/msg/Header", stamp=time, frame_id="cam")

    def topic(kind, messages):
        text = types.generate_msgdef(kind, ros_version=2)[0].encode()
        return kind, "cdr", text, [(at, bytes(types.serialize_cdr(message, kind))) for at, message in messages]

    def image(at, picture, encoding, step):
        rows = np.zeros((picture.shape[0], step), np.uint8)  # rows may be padded
        content = picture.reshape(len(picture), -1).view(np.uint8)
        rows[:, : content.shape[1]] = content
        about = {"height": picture.shape[0], "width": picture.shape[1], "encoding": encoding, "is_bigendian": 0}
        return made("sensor_msgs/msg/Image", header=header(at), **about, step=step, data=rows.reshape(-1))

    random = np.random.default_rng(0)
    colour, depth_mm = random.integers(0, 255, (5, 6, 3), np.uint8), random.integers(500, 4000, (5, 6)).astype("<u2")
    poses, xyzw = walk(6), quaternions(walk(6))
    steps_ns = [number * 50_000_000 for number in range(6)]
    covariance = np.zeros(9)
    roi = made(
        "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )  # fmt: skip
    k, d = np.array([5.0, 0, 2.5, 0, 5.5, 2, 0, 0, 1]), np.array([0.1, 0.02, 0.0, -0.01])
    info = made(
        "sensor_msgs/msg/CameraInfo",
        **{"header": header(0), "height": 5, "width": 6, "distortion_model": "equidistant", "d": d, "k": k},
        **{"r": np.eye(3).ravel(), "p": np.zeros(12), "binning_x": 0, "binning_y": 0, "roi": roi},
    )
    imu = [
        made(
            "sensor_msgs/msg/Imu",
            **{"header": header(at), "orientation": xyz("Quaternion", [0, 0, 0, 1], "xyzw")},
            **{"angular_velocity": xyz("Vector3", [n, 2, 3]), "linear_acceleration": xyz("Vector3", [4, 5, 9.8])},
            **{f"{name}_covariance": covariance for name in ("orientation", "angular_velocity", "linear_acceleration")},
        )
        for n, at in enumerate(steps_ns)
    ]
    where = [
        made(
            "geometry_msgs/msg/PoseStamped",
            header=header(at),
            pose=made(
                "geometry_msgs/msg/Pose",
                position=xyz("Point", pose[:3, 3]),
                orientation=xyz("Quaternion", turn, "xyzw"),
            ),
        )
        for at, pose, turn in zip(steps_ns, poses, xyzw, strict=True)
    ]
    transforms = [
        made(
            "geometry_msgs/msg/TransformStamped",
            header=message.header,
            child_frame_id="cam",
            transform=made(
                "geometry_msgs/msg/Transform",
                translation=xyz("Vector3", pose[:3, 3]),
                rotation=message.pose.orientation,
            ),
        )
        for message, pose in zip(where, poses, strict=True)
    ]
    bgr = np.ascontiguousarray(colour[..., ::-1])
    topics = {
        "/rgb": topic("sensor_msgs/msg/Image", [(at, image(at, bgr, "bgr8", 20)) for at in steps_ns]),
        "/depth": topic("sensor_msgs/msg/Image", [(at, image(at, depth_mm, "16UC1", 12)) for at in steps_ns]),
        "/info": topic("sensor_msgs/msg/CameraInfo", [(0, info)]),
        "/imu": topic("sensor_msgs/msg/Imu", list(zip(steps_ns, imu, strict=True))),
        "/pose": topic("geometry_msgs/msg/PoseStamped", list(zip(steps_ns, where, strict=True))),
        "/tf": topic(
            "tf2_msgs/msg/TFMessage",
            [(at, made("tf2_msgs/msg/TFMessage", transforms=[t])) for at, t in zip(steps_ns, transforms, strict=True)],
        ),
    }
    _write(tmp_path / "ros.mcap", topics)
    for named in ("/pose", "/tf"):
        options = {"rgb": "/rgb", "depth": "/depth", "depth_metres_per_unit": 0.001, "pose": named}
        recording = recognised_as(tmp_path, "mcap", **options)
        streams, camera = recording.streams, recording.intrinsics
        np.testing.assert_array_equal(streams["rgb"].values.read(np.array([3]))[0], colour)
        np.testing.assert_allclose(streams["depth"].values.read(np.array([2]))[0], depth_mm / 1000, atol=1e-6)
        np.testing.assert_allclose(streams["camera"].values, poses, atol=1e-9)
        np.testing.assert_allclose(streams["camera"].times_s, 1_700_000_000 + np.arange(6) * 0.05, atol=3e-7)
        np.testing.assert_array_equal(streams["imu"].values[4], [4, 2, 3, 4, 5, 9.8])
        assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.model) == (5, 5.5, 2.5, 2, "kannala_brandt")
        assert camera.distortion == tuple(d)
