"""What clips a set of tokenizers reads."""

from collections.abc import Iterable
from typing import Any

from egom2p.data.clips.clip_alignment import ClipConfig


def clip_config_for(
    networks: Iterable[Any], *, where: str, stride_s: float | None = None, span: str = "common"
) -> ClipConfig:
    """Picture size, rates and length of the clips that these tokenizers read.

    networks   configs of their networks: a video codec's knows `num_frames`, `rate_hz`, `height` and `width`, a
               track's `num_samples` and `rate_hz`
    where      whose tokenizers they are, for the error
    stride_s   seconds from one clip to the next; None: clips touch
    Raises ValueError without a video codec, since nothing else knows the size of pictures.
    """
    networks = list(networks)
    video = next((network for network in networks if hasattr(network, "num_frames")), None)
    if video is None:
        raise ValueError(f"{where}: no video tokenizer, so the size of pictures is not known")
    track = next((network for network in networks if hasattr(network, "num_samples")), video)
    duration_s = video.num_frames / video.rate_hz
    return ClipConfig(
        height=video.height,
        width=video.width,
        duration_s=duration_s,
        stride_s=stride_s or duration_s,
        video_rate_hz=video.rate_hz,
        track_rate_hz=track.rate_hz,
        span=span,
    )
