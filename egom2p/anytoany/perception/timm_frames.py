"""A timm image tower on every frame of a clip.

F frames, P patches of a frame, D width, H, W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from egom2p.anytoany.nouns import Percept
from egom2p.anytoany.perception.source import Clip, PerceptionConfig
from egom2p.contracts import AlignedClip
from egom2p.storage import fingerprint_of, load_tensors


class TimmFrames:
    """Patch features of each frame, place (frame, row, column); towers without patches give one row per frame."""

    def __init__(self, config: PerceptionConfig, *, device: str = "cpu", frames_per_call: int = 32) -> None:
        # Imported here: it brings torchvision along.
        import timm
        from timm.data import resolve_model_data_config

        is_downloaded = config.tower_weights is None
        self._tower = timm.create_model(str(config.tower), pretrained=is_downloaded, num_classes=0)
        if config.tower_weights not in (None, "random"):
            self._tower.load_state_dict(load_tensors(str(config.tower_weights)), strict=False)
        self._tower.to(device).eval().requires_grad_(False)
        settings = resolve_model_data_config(self._tower)
        self._size = tuple(settings["input_size"][1:])
        self._mean, self._std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
        self._frames_per_call, self._device = frames_per_call, torch.device(device)
        self.names, self.width = (str(config.tower),), int(self._tower.num_features)
        if self.width != config.width:
            raise ValueError(f"perception.width is {config.width}, the tower {config.tower} has {self.width} features")
        self.fingerprint = fingerprint_of(self._tower.state_dict(), {"tower": config.tower})

    def perceive(self, clips: Sequence[Clip]) -> list[Percept]:
        return [self._percept(clip) for clip in clips]

    @torch.no_grad()
    def _percept(self, clip: Clip) -> Percept:
        if not isinstance(clip, AlignedClip):
            raise ValueError(f"clip {clip.key}: an image tower needs pictures, found tokens")
        frames_FHWC = torch.from_numpy(np.ascontiguousarray(clip.rgb))
        parts = [self._features(part) for part in frames_FHWC.split(self._frames_per_call)]
        features_FYXD = torch.cat(parts).float().cpu().numpy()
        place = np.stack(np.indices(features_FYXD.shape[:3]), axis=-1).reshape(-1, 3)
        features = rearrange(features_FYXD, "f y x d -> (f y x) d")
        return Percept(features, place.astype(np.int16), np.zeros(len(place), np.int16))

    def _features(self, frames_FHWC: Tensor) -> Tensor:
        """(F, rows, columns, D)."""
        pictures = rearrange(frames_FHWC, "f h w c -> f c h w").to(self._device).float() / 255
        pictures = F.interpolate(pictures, size=self._size, mode="bilinear", antialias=True, align_corners=False)
        pictures = (pictures - self._mean.to(self._device)) / self._std.to(self._device)
        found = self._tower.forward_features(pictures)
        if found.dim() == 4:  # convolutional towers: channels first, or last
            is_last = found.shape[-1] == self.width
            return found if is_last else rearrange(found, "f d y x -> f y x d")
        patches = found[:, getattr(self._tower, "num_prefix_tokens", 0) :]
        side = round(patches.shape[1] ** 0.5)
        if side * side != patches.shape[1]:
            return patches[:, :, None]
        return rearrange(patches, "f (y x) d -> f y x d", y=side)
