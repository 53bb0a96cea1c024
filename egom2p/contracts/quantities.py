"""What a modality measures, one record per quantity. Readers, metrics, views choose by it, never by a modality's name.

A new quantity is a record here and a file in `evaluation/quantities`; what else differs is in its attributes.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    """One kind of signal.

    layout          picture: (F, H, W, ...) on the clock of frames; track: (S, ...) on the clock of samples; text: (1,)
    stream          of recordings and clips that holds it; None: each modality has its own
    unit            of the values, as `Stream.unit`
    sample_shape    of one sample of a track; None: (C,), as many channels as the modality says
    is_relative     poses, known up to the world of their first one: it is the origin, and cannot be asked for
    is_logarithmic  positive values whose errors are factors; 0 is no value
    values          what the values are, in words, for people
    """

    name: str
    layout: Literal["picture", "track", "text"]
    stream: str | None
    unit: str
    sample_shape: tuple[int, ...] | None = None
    is_relative: bool = False
    is_logarithmic: bool = False
    values: str | None = None

    @property
    def has_range(self) -> bool:
        """Whether samples have a mean that means something and a range; of pictures the mean alone is kept."""
        return self.is_relative or self.is_logarithmic or self.layout == "track"


_ALL = (
    Quantity("rgb", "picture", "rgb", "uint8", values="uint8 RGB"),
    Quantity("depth", "picture", "depth", "m", is_logarithmic=True),
    Quantity("gaze", "track", "gaze", "image", (2,), values="u right, v down in [0, 1] of the image"),
    Quantity(
        "camera", "track", "camera", "world_from_cam", (4, 4), is_relative=True,
        values="first_cam_from_cam, metres, OpenCV camera axes",
    ),
    Quantity("text", "text", None, "text"),
    Quantity("generic", "track", None, ""),
)  # fmt: skip

QUANTITIES = {quantity.name: quantity for quantity in _ALL}
"""Name -> record; `ModalitySpec.quantity` is one of the names."""

_BY_STREAM = {quantity.stream: quantity for quantity in _ALL if quantity.stream is not None}
PICTURE_STREAMS = tuple(name for name, quantity in _BY_STREAM.items() if quantity.layout == "picture")


def quantity_of_stream(name: str, *, is_text: bool = False) -> Quantity:
    """What a stream of a clip holds; one of a name that no quantity claims is a text or a generic track."""
    return _BY_STREAM.get(name, QUANTITIES["text" if is_text else "generic"])
