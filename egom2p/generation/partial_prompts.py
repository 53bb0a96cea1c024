"""Partial prompts: a part of a target as tokens, for prediction, inpainting, and windows that go on where one ended.

T frames or samples of one clip, L tokens of one modality, (t, h, w) a video's token grid.

What is to be made must not reach the tokens of what is given, so masked samples are taken out *before* encoding: tracks
mark them invalid, videos repeat the nearest given frame (or blur the masked box). A token is given when everything it
stands for is given; the rest is UNKNOWN, to be generated.
"""

from dataclasses import replace

import numpy as np

from egom2p.config import NotNegative, strict
from egom2p.contracts import AlignedClip, ModalitySpec, Stream, TokenClip, Tokenizer
from egom2p.geometry import inverse_poses
from egom2p.models.prompt_batches import UNKNOWN


@strict
class InpaintingMask:
    """Which part of a target is to be made; the input gives the rest of it, as a partial prompt.

    seconds   from the start of the clip, (from, to); None: the whole time
    box       u, v of the upper left corner, then of the lower right one, in [0, 1] of the picture (videos only); None:
              whole pictures
    """

    seconds: tuple[NotNegative, NotNegative] | None = None
    box: tuple[NotNegative, NotNegative, NotNegative, NotNegative] | None = None

    def __post_init__(self) -> None:
        if self.seconds is None and self.box is None:
            raise ValueError("an inpainting mask needs `seconds`, `box`, or both")
        if self.seconds is not None and not 0 <= self.seconds[0] < self.seconds[1]:
            raise ValueError(f"masked seconds run from a smaller to a larger number, got {self.seconds}")
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(f"a masked box is (u0, v0, u1, v1) with u0 < u1, v0 < v1 in [0, 1], got {self.box}")

    def is_masked(self, num_samples: int, rate_hz: float) -> np.ndarray:
        """(T,) True where time is to be made."""
        if self.seconds is None:
            return np.ones(num_samples, bool)
        times_s = np.arange(num_samples) / rate_hz
        # Half open, so that neighbouring masks share no sample; the slack is for rates such as 30 Hz, whose sample
        # times are no binary fractions.
        return (times_s >= self.seconds[0] - 1e-6) & (times_s < self.seconds[1] - 1e-6)


def encode_given(
    tokenizer: Tokenizer,
    clip: AlignedClip,
    is_given_T: np.ndarray,
    *,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Ids (L,) of the clip's stream, UNKNOWN where a token stands for something that is to be made.

    box   only this part of the picture is masked, at the times that are not given
    Raises ValueError when a trajectory's first pose is masked: it is the origin of all others.
    """
    spec, stream = tokenizer.spec, clip.streams[tokenizer.stream]
    if spec.signal.is_relative and not is_given_T[0]:
        raise ValueError(
            f"clip {clip.key}: the first {spec.quantity} pose is the world of the others and must be given"
        )
    if not is_given_T.any() and box is None:
        return np.full(spec.num_tokens, UNKNOWN, np.int32)
    visible = _visible_pictures(stream, is_given_T, box) if spec.kind == "grid" else _visible_track(stream, is_given_T)
    ids_L = tokenizer.encode([replace(clip, streams=dict(clip.streams) | {tokenizer.stream: visible})])[0]
    is_given_L = given_positions(spec, is_given_T)
    if box is not None:
        is_given_L = is_given_L | ~_positions_in_box(spec, box)
    return np.where(is_given_L, ids_L, UNKNOWN).astype(np.int32)


def given_positions(spec: ModalitySpec, is_given_T: np.ndarray) -> np.ndarray:
    """(L,) True where all frames or samples that a token stands for are given.

    Videos: the first step is the first frame alone (the codec is causal and keeps it by itself), every later step an
    equal run of frames; a clip shorter than that is padded half on each side, the odd frame at the end, as there.
    """
    if spec.kind != "grid":
        is_given_step = is_given_T.reshape(spec.num_tokens // spec.num_streams, -1).all(axis=1)
        return np.repeat(is_given_step, spec.num_streams)
    steps, height, width = spec.grid.shape
    if steps == 1:
        return np.full(spec.num_tokens, bool(is_given_T.all()))
    run = -(-(len(is_given_T) - 1) // (steps - 1))
    missing = 1 + run * (steps - 1) - len(is_given_T)
    padded = np.pad(is_given_T, (missing // 2, missing - missing // 2), mode="edge")
    is_given_step = np.concatenate([padded[:1], padded[1:].reshape(steps - 1, run).all(axis=1)])
    return np.repeat(is_given_step, height * width)


def mask_tokens(clip: TokenClip, spec: ModalitySpec, mask: InpaintingMask, num_samples: int) -> np.ndarray:
    """The clip's ids (L,) with the masked part UNKNOWN; for prompts that are tokens already."""
    is_given_L = given_positions(spec, ~mask.is_masked(num_samples, spec.rate_hz or 1.0))
    if mask.box is not None:
        is_given_L = is_given_L | ~_positions_in_box(spec, mask.box)
    return np.where(is_given_L, clip.tokens[spec.name], UNKNOWN).astype(np.int32)


def merge_given(spec: ModalitySpec, given: Stream, made: Stream, mask: InpaintingMask) -> Stream:
    """The given stream with its masked part made; poses made go on from the given first pose."""
    is_given_T, box, values = ~mask.is_masked(len(made.values), spec.rate_hz or 1.0), mask.box, np.array(made.values)
    if spec.signal.is_relative:
        # Decoded poses know only their own first pose; the given one says where that stands in the world.
        values = given.values[0] @ inverse_poses(values[0]) @ values
    is_given = is_given_T.reshape(-1, *[1] * (values.ndim - 1))
    if box is not None:
        is_given = is_given | ~_pixels_in_box(values.shape[1:3], box).reshape(
            1, *values.shape[1:3], *[1] * (values.ndim - 3)
        )
    is_valid = np.where(is_given_T, given.is_valid, made.is_valid)
    return replace(given, values=np.where(is_given, given.values, values).astype(given.values.dtype), is_valid=is_valid)


def _visible_track(stream: Stream, is_given_T: np.ndarray) -> Stream:
    return replace(stream, is_valid=stream.is_valid & is_given_T)


def _visible_pictures(stream: Stream, is_given_T: np.ndarray, box: tuple[float, ...] | None) -> Stream:
    values = np.array(stream.values)
    if box is None:
        # The nearest frame makes no cut, which the codec (it mixes over time) would spread to the frames beside it.
        given = np.flatnonzero(is_given_T)
        before = np.searchsorted(given, np.arange(len(values)), side="right") - 1
        return replace(stream, values=values[given[np.maximum(before, 0)]])
    is_masked_HW = _pixels_in_box(values.shape[1:3], box)
    for frame in np.flatnonzero(~is_given_T):
        # Something that the rest determines: its mean colour, which has no edge of its own; no depth is 0, unknown.
        outside = values[frame][~is_masked_HW]
        values[frame][is_masked_HW] = outside.mean(axis=0) if values.ndim == 4 and len(outside) else 0
    return replace(stream, values=values)


def _pixels_in_box(size: tuple[int, int], box: tuple[float, ...]) -> np.ndarray:
    """(H, W) True where a pixel touches the box."""
    (height, width), (left, top, right, bottom) = size, box
    rows, columns = np.arange(height), np.arange(width)
    # Without the slack a box that ends on a pixel's edge would take the next pixel along by a rounding error.
    is_row = (rows + 1 > top * height + 1e-9) & (rows < bottom * height - 1e-9)
    return is_row[:, None] & ((columns + 1 > left * width + 1e-9) & (columns < right * width - 1e-9))[None]


def _positions_in_box(spec: ModalitySpec, box: tuple[float, ...]) -> np.ndarray:
    """(L,) True where a token of a video touches the box."""
    if spec.kind != "grid":
        raise ValueError(f"{spec.name}: only videos have pictures of which a box can be masked")
    steps, height, width = spec.grid.shape
    return np.tile(_pixels_in_box((height, width), box).reshape(-1), steps)
