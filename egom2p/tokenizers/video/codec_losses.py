"""A video codec in training with further losses: perceptual, flow, adversarial; each a config block of its own.

B clips or windows of clips, C channels, F frames, H, W pixels, K loss terms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from egom2p.config import Count, Natural, Positive, strict
from egom2p.contracts import LossOutput
from egom2p.tokenizers.protocol import TokenizerBatch
from egom2p.tokenizers.video.flow_loss import FlowLossConfig, flow_loss
from egom2p.tokenizers.video.perceptual_loss import PerceptualLoss, PerceptualLossConfig
from egom2p.tokenizers.video.video_codec import VideoCodec


@strict
class AdversarialLossConfig:
    """How much the critic counts, from which step on, and its size.

    The critic shares optimizer and learning rate with the codec. It is computed from the first step on; before
    `start_step` its terms are multiplied by 0.
    """

    weight: Positive = 0.05  # of the loss
    start_step: Natural = 10_000
    channels: Count = 64  # of its first layer
    num_levels: Count = 3  # halvings of height and width; a patch is about 8 * 2**num_levels pixels wide


class PatchCritic(nn.Module):
    """Video (B, C, F, H, W) -> scores (B, 1, F, h, w), large for real patches; time is looked at but not halved."""

    def __init__(self, video_channels: int, config: AdversarialLossConfig) -> None:
        super().__init__()
        widths = [config.channels * min(2**level, 4) for level in range(config.num_levels)]
        layers: list[nn.Module] = []
        channels = video_channels
        for level, width in enumerate(widths):
            layers.append(nn.Conv3d(channels, width, (3, 4, 4), stride=(1, 2, 2), padding=(1, 1, 1)))
            if level:
                layers.append(nn.GroupNorm(8, width))
            layers.append(nn.LeakyReLU(0.2))
            channels = width
        layers.append(nn.Conv3d(channels, 1, (3, 3, 3), padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, video: Tensor) -> Tensor:
        return self.layers(video)


def adversarial_terms(critic: PatchCritic, restored: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over clips: what the codec pays for patches that look false, and what the critic pays for its errors.

    One backward pass serves both: the first does not reach the critic's weights, the second not the codec.
    """
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    codec_pays = -_per_clip(functional_call(critic, frozen, (restored,)))
    real, false = critic(video), critic(restored.detach())
    critic_pays = (_per_clip(F.relu(1.0 - real)) + _per_clip(F.relu(1.0 + false))) / 2
    return codec_pays.sum(), critic_pays.sum()


def _per_clip(scores: Tensor) -> Tensor:
    return torch.flatten(scores.float(), 1).mean(dim=1)


@strict
class CodecLossesConfig:
    """Losses beside the reconstruction error; null: not used."""

    perceptual: PerceptualLossConfig | None = None
    flow: FlowLossConfig | None = None
    adversarial: AdversarialLossConfig | None = None


class CodecWithLosses(nn.Module):
    """What the loop trains: the codec, and the critic if there is one. `codec` alone is the tokenizer."""

    def __init__(self, codec: VideoCodec, config: CodecLossesConfig) -> None:
        super().__init__()
        self.codec, self.config = codec, config
        self._perceptual = None if config.perceptual is None else PerceptualLoss(config.perceptual)
        self.critic = None
        if config.adversarial is not None:
            self.critic = PatchCritic(codec.config.video_channels, config.adversarial)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        extra: dict[str, float] = {}
        if config.perceptual is not None:
            extra["perceptual"] = config.perceptual.weight
        if config.flow is not None:
            extra["flow"] = config.flow.weight
        if config.adversarial is not None:
            extra |= {"adversarial": config.adversarial.weight, "critic": 1.0}
        self.term_names = (*codec.term_names, *extra)
        self.loss_weights = (*codec.loss_weights, *extra.values())

    def counts(self, batch: TokenizerBatch) -> tuple[int, ...]:
        """K ints, known on the CPU: known values, frames compared, pairs of frames, clips."""
        num_clips, _, num_frames, _, _ = batch.tensors["video"].shape
        counts = list(batch.counts)
        if self._perceptual is not None:
            counts.append(self._perceptual.num_terms(num_clips, num_frames))
        if self.config.flow is not None:
            counts.append(num_clips * (num_frames - 1))
        if self.critic is not None:
            counts += [num_clips, num_clips]
        return tuple(counts)

    def forward(self, batch: TokenizerBatch) -> LossOutput:
        """All terms as sums with gradient. Unknown pixels are right by definition: nothing is learned from them."""
        video = batch.tensors["video"]
        restored = self.codec.reconstructed(video)
        sums = [self.codec.reconstruction_error(restored, batch)]
        seen = torch.where(batch.tensors["is_known"], restored, video)
        if self._perceptual is not None:
            sums.append(self._perceptual(seen, video))
        if self.config.flow is not None:
            sums.append(flow_loss(seen, video, self.config.flow))
        if self.critic is not None:
            is_on = (self.num_steps >= self.config.adversarial.start_step).float()
            sums += [is_on * term for term in adversarial_terms(self.critic, seen, video)]
        return LossOutput(sums=_stacked(sums), counts=self.counts(batch), names=self.term_names)

    def after_step(self) -> None:
        self.num_steps += 1


def _stacked(sums: list[Tensor]) -> Tensor:
    return torch.stack([term.float() for term in sums])
