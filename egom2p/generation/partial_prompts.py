"""A part of a signal as tokens: for prediction, inpainting, and windows that go on where the last one ended.

T frames or samples of one clip, L tokens of one modality, (t, h, w) a video's token grid.

What is hidden must not reach the tokens of what is known, so hidden samples are taken out *before* encoding: tracks
mark them invalid, videos repeat the nearest known frame (or blur the hidden box). A token is known when everything it
stands for is known; the rest is -1, to be generated.
"""

from dataclasses import replace

import numpy as np

from egom2p.config import strict
from egom2p.contracts import AlignedClip, ModalitySpec, Stream, TokenClip, Tokenizer
from egom2p.geometry import inverse_poses

UNKNOWN = -1


@strict
class HiddenPart:
    """Which part of a target is to be made; the input gives the rest of it.

    seconds   from the start of the clip, (from, to); None: the whole time
    box       u, v of the upper left corner, then of the lower right one, in [0, 1] of the picture (videos only); None:
              whole pictures
    """

    seconds: tuple[float, float] | None = None
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.seconds is None and self.box is None:
            raise ValueError("a hidden part needs `seconds`, `box`, or both")
        if self.seconds is not None and not 0 <= self.seconds[0] < self.seconds[1]:
            raise ValueError(f"hidden seconds run from a smaller to a larger number, got {self.seconds}")
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(f"a hidden box is (u0, v0, u1, v1) with u0 < u1, v0 < v1 in [0, 1], got {self.box}")

    def hides(self, num_samples: int, rate_hz: float) -> np.ndarray:
        """(T,) True where time is hidden."""
        if self.seconds is None:
            return np.ones(num_samples, bool)
        times_s = np.arange(num_samples) / rate_hz
        return (times_s >= self.seconds[0] - 1e-6) & (times_s < self.seconds[1] - 1e-6)


def encode_known(
    tokenizer: Tokenizer,
    clip: AlignedClip,
    is_known_T: np.ndarray,
    *,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Ids (L,) of the clip's stream, -1 where a token stands for something hidden.

    box   only this part of the picture is hidden, at the times that are not known
    Raises ValueError when a camera's first pose is hidden: it is the origin of all others.
    """
    spec, stream = tokenizer.spec, clip.streams[tokenizer.stream]
    if spec.quantity == "camera" and not is_known_T[0]:
        raise ValueError(f"clip {clip.key}: the first camera pose is the world of the others and cannot be hidden")
    if not is_known_T.any() and box is None:
        return np.full(spec.num_tokens, UNKNOWN, np.int32)
    shown = _shown_pictures(stream, is_known_T, box) if spec.kind == "grid" else _shown_track(stream, is_known_T)
    ids_L = tokenizer.encode([replace(clip, streams=dict(clip.streams) | {tokenizer.stream: shown})])[0]
    is_known_L = known_positions(spec, is_known_T)
    if box is not None:
        is_known_L = is_known_L | ~_positions_in_box(spec, box)
    return np.where(is_known_L, ids_L, UNKNOWN).astype(np.int32)


def known_positions(spec: ModalitySpec, is_known_T: np.ndarray) -> np.ndarray:
    """(L,) True where all frames or samples that a token stands for are known.

    Videos: the first step is the first frame alone, every later step an equal run of frames; a clip shorter than that
    is padded half on each side, the odd frame at the end.
    """
    if spec.kind != "grid":
        is_known_step = is_known_T.reshape(spec.num_tokens // spec.num_streams, -1).all(axis=1)
        return np.repeat(is_known_step, spec.num_streams)
    steps, height, width = spec.grid.shape
    if steps == 1:
        return np.full(spec.num_tokens, bool(is_known_T.all()))
    run = -(-(len(is_known_T) - 1) // (steps - 1))
    missing = 1 + run * (steps - 1) - len(is_known_T)
    padded = np.pad(is_known_T, (missing // 2, missing - missing // 2), mode="edge")
    is_known_step = np.concatenate([padded[:1], padded[1:].reshape(steps - 1, run).all(axis=1)])
    return np.repeat(is_known_step, height * width)


def hide_tokens(clip: TokenClip, spec: ModalitySpec, part: HiddenPart, num_samples: int) -> np.ndarray:
    """The clip's ids (L,) with the hidden part -1; for prompts that are tokens already."""
    is_known_L = known_positions(spec, ~part.hides(num_samples, spec.rate_hz or 1.0))
    if part.box is not None:
        is_known_L = is_known_L | ~_positions_in_box(spec, part.box)
    return np.where(is_known_L, clip.tokens[spec.name], UNKNOWN).astype(np.int32)


def merge_known(
    quantity: str, given: Stream, made: Stream, is_known_T: np.ndarray, box: tuple[float, ...] | None
) -> Stream:
    """What was given where it was known, what was made elsewhere; poses made go on from the given first pose."""
    values = np.array(made.values)
    if quantity == "camera":
        values = given.values[0] @ inverse_poses(values[0]) @ values
    is_given = is_known_T.reshape(-1, *[1] * (values.ndim - 1))
    if box is not None:
        is_given = is_given | ~_pixels_in_box(values.shape[1:3], box).reshape(
            1, *values.shape[1:3], *[1] * (values.ndim - 3)
        )
    is_valid = np.where(is_known_T, given.is_valid, made.is_valid)
    return replace(given, values=np.where(is_given, given.values, values).astype(given.values.dtype), is_valid=is_valid)


def _shown_track(stream: Stream, is_known_T: np.ndarray) -> Stream:
    return replace(stream, is_valid=stream.is_valid & is_known_T)


def _shown_pictures(stream: Stream, is_known_T: np.ndarray, box: tuple[float, ...] | None) -> Stream:
    values = np.array(stream.values)
    if box is None:
        known = np.flatnonzero(is_known_T)
        before = np.searchsorted(known, np.arange(len(values)), side="right") - 1
        return replace(stream, values=values[known[np.maximum(before, 0)]])
    is_hidden_HW = _pixels_in_box(values.shape[1:3], box)
    for frame in np.flatnonzero(~is_known_T):
        outside = values[frame][~is_hidden_HW]
        values[frame][is_hidden_HW] = outside.mean(axis=0) if values.ndim == 4 and len(outside) else 0
    return replace(stream, values=values)


def _pixels_in_box(size: tuple[int, int], box: tuple[float, ...]) -> np.ndarray:
    """(H, W) True where a pixel touches the box."""
    (height, width), (left, top, right, bottom) = size, box
    rows, columns = np.arange(height), np.arange(width)
    is_row = (rows + 1 > top * height + 1e-9) & (rows < bottom * height - 1e-9)
    return is_row[:, None] & ((columns + 1 > left * width + 1e-9) & (columns < right * width - 1e-9))[None]


def _positions_in_box(spec: ModalitySpec, box: tuple[float, ...]) -> np.ndarray:
    """(L,) True where a token of a video touches the box."""
    if spec.kind != "grid":
        raise ValueError(f"{spec.name}: only videos have pictures of which a box can be hidden")
    steps, height, width = spec.grid.shape
    return np.tile(_pixels_in_box((height, width), box).reshape(-1), steps)
