"""How every quantity is scored: one file each, and the table of them."""

from egom2p.evaluation.quantities import (
    camera_scoring,
    depth_scoring,
    gaze_scoring,
    rgb_scoring,
    text_scoring,
    track_scoring,
)
from egom2p.evaluation.scoring import Scoring

SCORING: dict[str, Scoring] = {
    "rgb": rgb_scoring.SCORING,
    "depth": depth_scoring.SCORING,
    "gaze": gaze_scoring.SCORING,
    "camera": camera_scoring.SCORING,
    "text": text_scoring.SCORING,
    "generic": track_scoring.SCORING,
}
