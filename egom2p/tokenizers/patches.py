"""Pixels as input: a video cut into space-time patches of uint8 values. Nothing is learned, quantised or lost.

B clips, F frames, H, W pixels, L patches of a clip, P values of a patch.

A card says how a video is cut, so that patches are stored, checked and shipped as tokens are: their folder, fingerprint
and grid. `patch_card.py` writes one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from einops import rearrange

from egom2p.config import Count, Positive, strict, to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, TokenGrid
from egom2p.storage import atomic_directory, fingerprint_of, load_json, save_json
from egom2p.tokenizers.video.video_representations import rgb_frames

CARD_FILE = "tokenizer.json"
_CHANNELS = 3


@strict
class PatchesConfig:
    """One modality of patches of a colour video.

    num_frames, height, width, rate_hz   of the clips
    patch                                frames, pixels down and pixels across of a patch; each divides the clip's
    """

    architecture: Literal["patches"] = "patches"
    modality: str = "rgb_patches"
    quantity: Literal["rgb"] = "rgb"
    folder: str = "rgb_patches"
    num_frames: Count
    height: Count
    width: Count
    rate_hz: Positive
    patch: tuple[Count, Count, Count]

    def __post_init__(self) -> None:
        video = (self.num_frames, self.height, self.width)
        if any(size % step for size, step in zip(video, self.patch, strict=True)):
            raise ValueError(f"patches of {self.patch} do not fill a video of {video} (frames, height, width)")


class PatchTokenizer:
    """The cutting of a video into patches and back (`contracts.Tokenizer`), with values in place of ids."""

    def __init__(self, config: PatchesConfig, *, card: Mapping[str, Any] | None = None) -> None:
        self.config, self.stream, self.card = config, config.quantity, dict(card or {})
        grid = zip((config.num_frames, config.height, config.width), config.patch, strict=True)
        # Names are left out: they decide nothing of what is stored.
        decides = ("num_frames", "height", "width", "patch")
        self.fingerprint = fingerprint_of({}, {"patches": {name: to_plain(config)[name] for name in decides}})
        self.spec = ModalitySpec(
            name=config.modality,
            kind="patches",
            quantity=config.quantity,
            grid=TokenGrid(tuple(size // step for size, step in grid)),
            vocab_size=0,
            folder=config.folder,
            rate_hz=config.rate_hz,
            tokenizer_fingerprint=self.fingerprint,
            conventions={"value": "uint8 RGB"},
            patch_shape=(*config.patch, _CHANNELS),
        )

    def to(self, device: Any) -> "PatchTokenizer":
        """Itself: there is nothing to move."""
        return self

    def encode(self, clips: Sequence[AlignedClip]) -> np.ndarray:
        """Values (B, L, P) uint8; ValueError names the clip whose pictures are missing or of another size."""
        values = [np.empty((0, self.spec.num_tokens, self.spec.num_values), np.uint8)]
        config, (frames, rows, columns) = self.config, self.config.patch
        for clip in clips:
            if self.stream not in clip:
                raise ValueError(f"clip {clip.key} has no {self.stream} for {self.spec.name}")
            video = rgb_frames(clip, num_frames=config.num_frames, height=config.height, width=config.width)
            cut = "(t f) (y h) (x w) c -> 1 (t y x) (f h w c)"
            values.append(rearrange(video, cut, f=frames, h=rows, w=columns))
        return np.concatenate(values)

    def decode(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Videos (B, F, H, W, 3) uint8 of values (B, L, P), and validity (B, F): always."""
        values, wanted = np.asarray(values), (self.spec.num_tokens, self.spec.num_values)
        if values.dtype != np.uint8 or values.ndim != 3 or values.shape[1:] != wanted or len(values) == 0:
            raise ValueError(
                f"values of {self.spec.name} are {values.dtype} {values.shape}, wanted uint8 (b > 0, {wanted[0]}, "
                f"{wanted[1]})"
            )
        (_, y, x), (f, h, w, c) = self.spec.grid.shape, self.spec.patch_shape
        video = rearrange(values, "b (t y x) (f h w c) -> b (t f) (y h) (x w) c", y=y, x=x, f=f, h=h, w=w, c=c)
        return video, np.ones(video.shape[:2], bool)

    def evaluate(self, clips: Sequence[AlignedClip]) -> dict[str, float]:
        """Share of clips that come back as they were."""
        found = self.decode(self.encode(clips))[0]
        same = [np.array_equal(video, clip.rgb) for video, clip in zip(found, clips, strict=True)]
        return {"exact_round_trip": float(np.mean(same))}

    def save(self, directory: str | Path, *, licence: str | None = None) -> None:
        """Write the folder atomically: nothing but a card."""
        config = to_plain(self.config)
        self.card = {
            "fingerprint": self.fingerprint,
            "checksum": _checksum(self.fingerprint, config),
            "config": config,
            "spec": self.spec.to_dict(),
            "training_data": {},
            "metrics": {},
            "licence": licence,
        }
        with atomic_directory(directory) as folder:
            save_json(folder / CARD_FILE, self.card)


def load_patches(directory: str | Path, config: PatchesConfig) -> PatchTokenizer:
    """Of a folder whose card holds this config; ValueError when the card does not belong to what it makes."""
    file = Path(directory) / CARD_FILE
    card, made = load_json(file), PatchTokenizer(config)
    found = (card["fingerprint"], card["checksum"])
    wanted = (made.fingerprint, _checksum(made.fingerprint, card["config"]))
    if found != wanted:
        raise ValueError(f"{file}: found fingerprint and checksum {found}, its config makes {wanted}")
    return PatchTokenizer(config, card=card)


def _checksum(fingerprint: str, config: Mapping[str, Any]) -> str:
    return fingerprint_of({}, {"fingerprint": fingerprint, "config": dict(config)})
