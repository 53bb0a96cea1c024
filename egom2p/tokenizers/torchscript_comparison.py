"""A converted codec against the released program it came from, on one made-up clip.

B clips, C channels, F frames, H, W pixels, T, h, w token grid.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from egom2p.config import strict
from egom2p.storage.torchscript_archives import load_torchscript
from egom2p.tokenizers.video.video_codec import VideoCodec


@strict
class TorchScriptConfig:
    """Permission to run a TorchScript file. It is a program: only files whose hash is known are run."""

    allow_torchscript: bool = False
    sha256: dict[str, str] | None = None  # name of the file -> its hash

    def __post_init__(self) -> None:
        if self.allow_torchscript and not self.sha256:
            raise ValueError("allow_torchscript needs sha256: {encoder.jit: ..., decoder.jit: ...}")


@torch.no_grad()
def compare_with_torchscript(codec: VideoCodec, files: list[Path], config: TorchScriptConfig) -> dict[str, float]:
    """Share of ids on which both agree, and the largest difference of what they decode from the same ids.

    The program computes in the type of its weights (the released ones: bfloat16), so ids at the edge of a level differ.
    ValueError when a file may not be run or is no encoder and decoder.
    """
    known: Mapping[str, str] = config.sha256 or {}
    programs = {
        file.stem: load_torchscript(
            file, allow_torchscript=config.allow_torchscript, sha256=known.get(file.name)
        ).eval()
        for file in files
    }
    if programs.keys() != {"encoder", "decoder"}:
        raise ValueError(f"compared with encoder.jit and decoder.jit, found {sorted(programs)}")
    dtype = next((tensor.dtype for tensor in programs["encoder"].parameters()), torch.float32)
    video = _moving_waves(codec)
    ids_BThw = codec.eval().encode_video(video)[1]
    found = programs["encoder"](video.to(dtype))
    their_ids_BThw = next(output for output in _flat(found) if not output.is_floating_point())
    ours = codec.decode_codes(codec.quantizer.indices_to_codes(their_ids_BThw.long()))
    theirs = next(output for output in _flat(programs["decoder"](their_ids_BThw)) if output.is_floating_point())
    return {
        "torchscript_equal_ids": float((ids_BThw == their_ids_BThw).float().mean()),
        "torchscript_largest_difference": float((ours - theirs.float()).abs().max()),
    }


def _moving_waves(codec: VideoCodec) -> Tensor:
    """Video (1, C, F, H, W) in [-1, 1], smooth in space and time, of the codec's size."""
    config, (steps, height, width) = codec.config, codec.spec.grid.shape
    frames = 1 + (steps - 1) * config.temporal_compression
    f, v, u = torch.meshgrid(
        torch.arange(frames) / 8.0,
        torch.linspace(0, 1, height * config.spatial_compression),
        torch.linspace(0, 1, width * config.spatial_compression),
        indexing="ij",
    )
    phases = torch.linspace(0, 2, config.video_channels)[:, None, None, None]
    return (torch.sin(9 * u + 2 * f + phases) * torch.cos(7 * v - f))[None]


def _flat(outputs: object) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for output in outputs if isinstance(output, Tensor | tuple | list) for tensor in _flat(output)]
