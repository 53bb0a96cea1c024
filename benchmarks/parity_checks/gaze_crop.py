"""Gaze in pixels of a picture -> gaze in the centred crop of it, with the published margin."""

import re
from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from egom2p.data.clips.cropping import Crop, crop_gaze
from parity_checks.check import Check, count

_MARGIN = 0.2  # published: gaze this far outside the crop is still valid
_NAME = re.compile(r"gaze\.converted_(\d+)(?:x(\d+))?(?:_(to|half)_?(\d+)crop)?")


def gaze_crop_checks(stored: Mapping[str, Tensor]) -> Iterator[Check]:
    """Every `gaze.converted_*`: (clip, sample, (x, y, valid)), x and y in [-1, 1] of the crop, -1 where invalid."""
    for name, wanted in stored.items():
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        width, height = int(found[1]), int(found[2] or found[1])
        raw = stored[f"gaze.raw_{found[1]}{'x' + found[2] if found[2] else ''}_f64"].numpy()
        side = int(found[4] or min(width, height))
        if found[3] == "half":  # the picture was halved first, its crop is told in halved pixels
            side *= 2
        crop = Crop(width, height, (width - side) // 2, (height - side) // 2, side, side)
        gaze = np.stack([crop_gaze(clip / [width, height], crop) for clip in raw])
        with np.errstate(invalid="ignore"):
            is_valid = ((gaze >= -_MARGIN) & (gaze <= 1 + _MARGIN)).all(-1)
        converted = wanted.numpy()
        yield count(f"{name}: samples whose validity differs", int((is_valid != (converted[..., 2] > 0)).sum()))
        both = is_valid & (converted[..., 2] > 0)
        yield Check(
            f"{name}: gaze in the crop, absolute", float(np.abs(2 * gaze - 1 - converted[..., :2])[both].max()), 1e-6
        )
