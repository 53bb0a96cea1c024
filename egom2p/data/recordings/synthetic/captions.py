"""Sentences about what happens, from the factors of the simulation. T times."""

import numpy as np

from egom2p.data.recordings.synthetic.gaze import AHEAD, AWAY


def caption_of(speed: np.ndarray, turn: np.ndarray, target: np.ndarray, mover_names: list[str]) -> str:
    """One sentence about a stretch of time: speed (T,) m/s, turn (T,) rad/s, left positive, target (T,) as in `gaze`.

    For example "the wearer walks forward and turns left, looking at a red moving ball".
    """
    targets, counts = np.unique(target[target != AWAY] if (target != AWAY).any() else target, return_counts=True)
    main = int(targets[np.argmax(counts)])
    if main in (AHEAD, AWAY):
        looks = "looks ahead" if main == AHEAD else "looks around"
    else:
        colour, shape = mover_names[main].split()
        looks = f"looks at {'an' if colour[0] in 'aeiou' else 'a'} {colour} moving {shape}"
    return f"the wearer {_motion(float(np.mean(speed)), float(np.mean(turn)))} and {looks}"


def _motion(speed_mps: float, turn_rad_per_s: float) -> str:
    side = "left" if turn_rad_per_s > 0 else "right"
    turns = abs(turn_rad_per_s) > np.radians(10)
    if speed_mps < 0.2:
        return f"turns {side} on the spot" if turns else "stands still"
    pace = "walks" if speed_mps < 0.9 else "walks fast"
    return f"{pace} and turns {side}" if turns else f"{pace} forward"
