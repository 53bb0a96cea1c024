"""Consistency in time: what moves in the video moves the same way in its reconstruction.

The motion from frame to frame is estimated on the video itself by pyramidal Lucas-Kanade: no further network, no
weights, nothing to know about the camera. It fails at occlusions and on smooth walls, so it counts only where it
explains the video (Lai et al. 2018 mask their warping error in the same way).
B clips, C channels, F frames, H, W pixels, P pairs of neighbouring frames.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from egom2p.config import Count, NotNegative, Positive, strict


@strict
class FlowLossConfig:
    """How much motion counts, and how it is estimated."""

    weight: Positive = 0.5  # of the loss
    levels: Count = 3  # of the pyramid: motion of up to about 4 * 2**levels pixels is found
    iterations: Count = 3  # per level
    window: Count = 9  # pixels that move together
    explained: NotNegative = 0.1  # largest error of the warped video (its range is 2) where the motion counts

    def __post_init__(self) -> None:
        if self.window % 2 == 0:
            raise ValueError(f"an odd window wanted, got {self.window}")


def flow_loss(restored: Tensor, video: Tensor, config: FlowLossConfig) -> Tensor:
    """Sum over pairs of frames of the mean difference of warping residuals; videos (B, C, F, H, W) in [-1, 1]."""
    first_PCHW, second_PCHW = _pairs(video)
    with torch.no_grad(), torch.autocast(video.device.type, enabled=False):
        flow_P2HW = estimated_flow(first_PCHW.float(), second_PCHW.float(), config)
        residual_PCHW = warped(second_PCHW.float(), flow_P2HW) - first_PCHW
        counts_P1HW = (residual_PCHW.abs().amax(dim=1, keepdim=True) < config.explained).float()
    first, second = _pairs(restored)
    difference = (warped(second.float(), flow_P2HW) - first - residual_PCHW).abs().mean(dim=1, keepdim=True)
    per_pair = (difference * counts_P1HW).sum(dim=(1, 2, 3)) / counts_P1HW.sum(dim=(1, 2, 3)).clamp(min=1.0)
    return per_pair.sum()


def estimated_flow(first: Tensor, second: Tensor, config: FlowLossConfig) -> Tensor:
    """Pixels (P, 2, H, W), x then y, by which `second` (P, C, H, W) must be read to look like `first`."""
    pyramid = [(first.mean(dim=1, keepdim=True), second.mean(dim=1, keepdim=True))]
    while len(pyramid) < config.levels and min(pyramid[-1][0].shape[-2:]) >= 2 * config.window:
        pyramid.append(tuple(F.avg_pool2d(image, 2) for image in pyramid[-1]))
    flow = torch.zeros((len(first), 2, *pyramid[-1][0].shape[-2:]), device=first.device)
    for one, two in reversed(pyramid):
        if flow.shape[-2:] != one.shape[-2:]:
            flow = 2.0 * F.interpolate(flow, size=one.shape[-2:], mode="bilinear", align_corners=False)
        gx, gy = _gradients(one)
        xx, xy, yy = (_blurred(product, config.window) for product in (gx * gx, gx * gy, gy * gy))
        # Where nothing but noise is seen the system is singular; a little of the identity keeps the motion as it is.
        xx, yy = xx + 1e-4, yy + 1e-4
        determinant = xx * yy - xy * xy
        for _ in range(config.iterations):
            error = one - warped(two, flow)
            ex, ey = _blurred(gx * error, config.window), _blurred(gy * error, config.window)
            step = torch.cat([yy * ex - xy * ey, xx * ey - xy * ex], dim=1) / determinant
            flow = flow + step.clamp(-2.0, 2.0)
    return flow


def warped(image: Tensor, flow: Tensor) -> Tensor:
    """`image` (P, C, H, W) read at every pixel plus `flow` (P, 2, H, W); the border is continued."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=image.device), torch.arange(width, device=image.device), indexing="ij"
    )
    u = (x + flow[:, 0]) * (2.0 / max(width - 1, 1)) - 1.0
    v = (y + flow[:, 1]) * (2.0 / max(height - 1, 1)) - 1.0
    grid = torch.stack([u, v], dim=-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _pairs(video_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
    frames = rearrange(video_BCFHW, "b c f h w -> b f c h w")
    return frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)


def _gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    return (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _blurred(image: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(image, window, stride=1, padding=window // 2, count_include_pad=False)
