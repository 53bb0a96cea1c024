"""Bringing stored pictures upright: turned by quarter turns, mirrored, flipped, as a file's own note or a person says;
and whole clips seen in a mirror, of which a model can learn as from the clips themselves.

H, W pixels. A picture is stored with rows downwards and columns to the right; what a `Turn` does to pictures it does
to points in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from egom2p.contracts import AlignedClip, Stream

# A display matrix is 16.16 fixed point; what deviates from a quarter turn by more than this is another angle.
_ANGLE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Turn:
    """First rows and columns change places (`swaps`), then the result is mirrored left-right and flipped up-down."""

    swaps: bool = False
    mirrors: bool = False
    flips: bool = False

    def __bool__(self) -> bool:
        return self.swaps or self.mirrors or self.flips

    def frames(self, frames: np.ndarray, *, first_axis: int = 1) -> np.ndarray:
        """Pictures (F, H, W, ...) upright, as a view; `first_axis` is that of H."""
        rows, columns = first_axis, first_axis + 1
        if self.swaps:
            frames = np.swapaxes(frames, rows, columns)
        mirrored = [axis for axis, is_on in ((columns, self.mirrors), (rows, self.flips)) if is_on]
        return np.flip(frames, mirrored) if mirrored else frames

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2), u right and v down in [0, 1] of the stored picture, in [0, 1] of the upright one."""
        u, v = (points[..., 1], points[..., 0]) if self.swaps else (points[..., 0], points[..., 1])
        return np.stack([1 - u if self.mirrors else u, 1 - v if self.flips else v], axis=-1)

    @property
    def inverse(self) -> "Turn":
        """From the upright picture back to the stored one."""
        return Turn(True, self.flips, self.mirrors) if self.swaps else self

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return (height, width) if self.swaps else (width, height)


AS_STORED = Turn()
# Clockwise: the stored picture's left edge becomes the top.
CLOCKWISE = {0: AS_STORED, 90: Turn(True, True, False), 180: Turn(False, True, True), 270: Turn(True, False, True)}
# What the stored first row and first column are in the upright picture (Exif 2.32, tag 0x0112).
OF_EXIF = {
    1: AS_STORED,
    2: Turn(False, True, False),
    3: CLOCKWISE[180],
    4: Turn(False, False, True),
    5: Turn(True, False, False),
    6: CLOCKWISE[90],
    7: Turn(True, True, True),
    8: CLOCKWISE[270],
}


def turn_of_matrix(matrix: Sequence[int], *, where: str) -> Turn:
    """The turn of a display matrix a b u c d v x y w, which shows stored (p, q) at (a p + c q + x, b p + d q + y).

    Raises ValueError for any other angle than quarter turns, and for a skew.
    """
    a, b, c, d = (float(matrix[k]) for k in (0, 1, 3, 4))
    size = max(abs(a), abs(b), abs(c), abs(d))
    is_straight = size > 0 and max(abs(b), abs(c)) <= _ANGLE_TOLERANCE * size and a * d != 0
    is_across = size > 0 and max(abs(a), abs(d)) <= _ANGLE_TOLERANCE * size and b * c != 0
    if is_straight:
        return Turn(False, a < 0, d < 0)
    if is_across:
        return Turn(True, c < 0, b < 0)
    angle_deg = float(np.degrees(np.arctan2(b, a)))
    shown = [round(value / size, 3) if size else 0.0 for value in (a, b, c, d)]
    raise ValueError(
        f"{where}: the file says that its picture is turned by {angle_deg:.1f} degrees (matrix {shown}); wanted "
        "quarter turns, mirrored or not. Turn the video itself first"
    )


class TurnedFrames:
    """A FrameSource or array of pictures (T, H, W, ...), each of them turned by `added_turn`."""

    def __init__(self, stored: object, turn: Turn) -> None:
        self._stored, self.added_turn = stored, turn
        width, height = (
            (stored.shape[2], stored.shape[1]) if hasattr(stored, "shape") else (stored.width, stored.height)
        )
        self.width, self.height = turn.size(width, height)

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, indices: np.ndarray) -> np.ndarray:
        is_array = isinstance(self._stored, np.ndarray)
        return self.added_turn.frames(self._stored[indices] if is_array else self._stored.read(indices))


_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
MIRRORED_STREAMS = ("rgb", "depth", "gaze", "camera")


def mirrored(clip: AlignedClip) -> AlignedClip:
    """The clip as its mirror image: left and right of the pictures change places, and with them gaze and motion.

    Poses become M P M with M = diag(-1, 1, 1, 1): the world is mirrored too, so rotations stay rotations and depth
    warps with them as before. Streams of which nobody knows what a mirror does to them (captions say left and right)
    are left out, as are intrinsics with distortion, whose terms would have to be mirrored one by one.
    """
    lens = clip.intrinsics if clip.intrinsics and not clip.intrinsics.distortion else None
    return replace(
        clip,
        streams={name: _mirrored(name, clip.streams[name]) for name in MIRRORED_STREAMS if name in clip.streams},
        intrinsics=lens and replace(lens, cx=lens.width - 1 - lens.cx),
    )


def _mirrored(name: str, stream: Stream) -> Stream:
    turn = Turn(mirrors=True)
    if name == "camera":
        return replace(stream, values=_MIRROR @ stream.values @ _MIRROR)
    return replace(stream, values=(turn.points if name == "gaze" else turn.frames)(stream.values))
