"""A critic that looks at patches of videos, and the hinge losses between it and a codec.

B clips, C channels, F frames, H, W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from egom2p.config import strict


@strict
class AdversarialLossConfig:
    """How much the critic counts, from which step on, and its size.

    The critic shares optimizer and learning rate with the codec. It is computed from the first step on; before
    `start_step` its terms are multiplied by 0.
    """

    weight: float = 0.05
    start_step: int = 10_000
    channels: int = 64
    num_levels: int = 3  # halvings of height and width; a patch is about 8 * 2**num_levels pixels wide

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.start_step < 0 or self.num_levels < 1:
            raise ValueError(
                f"weight > 0, start_step >= 0, num_levels >= 1 wanted, got {self.weight}, {self.start_step}, "
                f"{self.num_levels}"
            )


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
