"""Pixels as input: a video cut into space-time patches of uint8 values. Nothing is learned, quantised or lost.

Or how the picture moves, which is much to ask of a small model that has to find it in pixels: from frame to frame a
patch that holds the motion of every cell, measured. It looks alike in rooms that were rendered and in real ones.

B clips, F frames, H, W pixels, L patches of a clip, P values of a patch, Y, X cells.

A card says how a video is cut, so that patches are stored, checked and shipped as tokens are: their folder, fingerprint
and grid. `patch_card.py` writes one.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from einops import rearrange

from egom2p.config import Count, Positive, strict, to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, TokenGrid
from egom2p.storage import atomic_directory, fingerprint_of, load_json, save_json
from egom2p.tokenizers.protocol import check_rate
from egom2p.tokenizers.video.video_representations import rgb_frames

CARD_FILE = "tokenizer.json"
_CHANNELS = 3
_FARTHEST = 0.2  # of the picture: larger motions from one frame to the next count as this one
_LEAST_RESPONSE = 0.08  # of phase correlation, below which its shift is not to be believed


@strict
class PatchesConfig:
    """One modality of patches of a colour video.

    num_frames, height, width, rate_hz   of the clips
    patch                                frames, pixels down and pixels across of a patch; each divides the clip's
    shows                                `motion`: a patch for every step from frame to frame, which holds the mean
                                         motion of all cells of `patch` pixels (of 1 frame)
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
    shows: Literal["pixels", "motion"] = "pixels"

    def __post_init__(self) -> None:
        video = (self.num_frames, self.height, self.width)
        if any(size % step for size, step in zip(video, self.patch, strict=True)):
            raise ValueError(f"patches of {self.patch} do not fill a video of {video} (frames, height, width)")
        if self.shows == "motion" and (self.patch[0] != 1 or self.num_frames < 2):
            raise ValueError(f"motion goes from frame to frame: patch must begin with 1, found {self.patch} of {video}")


class PatchTokenizer:
    """The cutting of a video into patches and back (`contracts.Tokenizer`), with values in place of ids."""

    def __init__(self, config: PatchesConfig, *, card: Mapping[str, Any] | None = None) -> None:
        self.config, self.stream, self.card = config, config.quantity, dict(card or {})
        grid = tuple(
            size // step
            for size, step in zip((config.num_frames, config.height, config.width), config.patch, strict=True)
        )
        patch_shape, self.is_motion = (*config.patch, _CHANNELS), config.shows == "motion"
        if self.is_motion:
            grid, patch_shape = (config.num_frames - 1, 1, 1), (1, *grid[1:], 2)
        # Names are left out: they decide nothing of what is stored.
        decides = ("num_frames", "height", "width", "patch", *(("shows",) if self.is_motion else ()))
        self.fingerprint = fingerprint_of({}, {"patches": {name: to_plain(config)[name] for name in decides}})
        self.spec = ModalitySpec(
            name=config.modality,
            kind="patches",
            quantity=config.quantity,
            grid=TokenGrid(grid),
            vocab_size=0,
            folder=config.folder,
            rate_hz=config.rate_hz,
            tokenizer_fingerprint=self.fingerprint,
            conventions={
                "value": f"uint8 motion, 1 ... 255: {_FARTHEST} of the picture" if self.is_motion else "uint8 RGB"
            },
            patch_shape=patch_shape,
        )

    def to(self, device: Any) -> "PatchTokenizer":
        """Itself: there is nothing to move."""
        return self

    def encode(self, clips: Sequence[AlignedClip]) -> np.ndarray:
        """Values (B, L, P) uint8; ValueError names the clip whose pictures are missing or of another size."""
        values = [np.empty((0, self.spec.num_tokens, self.spec.num_values), np.uint8)]
        config, (frames, rows, columns) = self.config, self.config.patch
        check_rate(clips, self.stream, config.rate_hz)
        for clip in clips:
            if self.stream not in clip:
                raise ValueError(f"clip {clip.key} has no {self.stream} for {self.spec.name}")
            video = rgb_frames(clip, num_frames=config.num_frames, height=config.height, width=config.width)
            if self.is_motion:
                values.append(_motion_values(video, rows, columns)[None])
                continue
            cut = "(t f) (y h) (x w) c -> 1 (t y x) (f h w c)"
            values.append(rearrange(video, cut, f=frames, h=rows, w=columns))
        return np.concatenate(values)

    def decode(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Videos (B, F, H, W, 3) uint8 of values (B, L, P), and validity (B, F): always.

        Motion: (B, F - 1, Y, X, 2) float32, right and down, in shares of the picture's width and height.
        """
        values, wanted = np.asarray(values), (self.spec.num_tokens, self.spec.num_values)
        if values.dtype != np.uint8 or values.ndim != 3 or values.shape[1:] != wanted or len(values) == 0:
            raise ValueError(
                f"values of {self.spec.name} are {values.dtype} {values.shape}, wanted uint8 (b > 0, {wanted[0]}, "
                f"{wanted[1]})"
            )
        (_, y, x), (f, h, w, c) = self.spec.grid.shape, self.spec.patch_shape
        if self.is_motion:
            motion = (values.astype(np.float32) - 128) * np.float32(_FARTHEST / 127)
            return motion.reshape(*values.shape[:2], h, w, c), np.ones(values.shape[:2], bool)
        video = rearrange(values, "b (t y x) (f h w c) -> b (t f) (y h) (x w) c", y=y, x=x, f=f, h=h, w=w, c=c)
        return video, np.ones(video.shape[:2], bool)

    def evaluate(self, clips: Sequence[AlignedClip]) -> dict[str, float]:
        """Share of clips that come back as they were; of motion the share of the change from frame to frame that is
        left when every frame has been moved by it.
        """
        found = self.decode(self.encode(clips))[0]
        if self.is_motion:
            left = [_unexplained(clip.rgb, motion) for clip, motion in zip(clips, found, strict=True)]
            return {"unexplained_change": float(np.mean(left))}
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


def picture_motion(video: np.ndarray) -> np.ndarray:
    """Motion (F - 1, H, W, 2) float32 pixels, right and down, from every frame of (F, H, W, 3) uint8 to the next.

    Farneback's polynomials, begun at the shift by phase correlation: at eight frames a second a head turns a small
    picture by more pixels than the pyramid finds alone.
    """
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]
    window = cv2.createHanningWindow(greys[0].shape[::-1], cv2.CV_64F)
    motion = np.zeros((len(video) - 1, *greys[0].shape, 2), np.float32)
    for step, (here, there) in enumerate(itertools.pairwise(greys)):
        flat = here.astype(np.float64) - here.mean(), there.astype(np.float64) - there.mean()
        shift, response = cv2.phaseCorrelate(*flat, window)
        if response > _LEAST_RESPONSE and np.isfinite(shift).all():
            motion[step] = shift
        motion[step] = cv2.calcOpticalFlowFarneback(
            here, there, motion[step].copy(), 0.5, 3, 13, 4, 5, 1.1, cv2.OPTFLOW_USE_INITIAL_FLOW
        )
    return motion


def _motion_values(video: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Values (F - 1, P) uint8: 128 is no motion, 1 and 255 `_FARTHEST` of the picture left or up, right or down."""
    shares = picture_motion(video) / np.float32([video.shape[2], video.shape[1]])
    cells = rearrange(shares, "t (y h) (x w) c -> t (y x c) h w", h=rows, w=columns).mean((2, 3))
    return np.rint(128 + 127 * np.clip(cells / _FARTHEST, -1, 1)).astype(np.uint8)


def _unexplained(video: np.ndarray, motion: np.ndarray) -> float:
    """Mean difference of frames (F, H, W, 3) moved by (F - 1, Y, X, 2) from the next, over that of unmoved ones."""
    height, width = video.shape[1:3]
    down, right = np.mgrid[:height, :width].astype(np.float32)
    moved = still = 0.0
    for here, there, cells in zip(video[:-1], video[1:], motion, strict=True):
        pixels = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32([width, height])
        back = cv2.remap(
            there, right + pixels[..., 0], down + pixels[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        moved += np.abs(back.astype(np.float64) - here).mean()
        still += np.abs(there.astype(np.float64) - here).mean()
    return moved / still if still else 0.0


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
