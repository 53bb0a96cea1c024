"""Windows of known signals, joined: exact recovery up to the freedom each signal has, fades, validity."""

from itertools import accumulate

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from egom2p.contracts import QUANTITIES
from egom2p.generation.pose_graph import MotionErrors
from egom2p.generation.stitching import StitchConfig, align_depth, fade_in, joined_stream, overlap_summary
from egom2p.geometry import canonicalise, frame_to_frame, inverse_poses, poses_from_parts, rotation_angle

_LENGTH, _WINDOW, _STRIDE = 150, 60, 30


def _walk(rng: np.random.Generator, num_samples: int = _LENGTH) -> np.ndarray:
    turns = np.cumsum(rng.normal(0, 0.03, (num_samples, 3)), axis=0)
    positions = np.cumsum(rng.normal(0.01, 0.02, (num_samples, 3)), axis=0)
    return poses_from_parts(Rotation.from_rotvec(turns).as_matrix(), positions)


def _starts(stride: int = _STRIDE, window: int = _WINDOW) -> range:
    return range(0, _LENGTH - window + 1, stride)


def _join(quantity, windows, starts, **config):
    sequence = joined_stream(QUANTITIES[quantity], _LENGTH, StitchConfig(**config))
    for start, (values, is_valid) in zip(starts, windows, strict=True):
        sequence.add(start, values, is_valid)
    assert sequence.end == _LENGTH
    return sequence


def _all_valid(values):
    return values, np.ones(len(values), bool)


@pytest.mark.parametrize("mode", ["se3", "sim3", "one_pose"])
def test_windows_in_worlds_of_their_own_give_the_trajectory_back(rng, mode):
    truth = _walk(rng)
    windows = [_all_valid(canonicalise(truth[start : start + _WINDOW])) for start in _starts()]
    sequence = _join("camera", windows, _starts(), camera=mode)
    np.testing.assert_allclose(sequence.part(0, _LENGTH)[0], canonicalise(truth), atol=1e-8)
    assert all(report["overlap_m"] < 1e-8 and report["num_overlap"] == 30 for report in sequence.reports)


def test_a_similarity_per_window_is_undone_by_sim3_and_not_by_se3(rng):
    truth = _walk(rng)
    windows = []
    for start in _starts():
        window = canonicalise(truth[start : start + _WINDOW])
        window[:, :3, 3] *= 1.0 if start == 0 else rng.uniform(0.5, 2)
        windows.append(_all_valid(window))
    found = _join("camera", windows, _starts(), camera="sim3").part(0, _LENGTH)[0]
    np.testing.assert_allclose(found, canonicalise(truth), atol=1e-8)
    wrong = _join("camera", windows, _starts(), camera="se3").part(0, _LENGTH)[0]
    assert np.abs(wrong[:, :3, 3] - canonicalise(truth)[:, :3, 3]).max() > 0.01


def test_a_head_that_stands_still_is_joined_by_its_rotation(rng):
    truth = _walk(rng)
    truth[:, :3, 3] = 0.0
    windows = [_all_valid(canonicalise(truth[start : start + _WINDOW])) for start in _starts()]
    for mode in ("se3", "sim3"):
        found = _join("camera", windows, _starts(), camera=mode).part(0, _LENGTH)[0]
        np.testing.assert_allclose(found, canonicalise(truth), atol=1e-9)


def test_windows_that_touch_go_on_as_they_moved(rng):
    steady = poses_from_parts(
        Rotation.from_rotvec(np.outer(np.arange(_LENGTH), [0, 0.01, 0])).as_matrix(),
        np.zeros((_LENGTH, 3)),
    )
    steady[:, :3, 3] = 0.02 * np.cumsum(steady[:, :3, 2], axis=0)  # a circle, each step alike
    windows = [_all_valid(canonicalise(steady[start : start + 50])) for start in (0, 50, 100)]
    found = _join("camera", windows, (0, 50, 100)).part(0, _LENGTH)[0]
    np.testing.assert_allclose(found, canonicalise(steady), atol=1e-3)


def test_noise_on_the_overlap_is_averaged(rng):
    """Fitting the whole overlap beats going through one of its poses."""
    errors = {"se3": [], "one_pose": []}
    for _ in range(20):
        truth = _walk(rng)
        windows = []
        for start in _starts():
            window = canonicalise(truth[start : start + _WINDOW])
            window[:, :3, :3] = window[:, :3, :3] @ Rotation.from_rotvec(rng.normal(0, 0.05, (_WINDOW, 3))).as_matrix()
            windows.append(_all_valid(window))
        for mode, found in errors.items():
            joined = _join("camera", windows, _starts(), camera=mode).part(0, _LENGTH)[0]
            wanted = canonicalise(truth)[-1, :3, :3]
            found.append(rotation_angle(joined[-1, :3, :3].T @ wanted))
    assert np.mean(errors["se3"]) < 0.6 * np.mean(errors["one_pose"])


def test_motions_that_several_windows_tell_are_averaged(rng):
    """Windows whose motions err independently: the more windows see a motion, the straighter the path."""
    errors = {30: [], 15: []}
    for _ in range(10):
        truth = _walk(rng)
        for stride, found in errors.items():
            windows = []
            for start in range(0, _LENGTH - _WINDOW + 1, stride):
                turns = Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.02, (_WINDOW, 3)), axis=0)).as_matrix()
                window = canonicalise(truth[start : start + _WINDOW])
                window[:, :3, :3] = window[:, :3, :3] @ turns
                windows.append(_all_valid(window))
            joined = _join("camera", windows, range(0, _LENGTH - _WINDOW + 1, stride), camera="graph")
            wanted = canonicalise(truth)[-1, :3, :3]
            found.append(rotation_angle(joined.result()[0][-1, :3, :3].T @ wanted))
    assert np.mean(errors[15]) < np.mean(errors[30])


def test_depth_windows_of_other_scales_become_one(rng):
    truth = rng.uniform(0.5, 5, (_LENGTH, 4, 5)).astype(np.float32)
    truth[:, 0, 0] = 0.0  # never known
    factors = [1.0, 1.3, 0.7, 2.0]
    windows = [_all_valid(truth[s : s + _WINDOW] * f) for s, f in zip(_starts(), factors, strict=True)]
    sequence = _join("depth", windows, _starts(), depth="scale", anchor=0.0)
    found = sequence.result()[0]
    # The median of the logarithms of four factors lies between the two in the middle, 1 and 1.3.
    np.testing.assert_allclose(found, truth * np.sqrt(1.3), rtol=1e-4)
    scales = np.array([report["scale"] for report in sequence.reports])
    np.testing.assert_allclose(scales * factors[1:], np.full(3, np.sqrt(1.3)), rtol=1e-4)


@pytest.mark.parametrize("hop", [4, 8])
def test_a_window_of_a_wrong_scale_gives_way_and_the_metres_are_kept(rng, hop):
    """Scales that err by 5 %, and by half in one window of ten: the joined depth is steadier than the windows."""
    length, window = 600, 16
    truth = rng.uniform(0.5, 5, (length, 4, 5)).astype(np.float32)
    starts = range(0, length - window + 1, hop)
    logs = rng.normal(0, 0.05, len(starts)) + np.where(np.arange(len(starts)) % 10 == 5, np.log(1.5), 0)
    found = {}
    for mode in ("none", "scale"):
        sequence = joined_stream(QUANTITIES["depth"], length, StitchConfig(depth=mode, anchor=0.1))
        for start, log in zip(starts, logs, strict=True):
            noise = np.exp(rng.normal(0, 0.05, (window, 4, 5)))
            sequence.add(start, *_all_valid((truth[start : start + window] * np.exp(log) * noise).astype(np.float32)))
        values = sequence.result()[0]
        found[mode] = np.log(np.median(values / truth[: len(values)], axis=(1, 2)))
    assert np.std(found["scale"]) < 0.5 * np.std(found["none"])
    assert abs(np.median(found["scale"])) < 0.03, "metres are kept"


def test_an_anchor_keeps_scales_from_walking_away():
    """Overlaps that always say `a bit larger`: free factors grow without end, anchored ones stay near the metres."""
    flat, length = np.full((_WINDOW, 3, 3), 2.0, np.float32), 1500
    flat[_STRIDE:] *= 1.1  # the end of every window is 10 % too far, so its successor looks too near
    spans = {}
    for anchor in (0.0, 0.1, 1.0):
        sequence = joined_stream(QUANTITIES["depth"], length, StitchConfig(depth="scale", anchor=anchor))
        for start in range(0, length - _WINDOW + 1, _STRIDE):
            sequence.add(start, *_all_valid(flat))
        values = sequence.result()[0]
        spans[anchor] = values.max() / values.min()
    assert spans[0.0] > 1.1**45 and spans[0.1] < 1.1 * 1.1**6 and spans[1.0] < 1.1 * 1.12, spans


def test_depth_without_common_pixels_stays_as_it_is():
    sequence = (np.zeros((4, 2, 2), np.float32), np.ones(4, bool))
    aligned, report = align_depth(sequence, sequence, _all_valid(np.ones((8, 2, 2), np.float32)))
    assert (aligned == 1).all() and report == {"scale": 1.0}


def test_gaze_fades_and_takes_the_valid_side(rng):
    early, late = np.zeros((_WINDOW, 2), np.float32), np.ones((_WINDOW, 2), np.float32)
    is_valid = np.ones(_WINDOW, bool)
    gone = is_valid.copy()
    gone[_STRIDE : _STRIDE + 10] = False  # the first ten samples of the overlap, in the early window
    starts = _starts()
    sequence = _join("gaze", [(early, gone)] + [(late, is_valid)] * (len(starts) - 1), starts)
    values, valid = sequence.part(0, _LENGTH)
    assert (values[_STRIDE : _STRIDE + 10] == 1).all()  # the only side that saw something
    faded = values[_STRIDE + 10 : _WINDOW, 0]
    np.testing.assert_allclose(faded, fade_in(30)[10:], atol=1e-6)
    # Valid where the valid sides weigh at least half: not where only the window's first, light samples speak.
    assert not valid[_STRIDE : _STRIDE + 10].any() and valid[_WINDOW:].all() and valid[:_STRIDE].all()


def test_pictures_and_equal_windows_pass_unchanged(rng):
    video = rng.integers(0, 256, (_LENGTH, 3, 4, 3), dtype=np.uint8)
    sequence = _join("rgb", [_all_valid(video[s : s + _WINDOW]) for s in _starts()], _starts())
    assert np.array_equal(sequence.part(0, _LENGTH)[0], video)
    assert overlap_summary(sequence.reports) == {"num_overlaps": 3, "overlap": 0.0}


def test_a_gap_is_refused():
    sequence = joined_stream(QUANTITIES["gaze"], _LENGTH, StitchConfig())
    sequence.add(0, *_all_valid(np.zeros((10, 2), np.float32)))
    with pytest.raises(ValueError, match=r"window 20..30 does not continue a sequence of 10 of 150"):
        sequence.add(20, *_all_valid(np.zeros((10, 2), np.float32)))


@pytest.mark.parametrize("mode", ["se3", "graph"])
def test_windows_between_two_samples_are_resampled(rng, mode):
    """A body that turns and moves evenly is interpolated exactly, so that half samples cost nothing."""
    steps = np.arange(_LENGTH * 2) / 2  # half samples of the whole
    turns = Rotation.from_rotvec(np.outer(steps, [0, 0.02, 0])).as_matrix()
    fine = poses_from_parts(turns, np.zeros((len(steps), 3)))
    fine[:, :3, 3] = turns @ [0.1, 0, 0]  # a mount on a turning body
    fine = inverse_poses(fine[0]) @ fine
    sequence = joined_stream(QUANTITIES["camera"], _LENGTH, StitchConfig(camera=mode))
    for start in np.arange(0, _LENGTH - _WINDOW + 0.1, 7.5):
        sequence.add(start, *_all_valid(canonicalise(fine[round(2 * start) :: 2][:_WINDOW])))
    found, is_valid = sequence.result()
    np.testing.assert_allclose(found, fine[::2][: len(found)], atol=1e-4)
    assert len(found) == _LENGTH and is_valid.all()


def test_a_track_between_two_samples_is_interpolated_and_pictures_are_refused(rng):
    ramp = np.arange(_LENGTH, dtype=np.float32)[:, None] * [1.0, 2.0]
    sequence = joined_stream(QUANTITIES["gaze"], _LENGTH, StitchConfig())
    gone = np.ones(_WINDOW, bool)
    gone[10] = False
    sequence.add(0, ramp[:_WINDOW], np.ones(_WINDOW, bool))
    sequence.add(30.5, ramp[30:][:_WINDOW] + 0.5 * np.array([1, 2], np.float32), gone)
    values, is_valid = sequence.result()
    np.testing.assert_allclose(values, ramp[: len(values)], atol=1e-5)
    assert len(values) == 90 and is_valid[60:].all()
    pictures = joined_stream(QUANTITIES["depth"], 100, StitchConfig())
    with pytest.raises(ValueError, match=r"begins at picture 2.5 of the whole; pictures are not resampled"):
        pictures.add(2.5, *_all_valid(np.ones((16, 2, 2), np.float32)))


def test_pictures_on_disk_are_those_in_memory(rng, tmp_path):
    video = rng.integers(0, 256, (_LENGTH, 3, 4, 3), dtype=np.uint8)
    found = []
    for folder in (None, tmp_path):
        sequence = joined_stream(QUANTITIES["rgb"], _LENGTH, StitchConfig(), folder=folder)
        for start in _starts():
            sequence.add(start, *_all_valid(video[start : start + _WINDOW]))
        found.append(sequence.result()[0])
    assert np.array_equal(*found) and not list(tmp_path.iterdir())


def _shaken(truth: np.ndarray, rng: np.random.Generator, deg: float, metres: float) -> np.ndarray:
    """A window whose errors wander: what a decoder adds, sample by sample, to a window that began right."""
    wander = np.cumsum(rng.normal(size=(2, len(truth), 3)), axis=1) / np.sqrt(len(truth))
    rotations = truth[:, :3, :3] @ Rotation.from_rotvec(np.radians(deg) * wander[0]).as_matrix()
    return canonicalise(poses_from_parts(rotations, truth[:, :3, 3] + metres * wander[1]))


def _end_error_m(rng, mode, *, stride=12, length=600, bad_window=None):
    truth = _walk(rng, length)
    sequence = joined_stream(QUANTITIES["camera"], length, StitchConfig(camera=mode))
    noise = np.random.default_rng(1)
    for number, start in enumerate(range(0, length - _WINDOW + 1, stride)):
        window = _shaken(truth[start : start + _WINDOW], noise, 1.0, 0.02)
        if number == bad_window:
            window = _shaken(truth[start : start + _WINDOW], noise, 90.0, 2.0)
        sequence.add(start, *_all_valid(window))
    found, wanted = sequence.result()[0], canonicalise(truth)
    return np.linalg.norm(found[:, :3, 3] - wanted[:, :3, 3], axis=1).mean()


def test_a_graph_of_exact_windows_is_exact_and_of_two_windows_is_the_chain(rng):
    truth = _walk(rng)
    starts = _starts(stride=15)
    windows = [_all_valid(canonicalise(truth[start : start + _WINDOW])) for start in starts]
    values, is_valid = _join("camera", windows, starts, camera="graph").result()
    np.testing.assert_allclose(values, canonicalise(truth), atol=1e-7)
    assert is_valid.all()


def test_errors_that_cancel_are_weighed_by_what_they_leave(rng):
    """Errors of a high-pass kind, as a codec's that keeps what is slow: weights that know it beat averaging."""
    count, stride, length = 60, 15, 900
    shape = np.exp(-0.5 * (np.subtract.outer(np.arange(count), np.arange(count)) / 4.0) ** 2)
    slow = np.linalg.qr(np.vander(np.linspace(-1, 1, count), 6))[0]
    kept_out = np.eye(count) - 0.98 * slow @ slow.T  # six slow shapes of a window are coded nearly exactly
    root = kept_out @ np.linalg.cholesky(shape + 1e-6 * np.eye(count))

    def windows(truth, noise):
        for start in range(0, length - count, stride):
            errors = 0.01 * np.einsum("kl,lc->kc", root, noise.normal(size=(count, 6)))
            change = poses_from_parts(Rotation.from_rotvec(errors[:, :3]).as_matrix(), errors[:, 3:])
            motions = frame_to_frame(truth[start : start + count + 1]) @ change
            yield start, np.stack(list(accumulate(motions, np.matmul, initial=np.eye(4))))

    seen = _walk(rng, length)
    pairs = [(window, seen[start : start + count + 1]) for start, window in windows(seen, rng)]
    errors = MotionErrors.measured(*(np.stack(column) for column in zip(*pairs, strict=True)))
    truth = _walk(rng, length)
    ends = {}
    for label, known in (("averaged", None), ("weighed", lambda poses: errors)):
        sequence = joined_stream(QUANTITIES["camera"], length, StitchConfig(camera="graph"), errors=known)
        for start, window in windows(truth, np.random.default_rng(5)):
            sequence.add(start, *_all_valid(window))
        found = sequence.result()[0]
        ends[label] = np.linalg.norm(found[:, :3, 3] - canonicalise(truth)[: len(found), :3, 3], axis=1).mean()
    assert ends["weighed"] < 0.5 * ends["averaged"], ends


def test_all_overlaps_at_once_pass_over_a_window_that_is_wrong():
    usual = _end_error_m(np.random.default_rng(3), "graph")
    chained, all_at_once = (_end_error_m(np.random.default_rng(3), mode, bad_window=20) for mode in ("se3", "graph"))
    assert all_at_once < 0.5 * chained and all_at_once < 2 * usual, (usual, all_at_once, chained)


def test_many_windows_that_touch_stay_rotations(rng):
    truth = _walk(rng, 60 * 200)
    sequence = joined_stream(QUANTITIES["camera"], len(truth), StitchConfig())
    for start in range(0, len(truth), 60):
        sequence.add(start, *_all_valid(canonicalise(truth[start : start + 60])))
    rotations = sequence.result()[0][:, :3, :3]
    np.testing.assert_allclose(
        rotations @ rotations.swapaxes(1, 2), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-9
    )
