"""The codec is causal, keeps sizes, refuses what it cannot encode, and learns."""

import numpy as np
import pytest
import torch
from moving_clips import SIZE, moving_clip, moving_clips, with_stream
from tiny_tokenizers import TINY_CODEC, tiny_codec

from egom2p.config import ConfigError, from_plain
from egom2p.tokenizers.protocol import TokenizerBatch, TrainableTokenizer
from egom2p.tokenizers.video.causal_video_network import haar_patches, haar_video
from egom2p.tokenizers.video.video_codec import VideoCodec, VideoCodecConfig
from egom2p.tokenizers.video.video_representations import crop_padding, pad_video


def steps(network: VideoCodec, clips, count: int, rng) -> list[float]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(count):
        batch = network.batch_from_clips(clips, rng)
        output = network(batch)
        loss = (output.sums / torch.tensor(output.counts)).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("size", [1, 2, 4])
def test_haar_patches_invert(size, generator):
    video = torch.randn((2, 3, 1 + 2 * size, 2 * size, 3 * size), generator=generator)
    patches = haar_patches(video, size)
    assert patches.shape == (2, 3 * size**3, 3, 2, 3)
    torch.testing.assert_close(haar_video(patches, size), video)


def test_lowest_haar_band_of_a_constant_is_that_constant():
    patches = haar_patches(torch.full((1, 3, 5, 8, 8), 0.7), 4)
    torch.testing.assert_close(patches[:, :3], torch.full((1, 3, 2, 2, 2), 0.7))
    assert patches[:, 3:].abs().max() < 1e-6


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 7, 9), (16, 100, 64)])
def test_padding_is_cropped_back(size, generator):
    video = torch.randn((1, 2, *size), generator=generator)
    padded = pad_video(video, 4, 16)
    assert (padded.shape[2] - 1) % 4 == 0 and padded.shape[3] % 16 == 0 and padded.shape[4] % 16 == 0
    assert torch.equal(crop_padding(padded, size), video)


@pytest.mark.parametrize("changes", [{}, {"temporal_compression": 8, "frame_multiple": 8}, {"attention": True}])
@torch.no_grad()
def test_late_frames_do_not_change_early_ids(changes, generator):
    network = tiny_codec(**changes).eval()
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    video = torch.randn((1, 3, 17, SIZE, SIZE), generator=generator)
    changed = video.clone()
    changed[:, :, 9:] = torch.randn((1, 3, 8, SIZE, SIZE), generator=generator)
    before, after = network.pre_quantised(video), network.pre_quantised(changed)
    num_same = 1 + 8 // network.config.temporal_compression
    torch.testing.assert_close(before[:, :, :num_same], after[:, :, :num_same])
    assert not torch.allclose(before[:, :, num_same:], after[:, :, num_same:])


@pytest.mark.parametrize(
    ("changes", "grid"),
    [
        ({}, (5, 4, 4)),
        ({"spatial_compression": 4}, (5, 8, 8)),
        ({"spatial_compression": 16, "channel_multipliers": (1, 2, 2)}, (5, 2, 2)),
        ({"temporal_compression": 8, "frame_multiple": 8}, (3, 4, 4)),
        ({"num_frames": 1}, (1, 4, 4)),
        ({"num_frames": 9, "height": 20, "width": 40}, (3, 4, 6)),
    ],
)
@pytest.mark.parametrize("linear", [False, True])
def test_ids_have_the_grid_of_the_spec(changes, grid, linear):
    network = tiny_codec(has_linear_path=linear, **changes).eval()
    config = network.config
    frames = np.random.default_rng(0).integers(
        0, 255, (config.num_frames, config.height, config.width, 3), dtype=np.uint8
    )
    times = np.arange(config.num_frames) / 8
    clip = with_stream(moving_clip(0), "rgb", values=frames, is_valid=np.ones(len(frames), bool), times_s=times)
    ids = network.encode_clips([clip])
    assert network.spec.grid.shape == grid and ids.shape == (1, network.spec.num_tokens) and ids.dtype == np.int32
    values, is_valid = network.decode_ids(ids)
    assert values.shape == (1, *frames.shape) and values.dtype == np.uint8 and is_valid.all()


def test_batch_of_one_equals_a_row_of_four():
    network, clips = tiny_codec().eval(), moving_clips(4)
    ids = network.encode_clips(clips)
    np.testing.assert_array_equal(network.encode_clips(clips[2:3])[0], ids[2])
    np.testing.assert_array_equal(network.decode_ids(ids)[0][2], network.decode_ids(ids[2:3])[0][0])


@pytest.mark.parametrize("quantity", ["rgb", "depth"])
def test_linear_path_starts_well_and_training_improves_it(quantity, rng):
    clips, held_out = moving_clips(12), moving_clips(4, first=100)
    network = tiny_codec(quantity, has_linear_path=True, window_frames=5)
    network.fit_normalisation(clips)
    start = network.evaluate(held_out)
    assert start["psnr_db"] > 20 if quantity == "rgb" else start["abs_rel"] < 0.1
    losses = steps(network, clips, 40, rng)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    end = network.evaluate(held_out)
    assert 1 <= end["perplexity"] <= end["codes_used"] <= network.spec.vocab_size


def test_published_start_learns_too(rng):
    network = tiny_codec("depth", window_frames=5)
    losses = steps(network, moving_clips(8), 30, rng)
    assert losses[-1] < 0.7 * losses[0]


def test_windows_are_drawn_from_the_generator():
    network, clips = tiny_codec(window_frames=5, windows_per_clip=2), moving_clips(3)
    first, second = (network.batch_from_clips(clips, np.random.default_rng(7)) for _ in range(2))
    assert first.tensors["video"].shape == (6, 3, 5, SIZE, SIZE) and first.num_clips == 3
    assert torch.equal(first.tensors["video"], second.tensors["video"])
    assert network.batch_from_clips(clips, None).tensors["video"].shape[2] == 16


def test_unknown_depth_weighs_nothing():
    network = tiny_codec("depth")
    clip = moving_clip(0)
    depth = clip.depth_m.copy()
    depth[:, :8] = 0.0
    frame_is_valid = np.ones(16, bool)
    frame_is_valid[3] = False
    batch = network.batch_from_clips([with_stream(clip, "depth", values=depth, is_valid=frame_is_valid)], None)
    is_known = batch.tensors["is_known"]
    assert not is_known[:, :, :, :8].any() and not is_known[:, :, 3].any()
    assert batch.counts == (15 * (SIZE - 8) * SIZE,) == (int(is_known.sum()),)
    assert torch.isfinite(batch.tensors["video"]).all()
    video = batch.tensors["video"].clone()
    video[~is_known] = 5.0
    shifted = TokenizerBatch({"video": video, "is_known": is_known}, batch.counts, 1)
    error_of_known = (network(batch).sums, network(shifted).sums)
    assert all(torch.isfinite(sums).all() for sums in error_of_known)


def test_all_unknown_depth_is_legal():
    clip = with_stream(moving_clip(0), "depth", values=np.zeros((16, SIZE, SIZE), np.float32))
    network = tiny_codec("depth")
    assert np.isfinite(network.decode_ids(network.encode_clips([clip]))[0]).all()
    assert network.batch_from_clips([clip], None).counts == (0,)
    assert np.isnan(network.evaluate([clip])["abs_rel"])


def test_bad_clips_are_named():
    depth = moving_clip(3).depth_m.copy()
    depth[2, 1, 1] = np.nan
    with pytest.raises(ValueError, match="clip-003.*NaN.*frame 2"):
        tiny_codec("depth").encode_clips([moving_clip(1), with_stream(moving_clip(3), "depth", values=depth)])
    with pytest.raises(ValueError, match="clip-003.*wants"):
        tiny_codec(height=64).encode_clips([moving_clip(3)])
    with pytest.raises(ValueError, match="clip-003.*uint8"):
        tiny_codec().encode_clips([with_stream(moving_clip(3), "rgb", values=moving_clip(3).rgb.astype(np.float32))])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spatial_compression": 12}, "spatial_compression"),
        ({"spatial_compression": 32, "pixel_multiple": 32}, "spatial_compression"),
        ({"window_frames": 20}, "window_frames"),
        ({"depth_range_m": (0.0, 3.0)}, "depth_range_m"),
        ({"pixel_multiple": 12}, "multiples"),
        ({"chanels": 8}, "channels"),
    ],
)
def test_wrong_configs_say_what_is_wrong(changes, words):
    values = {"modality": "tok_rgb", "quantity": "rgb", "folder": "rgb"} | TINY_CODEC | changes
    with pytest.raises(ConfigError, match=words):
        from_plain(VideoCodecConfig, values)


def test_is_trainable():
    assert isinstance(tiny_codec(), TrainableTokenizer)
