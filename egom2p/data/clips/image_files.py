"""Folders of images as frame sources, and single pictures.

Files are in the order of the numbers in their names, and names may hold times. T frames, H, W pixels.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from egom2p.data.clips.upright import AS_STORED, OF_EXIF, Turn

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
_ONE_KIND = {".jpeg": ".jpg", ".tiff": ".tif"}
_ORIENTATION = 0x0112  # of Exif
# Digits of a time since 1970 in a name: units a second. EuRoC names are nanoseconds.
_CLOCK_DIGITS = {19: 10**9, 16: 10**6, 13: 10**3}
# A number, whole or with a point, after words that end in no digit or point.
_DECIMAL_NAME = re.compile(r"((?:.*[^\d.])?)(\d+(?:\.\d+)?)")
# A date, the year first or last, and the time of day, with all digits of its fraction: what cameras call pictures by.
_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])|\d\d([-_.])\d\d\2(?:19|20)\d\d)"
    r"(?:[-_T. ]|[ _]at[ _])?(?:[01]\d|2[0-3])([-_.: ]?)[0-5]\d\3[0-5]\d\.?\d*"
)
_LONGEST_PERIOD_S = 10.0
_SECONDS_SINCE_1970 = 10**9  # no camera counts so many frames
_MAX_GAPS = 20  # missing numbers per picture: more are no numbers of frames


def list_images(folder: str | Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Images of a folder, numbers in names as numbers; what begins with a dot (a system's own notes) is not there."""
    found = [p for p in Path(folder).iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    parts = [_DECIMAL_NAME.fullmatch(path.stem) for path in found]
    if all(parts) and len({part[1] for part in parts}) == 1:
        return sorted(found, key=lambda path: (_as_decimal(_DECIMAL_NAME.fullmatch(path.stem)[2]), path.name))
    return sorted(found, key=lambda path: _natural(path.name))


def image_sequence(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The pictures of a folder that are one sequence.

    Raises ValueError when there are none, of two kinds, or when their names are of two sequences or of none.
    """
    images = list_images(folder, suffixes)
    if not images:
        raise ValueError(f"{folder}: found no images, wanted at least one")
    kinds = [_ONE_KIND.get(path.suffix.lower(), path.suffix.lower()) for path in images]
    other = next((path for path, kind in zip(images, kinds, strict=True) if kind != kinds[0]), None)
    if other is not None:
        raise ValueError(f"{other}: found {other.suffix} beside {images[0].name}, wanted pictures of one kind")
    _check_one_sequence(images)
    return images


def _check_one_sequence(images: Sequence[Path]) -> None:
    """Raise ValueError for a number that two pictures have, and for a name without a number among those with one.

    Those of two cameras (`left_0001`, `right_0001`) would be read one after the other. Names with more numbers than
    two are dates, in which the last number comes back.
    """
    seen: dict[int, Path] = {}
    for path in images:
        numbers = re.findall(r"\d+", path.stem)
        if not numbers and len(images) > 1 and re.search(r"\d", "".join(other.stem for other in images)):
            raise ValueError(f"{path}: found no number in its name, wanted one as in the others of its folder")
        if numbers and len(numbers) <= 2 and "." not in path.stem:
            other = seen.setdefault(int(numbers[-1]), path)
            if other is not path:
                raise ValueError(
                    f"{path}: found the number of {other.name}; wanted one sequence, and each number once in a folder"
                )


def frame_numbers(paths: Sequence[Path]) -> np.ndarray | None:
    """The last number in each name (T,) int64; None where names are not alike but for it, or it does not increase."""
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", path.stem) for path in paths]
    if not all(parts) or len({(part[1], part[3]) for part in parts}) > 1 or any(len(part[2]) > 18 for part in parts):
        return None
    numbers = np.array([int(part[2]) for part in parts], np.int64)
    return numbers if (np.diff(numbers) > 0).all() else None


def are_dated(paths: Sequence[Path]) -> bool:
    """Whether names differ by a date and a time of day: seconds are no clock of pictures, and their digits count none.

    One that all share is that of the recording, and what stands after it may be numbers.
    """
    found = [_DATE.search(path.stem) for path in paths]
    return len({date[0] for date in found if date}) > 1


def times_in_names(paths: Sequence[Path]) -> np.ndarray | None:
    """Times (T,) in seconds where names are times: digits since 1970 (EuRoC), or seconds with a point (TUM).

    The same words may stand before all of them (`rgb_1305031102.175`).
    """
    parts = [_DECIMAL_NAME.fullmatch(path.stem) for path in paths]
    if not all(parts):
        return None
    if len({part[1] for part in parts}) > 1:
        return None
    stems = [part[2] for part in parts]
    if are_dated(paths) and any(len(stem.partition(".")[0]) > 2 for stem in stems):
        return None  # hours, minutes and seconds in one number; seconds alone are times within their minute
    if all("." in stem for stem in stems):
        times_s = np.array([float(stem) for stem in stems])
    elif all(stem.isdecimal() and len(stem) == len(stems[0]) for stem in stems) and len(stems[0]) in _CLOCK_DIGITS:
        times_s = np.array([int(stem) / _CLOCK_DIGITS[len(stem)] for stem in stems])
    else:
        return None
    gaps_s = np.diff(times_s)
    is_clock = len(gaps_s) == 0 or (gaps_s.min() > 0 and np.median(gaps_s) <= _LONGEST_PERIOD_S)
    return times_s if is_clock else None


def frame_ticks(paths: Sequence[Path]) -> np.ndarray:
    """How many frames after the first each picture was taken (T,) int64: numbers that are missing are frames that are.

    Numbers in even steps are one frame apart, and so are dates. Raises ValueError when numbers jump too far to be of
    frames.
    """
    if are_dated(paths):
        return np.arange(len(paths))
    numbers = frame_numbers(paths)
    if numbers is None and times_in_names(paths) is None and all(re.search(r"\d\.\d+$", p.stem) for p in paths):
        raise ValueError(
            f"{paths[0].parent}: found names such as {paths[0].name} and {paths[-1].name}, whose times cannot be told; "
            "say them in a file rgb_timestamps.txt or depth_timestamps.txt beside the folder"
        )
    if numbers is None or len(numbers) < 2:
        return np.arange(len(paths))
    ticks = (numbers - numbers[0]) // np.gcd.reduce(np.diff(numbers))
    if ticks[-1] > _MAX_GAPS * len(ticks) or numbers[0] >= _SECONDS_SINCE_1970:
        raise ValueError(
            f"{paths[0].parent}: found the numbers {numbers[0]} to {numbers[-1]} on {len(paths)} pictures, which count "
            "no frames; say their times in a file rgb_timestamps.txt or depth_timestamps.txt beside the folder"
        )
    return ticks


def read_picture(path: str | Path) -> np.ndarray:
    """A picture file as (F, H, W, 3) uint8, upright as its EXIF note says; F is 1 unless it is an animation.

    What is transparent becomes white.
    """
    with _opened(Path(path)) as image:
        return np.stack([_rgb(Path(path), frame) for frame in ImageSequence.Iterator(image)])


class RgbImages:
    """RGB pictures, one file per frame, upright as EXIF says; a FrameSource of (N, H, W, 3) uint8.

    as_stored    whatever EXIF says: what was measured in the stored pictures (poses, intrinsics) is of these
    """

    def __init__(self, paths: Sequence[Path], *, as_stored: bool = False) -> None:
        if not paths:
            raise ValueError("an image sequence needs at least one file, got none")
        self.paths, self._as_stored = list(paths), as_stored
        self.notes: tuple[str, ...] = ()
        with _opened(self.paths[0]) as image:
            back = self._turn_back(image)
            if image.format == "TIFF":
                image.load()  # turns it, and forgets the note
            turn = OF_EXIF.get(image.getexif().get(_ORIENTATION), AS_STORED)
            self.width, self.height = back.size(*turn.size(image.width, image.height))
        if back:
            self.notes = (f"{self.paths[0].name}: EXIF turns it; it is read as stored, as its poses and lens are",)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> np.ndarray:
        frames = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        for row, index in enumerate(indices):
            path = self.paths[int(index)]
            with _opened(path) as image:
                back = self._turn_back(image)
                picture = back.frames(_rgb(path, image), first_axis=0)
            if picture.shape != frames.shape[1:]:
                height, width = picture.shape[:2]
                raise ValueError(
                    f"{path}: found a picture of {width}x{height}, wanted {self.width}x{self.height} as the first of "
                    "its folder"
                )
            frames[row] = picture
        return frames

    def _turn_back(self, image: Image.Image) -> Turn:
        """From the upright picture to the one that is wanted; asked before its pixels are read."""
        turn = OF_EXIF.get(image.getexif().get(_ORIENTATION), AS_STORED)
        return turn.inverse if self._as_stored else AS_STORED


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture, with one error for all that can be wrong with it: cut, no picture, too large to be meant."""
    with warnings.catch_warnings():
        # Pillow warns of half the size that it refuses.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                yield image
        except (
            *(OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError),
            *(EOFError, struct.error, zlib.error),
        ) as error:
            raise ValueError(f"{path}: not a readable image: {error}") from error


def _rgb(path: Path, image: Image.Image) -> np.ndarray:
    """Pixels (H, W, 3) uint8, upright; the transparent is white, of 16 bits a channel the upper 8 are taken."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    elif image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    elif image.mode in ("I", "F"):
        raise ValueError(f"{path}: found a picture of 32 bits a pixel, wanted 8 or 16 bits a channel")
    return np.asarray(image.convert("RGB"))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts runs of digits as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts if part]


def _as_decimal(stem: str) -> tuple[int, str]:
    whole, _, fraction = stem.partition(".")
    return int(whole), fraction
