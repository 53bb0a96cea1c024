"""Residual and finite scalar codes: as good as the library, a track like any other, and gone with the default."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from moving_clips import NUM_SAMPLES, moving_clips
from tiny_tokenizers import TINY_TRACK, tiny_trajectory

from egom2p.config import ConfigError, from_plain
from egom2p.contracts import ModalitySpec
from egom2p.generation.partial_prompts import given_positions
from egom2p.tokenizers import load_tokenizer, save_tokenizer
from egom2p.tokenizers.trajectory.track_quantizers import (
    FsqConfig,
    ResidualVqConfig,
    build_track_quantizer,
    replace_dead_codes,
    with_noise,
)
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae, TrajectoryVqVaeConfig

PRETRAINED = Path(__file__).resolve().parents[2] / "checkpoints" / "world_small" / "tokenizers"
KINDS = {
    "residual": {"quantizer": ResidualVqConfig(kind="residual_vq", num_streams=3), "kmeans_init": True},
    "fsq": {"quantizer": FsqConfig(kind="fsq", levels=(4, 4, 3)), "num_codes": 48},
    "fsq of two streams": {"quantizer": FsqConfig(kind="fsq", levels=(4, 8), num_streams=2)},
}


def train(network: TrajectoryVqVae, clips, num_steps: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(num_steps):
        output = network(network.batch_from_clips(clips, None))
        terms = zip(network.loss_weights, output.sums, output.counts, strict=True)
        sum(weight * total / count for weight, total, count in terms).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_learns_and_survives_a_folder(tmp_path, kind):
    clips, held_out = moving_clips(48), moving_clips(12, first=500)
    network = tiny_trajectory("camera", **KINDS[kind])
    network.fit_normalisation(clips)
    start = network.evaluate(held_out)
    train(network, clips, 60)
    end = network.evaluate(held_out)
    assert end["ate_m"] < 0.6 * start["ate_m"] and end["codes_used"] > 8

    save_tokenizer(network, tmp_path / "tok")
    loaded = load_tokenizer(tmp_path / "tok")
    streams = network.config.quantizer.num_streams
    assert loaded.spec.kind == "track" and loaded.spec.num_tokens == 15 * streams
    assert loaded.spec.num_streams == streams and ModalitySpec.from_dict(loaded.spec.to_dict()) == loaded.spec
    ids = loaded.encode(held_out)
    assert ids.shape == (12, 15 * streams) and 0 <= ids.min() and ids.max() < loaded.spec.vocab_size
    np.testing.assert_array_equal(ids, network.encode_clips(held_out))
    np.testing.assert_allclose(loaded.decode(ids)[0], network.decode_ids(ids)[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_for_use_are_those_of_training(kind):
    """Encoding looks codes up by itself; the library chooses them in training."""
    network, clips = tiny_trajectory("gaze", **KINDS[kind]), moving_clips(16)
    network.fit_normalisation(clips)
    train(network, clips, 3)
    network.eval()
    latents = network.latents(torch.randn(16, NUM_SAMPLES, 2), torch.ones(16, NUM_SAMPLES, dtype=torch.bool))
    chosen = network.quantizer(latents)
    ids = network.lookup(latents)
    streams = network.config.quantizer.num_streams
    torch.testing.assert_close(rearrange(ids, "b (t q) -> b t q", q=streams), chosen.ids)
    torch.testing.assert_close(network.codes(ids), chosen.codes)


def test_every_further_stream_brings_the_code_nearer():
    network, clips = tiny_trajectory("gaze", **KINDS["residual"]), moving_clips(32)
    network.fit_normalisation(clips)
    train(network, clips, 20)
    network.eval()
    batch = network.batch_from_clips(clips, None)
    normalised = (batch.tensors["samples"] - network.mean) / network.std
    latents = network.latents(normalised, batch.tensors["is_valid"]).detach()
    books, ids_BTQ = network.quantizer.books.codebooks, network.quantizer.lookup(latents)
    left, distances = latents, [float(latents.square().mean())]
    for stream in range(3):
        left = left - books[stream][ids_BTQ[..., stream]]
        distances.append(float(left.square().mean()))
    assert distances[3] < distances[2] < distances[1] < 0.5 * distances[0]
    torch.testing.assert_close(latents - left, network.quantizer.vectors(ids_BTQ))


def test_finite_codes_are_the_whole_grid():
    """All ids of a stream, against the grid counted by hand: first level fastest, even levels reach further down."""
    network = tiny_trajectory("gaze", **KINDS["fsq"])
    grid = network.quantizer.grid
    found = grid._indices_to_codes(torch.arange(48)).numpy()
    levels = [np.array([-2, -1, 0, 1]) / 2, np.array([-2, -1, 0, 1]) / 2, np.array([-1.0, 0.0, 1.0])]
    wanted = np.array([(a, b, c) for c, b, a in product(*reversed(levels))])
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert network.term_names == ("reconstruction", "validity")  # nothing to commit to


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_is_taught_through_the_codes(kind):
    network, clips = tiny_trajectory("gaze", commitment_weight=0.0, **KINDS[kind]), moving_clips(8)
    network.fit_normalisation(clips)
    network(network.batch_from_clips(clips, None)).sums[0].backward()
    assert network.encoder.conv.weight.grad.abs().sum() > 0


def test_noise_replaces_its_share_in_training_only(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noisy, is_replaced = with_noise(torch.full((400, 50), 7), 0.1, 32)
    assert 0.09 < float(is_replaced.float().mean()) < 0.11
    assert (noisy[~is_replaced] == 7).all() and noisy[is_replaced].unique().numel() == 32
    clips = moving_clips(4)
    plain, trained_with = tiny_trajectory(), tiny_trajectory(code_noise=0.5)
    for network in (plain, trained_with):
        network.fit_normalisation(clips)
    batch = plain.batch_from_clips(clips, None)
    torch.testing.assert_close(trained_with.eval()(batch).sums, plain.eval()(batch).sums)
    assert not torch.allclose(trained_with.train()(batch).sums[0], plain.train()(batch).sums[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantizer": {"kind": "fsq", "levels": [8, 8]}}, "product of the levels"),
        ({"quantizer": {"kind": "fsq", "levels": [16, 2]}}, "at least 3"),
        ({"quantizer": {"kind": "residual_vq", "num_streams": 1}}, "at least 2 streams"),
        ({"quantizer": {"kind": "lfq"}}, "quantizer"),
        ({"code_noise": 1.0}, "code_noise"),
        ({"camera_channels": "motion"}, "cameras only"),
        ({"path_weight": 1.0}, "camera_channels=motion"),
    ],
)
def test_wrong_settings_say_what_is_wrong(changes, words):
    values = {"modality": "tok_gaze", "quantity": "gaze", "folder": "gaze"} | TINY_TRACK | changes
    with pytest.raises(ConfigError, match=words):
        from_plain(TrajectoryVqVaeConfig, values)


@pytest.mark.parametrize("name", ["tok_cam", "tok_gaze"])
def test_tokenizers_from_before_keep_their_fingerprint(tmp_path, name):
    loaded = load_tokenizer(PRETRAINED / name)
    assert save_tokenizer(loaded.network, tmp_path / name) == loaded.fingerprint


def test_streams_of_a_time_step_are_known_together():
    spec = tiny_trajectory("camera", **KINDS["residual"]).spec
    is_known_L = given_positions(spec, np.arange(NUM_SAMPLES) < 30)  # the eighth step stands for samples 28 to 31
    assert is_known_L[:21].all() and not is_known_L[21:].any()
    with pytest.raises(ValueError, match="2 streams do not fit"):
        replace(spec, num_streams=2)


@pytest.mark.parametrize("num_samples", [20, 3])
def test_dead_codes_become_samples_without_asking_how_many(num_samples):
    from vector_quantize_pytorch import VectorQuantize

    torch.manual_seed(0)
    codebook = VectorQuantize(4, codebook_size=8, threshold_ema_dead_code=2, use_cosine_sim=True)._codebook
    codebook.cluster_size[0] = torch.tensor([9.0, 0, 9, 1, 0, 9, 0, 1])
    before = codebook.embed.clone()
    samples = torch.randn(1, num_samples, 4)
    replace_dead_codes(codebook, samples)
    is_new = (codebook.embed[0] != before[0]).any(-1)
    assert is_new.sum() == min(5, num_samples)
    assert not is_new[[0, 2, 5]].any()
    units = torch.nn.functional.normalize(samples[0], dim=-1)
    found = (codebook.embed[0][is_new][:, None] - units[None]).abs().amax(-1) < 1e-6
    assert (found.sum(1) == 1).all() and (found.sum(0) <= 1).all(), "samples are drawn without repetition"
    assert (codebook.cluster_size[0][is_new] == codebook.reset_cluster_size).all()
    assert torch.equal(codebook.embed_avg[0][is_new], codebook.embed[0][is_new] * codebook.reset_cluster_size)


def test_a_wider_search_finds_codes_at_least_as_near():
    torch.manual_seed(0)
    latents_BTZ = torch.randn(64, 1, 8)
    books = build_track_quantizer(
        ResidualVqConfig(kind="residual_vq", num_streams=5),
        dim=8,
        num_codes=16,
        decay=0.99,
        threshold=0,
        kmeans_init=True,
    )
    books.fit(torch.randn(2000, 8))
    missed = []
    for width in (1, 4, 16):
        books.search_width = width
        ids_BTQ = books.lookup(latents_BTZ)
        assert ids_BTQ.shape == (64, 1, 5) and 0 <= int(ids_BTQ.min()) and int(ids_BTQ.max()) < 16
        missed.append((books.vectors(ids_BTQ) - latents_BTZ).square().sum(-1))
    assert missed[1].mean() < missed[0].mean() and missed[2].mean() < missed[1].mean()


def test_fitted_codebooks_lose_less_with_every_stream_and_are_the_same_again():
    torch.manual_seed(0)
    latents_NZ = torch.randn(3000, 6)
    config = {"dim": 6, "num_codes": 16, "decay": 0.99, "threshold": 0, "kmeans_init": True}
    one, two = (build_track_quantizer(ResidualVqConfig(kind="residual_vq", num_streams=6), **config) for _ in range(2))
    one.fit(latents_NZ)
    two.fit(latents_NZ)
    ids = one.lookup(latents_NZ[:, None])
    assert torch.equal(ids, two.lookup(latents_NZ[:, None]))
    missed = [
        float((one.vectors(torch.where(torch.arange(6) < kept, ids, -1)) - latents_NZ[:, None]).square().sum(-1).mean())
        for kept in range(7)
    ]
    assert missed[0] == pytest.approx(float(latents_NZ.square().sum(-1).mean()), rel=1e-5)
    assert all(later < 0.8 * earlier for earlier, later in zip(missed[:-1], missed[1:], strict=True))
    with pytest.raises(ValueError, match="found 3 latents, wanted at least 16"):
        one.fit(latents_NZ[:3])
