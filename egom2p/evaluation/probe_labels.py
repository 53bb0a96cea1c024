"""Labels of clips for a linear probe, read off their streams by a config."""

import re
from typing import Literal

import numpy as np

from egom2p.config import strict
from egom2p.contracts import AlignedClip


@strict
class ProbeLabelConfig:
    """One label per clip.

    kind     cell: the cell of a grid over [0, 1] x [0, 1] in which the mean of the valid samples of a track lies (gaze)
             text: the first group of `pattern` in a text (or all it matches, without a group)
    stream   stream that is read
    rows, columns   of the grid
    A clip whose text does not match, or whose track is never valid, has no label and is left out (counted).
    """

    kind: Literal["cell", "text"]
    stream: str
    rows: int = 3
    columns: int = 3
    pattern: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "text") != (self.pattern is not None):
            raise ValueError(f"pattern is for kind text, and needed there; got kind {self.kind!r}, {self.pattern!r}")
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"rows and columns are positive, got {self.rows} and {self.columns}")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error

    def label_of(self, clip: AlignedClip) -> str | None:
        """The label of a clip; None where it has none. ValueError names a clip without the stream."""
        if self.stream not in clip:
            raise ValueError(f"clip {clip.key} has no {self.stream} for its label, only {sorted(clip.streams)}")
        stream = clip.streams[self.stream]
        if self.kind == "text":
            found = re.search(self.pattern or "", str(stream.values[0]))
            return None if found is None else found.group(found.re.groups and 1)
        if not stream.is_valid.any():
            return None
        u, v = np.clip(stream.values[stream.is_valid].mean(0), 0.0, 1.0 - 1e-9)
        return f"row {int(v * self.rows)}, column {int(u * self.columns)}"
