"""The nouns keep their promises: shapes are checked, specs round-trip, intrinsics follow the picture."""

import dataclasses

import numpy as np
import pytest
import torch

from egom2p.contracts import (
    AlignedClip,
    Intrinsics,
    ModalitySpec,
    PackedBatch,
    Provenance,
    Stream,
    TokenGrid,
    TokenizerMismatch,
    check_fingerprint,
    check_shape,
)


def test_check_shape_returns_the_named_axes():
    assert check_shape("ids", np.zeros((4, 7)), "b l") == {"b": 4, "l": 7}


@pytest.mark.parametrize(("pattern", "sizes"), [("b l 2", {}), ("b b", {}), ("b l", {"l": 6}), ("4 6", {})])
def test_check_shape_names_the_array_and_both_shapes(pattern, sizes):
    with pytest.raises(ValueError, match=r"ids has shape \(4, 7\), wanted"):
        check_shape("ids", np.zeros((4, 7)), pattern, **sizes)


@pytest.mark.parametrize(
    "spec",
    [
        ModalitySpec("tok_smell", "grid", "generic", TokenGrid((3, 2, 4)), 13, "smell", rate_hz=2.0),
        ModalitySpec(
            "tok_words", "sequence", "text", TokenGrid((9,)), 50, "words", pad_id=0, eos_id=1, sentinel_ids=(2, 3)
        ),
    ],
    ids=lambda spec: spec.kind,
)
def test_a_spec_survives_json(spec):
    assert ModalitySpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "image"}, {"quantity": "sound"}, {"vocab_size": 0}, {"kind": "track"}, {"kind": "sequence"}],
    ids=str,
)
def test_a_wrong_spec_is_refused_by_name(wrong):
    right = ModalitySpec("tok_smell", "grid", "generic", TokenGrid((3, 2, 4)), 13, "smell")
    with pytest.raises(ValueError, match="tok_smell"):
        dataclasses.replace(right, **wrong)


def test_resized_intrinsics_project_to_the_same_position_of_the_picture():
    small = Intrinsics(640, 480, 500.0, 510.0, 319.5, 239.5)
    large = small.resized(1280, 960)
    x, y, z = 0.3, -0.2, 1.5

    def position(camera):  # the outer corner of the first pixel is 0, of the last 1
        u = camera.fx * x / z + camera.cx
        v = camera.fy * y / z + camera.cy
        return (u + 0.5) / camera.width, (v + 0.5) / camera.height

    np.testing.assert_allclose(position(small), position(large), atol=1e-12)


def test_cropped_intrinsics_move_the_principal_point():
    crop = Intrinsics(640, 480, 500.0, 510.0, 320.0, 240.0).cropped(80, 10, 460, 460)
    assert (crop.cx, crop.cy, crop.width) == (240.0, 230.0, 460)


def test_a_stream_needs_a_time_and_a_validity_per_value():
    with pytest.raises(ValueError, match="3 values has 2 validities"):
        Stream(np.zeros(3), np.ones(2, bool), np.arange(3.0), "m")


def test_a_missing_stream_is_named_with_what_there_is():
    clip = AlignedClip("k", {"rgb": Stream(np.zeros((1, 2, 2, 3)), np.ones(1, bool), np.zeros(1), "uint8")}, None,
                       Provenance("d", "r"))  # fmt: skip
    with pytest.raises(KeyError, match=r"clip k has no depth; it has \['rgb'\]"):
        _ = clip.depth_m


def test_fingerprints_only_clash_when_both_are_known():
    check_fingerprint("tok_cam", found=None, wanted="sha256:a", where="x.tar")
    check_fingerprint("tok_cam", found="sha256:a", wanted="sha256:a", where="x.tar")
    with pytest.raises(TokenizerMismatch, match=r"x\.tar.*sha256:a.*sha256:b"):
        check_fingerprint("tok_cam", found="sha256:a", wanted="sha256:b", where="x.tar")


def test_a_batch_moves_with_every_tensor():
    rows = torch.zeros(0, dtype=torch.int32)
    tensors = {item.name: rows for item in dataclasses.fields(PackedBatch) if item.type in ("Tensor", torch.Tensor)}
    batch = PackedBatch(
        **tensors, head_counts=(), input_lengths=(), target_lengths=(), segment_lengths=(), modalities=()
    )
    moved = batch.to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in tensors) and len(tensors) == 11
