"""Distance of two videos in the features of an image network.

B clips, C channels, F frames, H, W pixels, N frames of all clips.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from egom2p.config import Count, Natural, Positive, strict
from egom2p.storage import load_tensors


@strict
class PerceptualLossConfig:
    """Which features, and how much their distance counts.

    backbone  a convolutional model of timm, e.g. vgg16.tv_in1k, resnet50.a1_in1k
    weights   a local safetensors file of it; null: fetched by timm, which needs a network the first time
    layers    which of its feature maps; null: all
    frames    evenly spaced frames of a window that are compared; null: all
    """

    weight: Positive = 0.1  # of the loss
    backbone: str = "vgg16.tv_in1k"
    weights: str | None = None
    layers: tuple[Natural, ...] | None = None
    frames: Count | None = 4


class PerceptualLoss:
    """Squared distance of feature vectors of unit length, as in LPIPS without its learned weights.

    Not a module: the network is frozen and stays out of checkpoints.
    """

    def __init__(self, config: PerceptualLossConfig) -> None:
        import timm  # imported here: slow, and only needed with this loss

        self.config = config
        if config.weights is not None and not Path(config.weights).is_file():
            raise FileNotFoundError(f"{config.weights}: no such file; it should hold the weights of {config.backbone}")
        try:
            network = timm.create_model(
                config.backbone, pretrained=config.weights is None, features_only=True, out_indices=config.layers
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(
                f"{config.backbone}: cannot be made by timm ({error}); without a network give its weights as a file"
            ) from error
        if config.weights is not None:
            wanted, found = network.state_dict(), load_tensors(config.weights)
            missing = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
            if missing:
                raise ValueError(
                    f"{config.weights}: no weights of {config.backbone}: {missing[0]} and {len(missing) - 1} more"
                )
            network.load_state_dict({name: found[name] for name in wanted})
        self.network: nn.Module = network.eval().requires_grad_(False)
        about = network.pretrained_cfg if hasattr(network, "pretrained_cfg") else {}
        self._mean = torch.tensor(about.get("mean", (0.485, 0.456, 0.406)))[:, None, None]
        self._std = torch.tensor(about.get("std", (0.229, 0.224, 0.225)))[:, None, None]

    def num_terms(self, num_clips: int, num_frames: int) -> int:
        """Frames that the sum runs over."""
        return num_clips * len(self._chosen(num_frames))

    def __call__(self, restored: Tensor, video: Tensor) -> Tensor:
        """Sum over frames of the mean distance; videos (B, C, F, H, W) in [-1, 1] with 1 or 3 channels."""
        if next(self.network.parameters()).device != video.device:
            self.network.to(video.device)
            self._mean, self._std = self._mean.to(video.device), self._std.to(video.device)
        found, wanted = self._features(restored), [feature.detach() for feature in self._features(video)]
        per_layer = [
            (F.normalize(a, dim=1) - F.normalize(b, dim=1)).float().square().sum(dim=1).mean(dim=(1, 2))
            for a, b in zip(found, wanted, strict=True)
        ]
        return torch.stack(per_layer).mean(dim=0).sum()

    def _features(self, video_BCFHW: Tensor) -> list[Tensor]:
        chosen = self._chosen(video_BCFHW.shape[2])
        images_NCHW = rearrange(video_BCFHW[:, :, chosen], "b c f h w -> (b f) c h w")
        if images_NCHW.shape[1] == 1:
            images_NCHW = images_NCHW.expand(-1, 3, -1, -1)
        return self.network((images_NCHW / 2 + 0.5 - self._mean) / self._std)

    def _chosen(self, num_frames: int) -> list[int]:
        count = num_frames if self.config.frames is None else min(self.config.frames, num_frames)
        return sorted({round((position + 0.5) * num_frames / count - 0.5) for position in range(count)})
