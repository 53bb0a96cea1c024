"""Which numbers of a clip are compared when samples are held against the truth.

K samples, T frames or samples of a stream, S samples of a track.
"""

import numpy as np

from egom2p.contracts import AlignedClip
from egom2p.geometry import canonicalise
from egom2p.metrics.calibration import ClipSpread, clip_spread

UNITS = {"gaze": "image sizes", "camera": "m", "depth": "log depth", "rgb": "grey levels", "generic": "", "text": ""}
_MAX_VALUES = 4096  # of one clip, drawn at random: neighbouring pixels say the same


def sample_spread(
    quantity: str, samples: np.ndarray, clip: AlignedClip, stream: str, rng: np.random.Generator
) -> ClipSpread | None:
    """Spread of samples (K, T, ...): gaze coordinates and track channels where the truth is valid, camera positions
    from the first pose on, log depth where the truth has depth, and colours.

    None when the truth has no such value (a text), or the samples are of another size.
    """
    if quantity == "text":
        return None
    truth = np.asarray(clip.streams[stream].values)
    if samples.shape[1:] != truth.shape:
        return None
    if quantity == "camera":
        positions_KS3 = np.stack([canonicalise(sample) for sample in samples])[:, 1:, :3, 3]
        return _of_values(positions_KS3, canonicalise(truth)[1:, :3, 3], rng)
    is_valid = np.broadcast_to(clip.streams[stream].is_valid.reshape(-1, *[1] * (truth.ndim - 1)), truth.shape)
    if quantity == "depth":
        is_valid = is_valid & (truth > 0) & (samples > 0).all(0)
        samples, truth = np.log(np.where(is_valid, samples, 1.0)), np.log(np.where(is_valid, truth, 1.0))
    return _of_values(samples[:, is_valid], truth[is_valid], rng)


def _of_values(samples: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> ClipSpread | None:
    samples, truth = samples.reshape(len(samples), -1), truth.reshape(-1)
    if truth.size == 0 or not (np.isfinite(samples).all() and np.isfinite(truth).all()):
        return None
    if truth.size > _MAX_VALUES:  # drawn, since a step that divides the picture's width keeps to a few columns
        kept = rng.choice(truth.size, _MAX_VALUES, replace=False)
        samples, truth = samples[:, kept], truth[kept]
    return clip_spread(samples, truth, rng)
