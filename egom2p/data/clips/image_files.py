"""Folders of images as frame sources, and single pictures.

T frames, H, W pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")


def list_images(folder: str | Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Images of a folder sorted by name."""
    return sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in suffixes)


def read_picture(path: str | Path) -> np.ndarray:
    """A picture file as (F, H, W, 3) uint8, upright as its EXIF note says; F is 1 unless it is an animation.

    What is transparent becomes white.
    """
    try:
        with Image.open(path) as image:
            frames = [_opaque(ImageOps.exif_transpose(frame)) for frame in ImageSequence.Iterator(image)]
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error
    return np.stack(frames)


class RgbImages:
    """RGB pictures, one file per frame; a FrameSource of (N, H, W, 3) uint8."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.height, self.width = _size(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._frame(self.paths[int(index)]) for index in indices])

    def _frame(self, path: Path) -> np.ndarray:
        return _checked(path, _load(path, "RGB"), (self.height, self.width, 3))


def _load(path: Path, mode: str | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode) if mode else image)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error


def _opaque(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    elif image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _size(paths: Sequence[Path]) -> tuple[int, int]:
    """Height and width, from the header of the first file."""
    if not paths:
        raise ValueError("an image sequence needs at least one file, got none")
    try:
        with Image.open(paths[0]) as image:
            return image.height, image.width
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{paths[0]}: not a readable image: {error}") from error


def _checked(path: Path, picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if picture.shape != shape:
        raise ValueError(f"{path}: picture of shape {picture.shape}, wanted {shape} as the first of its folder")
    return picture
