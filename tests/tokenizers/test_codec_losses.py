"""Further losses of a video codec: zero for a perfect copy, large for what they are there to see, and they teach."""

import numpy as np
import pytest
import torch
from moving_clips import SIZE, moving_clip, moving_clips, with_stream
from tiny_tokenizers import tiny_codec

from egom2p.storage import save_tensors
from egom2p.tokenizers.video.codec_losses import (
    AdversarialLossConfig,
    CodecLossesConfig,
    CodecWithLosses,
    PatchCritic,
    adversarial_terms,
)
from egom2p.tokenizers.video.flow_loss import FlowLossConfig, estimated_flow, flow_loss, warped
from egom2p.tokenizers.video.perceptual_loss import PerceptualLoss, PerceptualLossConfig

BACKBONE = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """Made-up weights of a small backbone, as a local file."""
    import timm

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("backbone") / "weights.safetensors"
    save_tensors(file, timm.create_model("test_resnet", features_only=True).state_dict())
    return str(file)


def waves(num_frames=5, size=48, shift=1.5, clips=2) -> torch.Tensor:
    """Smooth textures that move by `shift` pixels a frame, (B, 3, F, H, W)."""
    f, v, u = torch.meshgrid(torch.arange(num_frames), torch.arange(size), torch.arange(size), indexing="ij")
    x, y = u - shift * f, v + 0.5 * shift * f
    picture = torch.sin(x / 3.1) * torch.cos(y / 4.3) + 0.3 * torch.sin((x + y) / 7)
    return (0.7 * picture)[None, None].expand(clips, 3, -1, -1, -1)


def perceptual(weights, **changes) -> PerceptualLoss:
    return PerceptualLoss(PerceptualLossConfig(backbone=BACKBONE, weights=weights, **changes))


def test_perceptual_distance_sees_blur_more_than_brightness(weights, generator):
    loss, video = perceptual(weights), 0.8 * torch.rand((2, 3, 4, 64, 64), generator=generator) - 0.4
    assert float(loss(video, video)) == 0.0
    blurred = torch.nn.functional.avg_pool3d(video, (1, 5, 5), stride=1, padding=(0, 2, 2))
    brighter = video + (blurred - video).abs().mean()
    assert loss(blurred, video) > 2 * loss(brighter, video)
    assert loss.num_terms(2, 9) == 8 and perceptual(weights, frames=None).num_terms(2, 9) == 18


def test_one_channel_is_seen_as_grey(weights, generator):
    loss, depth = perceptual(weights), torch.rand((1, 1, 2, 64, 64), generator=generator)
    torch.testing.assert_close(
        loss(depth, depth * 0.5), loss(depth.expand(-1, 3, -1, -1, -1), depth.expand(-1, 3, -1, -1, -1) * 0.5)
    )


def test_missing_or_foreign_weights_are_named(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors.*test_resnet"):
        perceptual("gone.safetensors")
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"other\.safetensors: no weights of test_resnet"):
        perceptual(str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="no_such_network: cannot be made by timm"):
        PerceptualLoss(PerceptualLossConfig(backbone="no_such_network", weights=weights))


@pytest.mark.parametrize("shift", [0.0, 1.5, 4.0])
def test_motion_is_found(shift):
    video = waves(num_frames=2, shift=shift)
    flow = estimated_flow(video[:, :, 0], video[:, :, 1], FlowLossConfig())
    inside = flow[:, :, 8:-8, 8:-8]
    wanted = torch.tensor([shift, -0.5 * shift])[None, :, None, None].expand_as(inside)
    assert (inside - wanted).abs().mean() < 0.25
    before, after = (video[:, :, 1] - video[:, :, 0]), warped(video[:, :, 1], flow) - video[:, :, 0]
    assert shift == 0 or after.abs().mean() < 0.25 * before.abs().mean()


def test_flow_loss_sees_flicker_but_no_constant_error(generator):
    config, video = FlowLossConfig(), waves()
    pairs = 2 * 4
    assert float(flow_loss(video, video, config)) == 0.0
    steady = flow_loss(video + 0.1, video, config) / pairs
    flicker = flow_loss(video + 0.1 * torch.randn((1, 1, 5, 1, 1), generator=generator), video, config) / pairs
    assert steady < 1e-3 < 0.03 < flicker
    assert torch.isfinite(flow_loss(torch.zeros_like(video), torch.zeros_like(video), config))


def test_one_backward_pass_teaches_both_sides(generator):
    torch.manual_seed(0)
    critic = PatchCritic(3, AdversarialLossConfig(channels=8))
    video = waves()
    restored = (video + 0.5 * torch.randn(video.shape, generator=generator)).requires_grad_()
    codec_pays, critic_pays = adversarial_terms(critic, restored, video)
    codec_pays.backward(retain_graph=True)
    assert restored.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in critic.parameters())
    restored.grad = None
    critic_pays.backward()
    assert restored.grad is None and all(parameter.grad is not None for parameter in critic.parameters())


def test_the_critic_learns_to_tell_noise(generator):
    torch.manual_seed(0)
    critic = PatchCritic(3, AdversarialLossConfig(channels=8))
    optimizer = torch.optim.AdamW(critic.parameters(), lr=2e-3)
    for _ in range(20):
        noisy = waves() + 0.3 * torch.randn(waves().shape, generator=generator)
        loss = adversarial_terms(critic, noisy, waves())[1] / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5


def all_losses(weights, start_step=0) -> CodecLossesConfig:
    return CodecLossesConfig(
        perceptual=PerceptualLossConfig(backbone=BACKBONE, weights=weights),
        flow=FlowLossConfig(window=5),
        adversarial=AdversarialLossConfig(channels=8, start_step=start_step),
    )


@pytest.mark.parametrize("quantity", ["rgb", "depth"])
def test_terms_have_names_weights_and_counts(quantity, weights, rng):
    model = CodecWithLosses(tiny_codec(quantity, window_frames=5), all_losses(weights))
    batch = model.codec.batch_from_clips(moving_clips(3), rng)
    output = model(batch)
    assert output.names == model.term_names == ("reconstruction", "perceptual", "flow", "adversarial", "critic")
    assert output.counts == model.counts(batch) and output.counts[1:] == (12, 12, 3, 3)
    assert torch.isfinite(output.sums).all() and len(model.loss_weights) == 5
    torch.testing.assert_close(output.sums[0], model.codec(batch).sums[0])
    assert not any("backbone" in name or "_perceptual" in name for name in model.state_dict())


def test_the_critic_waits_for_its_step(weights, rng):
    model = CodecWithLosses(tiny_codec(window_frames=5), all_losses(weights, start_step=2))
    batch = model.codec.batch_from_clips(moving_clips(2), rng)
    for step in range(3):
        terms = model(batch).sums[3:]
        assert (terms != 0).all() if step == 2 else (terms == 0).all()
        model.after_step()
    other = CodecWithLosses(tiny_codec(window_frames=5), all_losses(weights, start_step=2))
    other.load_state_dict(model.state_dict())
    assert int(other.num_steps) == 3


def test_unknown_depth_enters_no_term(weights):
    model = CodecWithLosses(
        tiny_codec("depth"), CodecLossesConfig(flow=FlowLossConfig(window=5), perceptual=all_losses(weights).perceptual)
    )
    clip = with_stream(moving_clip(0), "depth", values=np.zeros((16, SIZE, SIZE), np.float32))
    sums = model(model.codec.batch_from_clips([clip], None)).sums
    assert torch.equal(sums, torch.zeros(3))


@pytest.mark.slow
def test_training_with_all_losses_lowers_them(weights, rng):
    model = CodecWithLosses(tiny_codec(window_frames=5, has_linear_path=True), all_losses(weights))
    clips = moving_clips(6)
    model.codec.fit_normalisation(clips)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rows = []
    for _ in range(30):
        output = model(model.codec.batch_from_clips(clips, rng))
        means = output.sums / torch.tensor(output.counts)
        (means * torch.tensor(model.loss_weights)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        rows.append(means.detach())
    first, last = torch.stack(rows[:5]).mean(dim=0), torch.stack(rows[-5:]).mean(dim=0)
    assert (last[:3] < first[:3]).all()
