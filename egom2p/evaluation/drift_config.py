"""What a drift table is told: long recordings, and ways of making them."""

from dataclasses import field

from egom2p.config import strict
from egom2p.data.recordings.reader_choice import SourceConfig
from egom2p.generation.request import Join
from egom2p.generation.stitching import StitchConfig
from egom2p.models.generation_plans import SamplingConfig


@strict
class RecordingsConfig:
    """Long recordings with truth.

    source, input   a reader, or a path of recordings
    rate_hz         of pictures without times
    segments_m      lengths over which relative camera errors are measured
    """

    source: SourceConfig | None = None
    input: str | None = None
    rate_hz: float | None = None
    segments_m: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        if (self.input is None) == (self.source is None):
            raise ValueError("recordings come either from a source or from an input")


@strict
class DriftRow:
    """One way to make a long recording; is_ceiling: of the truth, through the tokenizers, instead of by the model."""

    join: Join = "stitch"
    overlap_s: float = 1.0
    stitching: StitchConfig = StitchConfig()
    sampling: dict[str, SamplingConfig] = field(default_factory=dict)
    is_ceiling: bool = False


@strict
class DriftConfig:
    """One drift table.

    recordings   label -> recordings; one group of tables each
    rows         label -> way of making them
    max_recordings   of each label
    """

    checkpoint: str | None = None
    output: str
    recordings: dict[str, RecordingsConfig]
    rows: dict[str, DriftRow]
    conditions: tuple[str, ...] = ("rgb",)
    targets: tuple[str, ...] = ("depth", "camera", "gaze")
    max_recordings: int | None = None
    batch_size: int = 16
    seed: int = 0
    device: str = "auto"
    progress: bool = True
    description: str = ""
