"""Camera errors: gold numbers of evo and of the published script, evo itself, and what must not move them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.spatial.transform import Rotation

from egom2p.geometry import (
    ALIGNMENTS,
    canonicalise,
    matrix_from_two_columns,
    poses_from_parts,
    write_euroc,
    write_kitti,
    write_tum,
)
from egom2p.metrics.camera import CAMERA_METRICS, camera_errors, compare_files, main


def walk(rng, num_poses=40):
    turns = Rotation.from_rotvec(np.cumsum(0.05 * rng.normal(size=(num_poses, 3)), axis=0)).as_matrix()
    return poses_from_parts(turns, np.cumsum(0.05 * rng.normal(size=(num_poses, 3)), axis=0))


def noisy(poses, rng, size=1.0):
    turns = Rotation.from_rotvec(size * 0.02 * rng.normal(size=(len(poses), 3))).as_matrix()
    return poses @ poses_from_parts(turns, size * 0.01 * rng.normal(size=(len(poses), 3)))


def world_change(rng, scale=1.0):
    rotation, translation = Rotation.random(rng=rng).as_matrix(), rng.normal(size=3)
    return lambda poses: poses_from_parts(
        rotation @ poses[:, :3, :3], scale * poses[:, :3, 3] @ rotation.T + translation
    )


def assert_same(errors, others, names=CAMERA_METRICS, rel=1e-9):
    for name in names:
        assert errors[name] == pytest.approx(others[name], rel=rel, abs=1e-12), name


@pytest.mark.parametrize(
    ("pair", "estimate", "reference", "file_format"),
    [
        ("fr2_desk: gt vs fr2_desk_ORB", "fr2_desk_ORB", "fr2_desk_groundtruth", "tum"),
        ("fr2_desk: gt vs fr2_desk_ORB_kf_mono", "fr2_desk_ORB_kf_mono", "fr2_desk_groundtruth", "tum"),
        ("kitti_00: gt vs ORB", "KITTI_00_ORB", "KITTI_00_gt", "kitti"),
    ],
)
def test_real_trajectories_give_the_numbers_of_evo(real_data_dir, capsys, pair, estimate, reference, file_format):
    gold = json.loads((real_data_dir / "reference_trajectory_metrics.json").read_text())["results"][pair]
    folder = real_data_dir / ("tum_fr2_desk" if file_format == "tum" else "kitti_00")
    paths = [str(folder / f"{name}.txt") for name in (estimate, reference)]
    for alignment, wanted in gold.items():
        assert main([*paths, "--format", file_format, "--align", alignment, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["num_poses"] == wanted["n"]
        for ours, theirs in (
            ("ate_m", "ate_rmse_m"),
            ("rpe_t_m", "rpe_trans_rmse_m"),
            ("rpe_r_deg", "rpe_rot_rmse_deg"),
            ("scale", "scale"),
        ):
            assert found[ours] == pytest.approx(wanted[theirs], rel=0, abs=1e-6), (alignment, ours)


def test_published_example_gives_the_published_numbers(real_data_dir):
    folder = real_data_dir / "egom2p_example_data"
    reference = canonicalise(np.load(folder / "cam.npy"))
    nine = np.load(folder / "token" / "cam-recon.npy")
    estimate = poses_from_parts(matrix_from_two_columns(nine[:, :6]), nine[:, 6:])
    errors = camera_errors(estimate, reference, "rotation")
    assert errors["ate_m"] == pytest.approx(0.0058740415749732955, abs=1e-13)
    assert errors["rpe_t_m"] == pytest.approx(0.00283753744, abs=1e-10)
    assert errors["rpe_r_deg"] == pytest.approx(0.298047028, abs=1e-8)
    for alignment, ate_m in (("none", 0.00657930), ("se3", 0.00560730), ("sim3", 0.00552366)):
        assert camera_errors(estimate, reference, alignment)["ate_m"] == pytest.approx(ate_m, abs=5e-9)


def test_published_script_on_noisy_trajectories(parity_dir):
    known = load_file(parity_dir / "tokenizer" / "representations.safetensors")
    gold = json.loads((parity_dir / "tokenizer" / "representations.json").read_text())
    for index, wanted in enumerate(gold["trajectory_metrics_noisy_vs_clean"]):
        reference = canonicalise(known["cam.poses_c2w_4x4_f64"][index])
        found = camera_errors(known["cam.noisy_as_4x4_f64"][index], reference, "rotation")
        for ours, theirs in zip(CAMERA_METRICS, ("ATE", "RTE", "RRE_deg"), strict=True):
            assert found[ours] == pytest.approx(wanted[theirs], abs=1e-10)


@pytest.mark.parametrize(("alignment", "correct_scale"), [("se3", False), ("sim3", True)])
def test_evo_agrees(rng, alignment, correct_scale):
    metrics = pytest.importorskip("evo.core.metrics")
    trajectory = pytest.importorskip("evo.core.trajectory")
    reference = walk(rng)
    estimate = world_change(rng, 1.7)(noisy(reference, rng))
    theirs = [trajectory.PosePath3D(poses_se3=list(poses)) for poses in (reference, estimate)]
    theirs[1].align(theirs[0], correct_scale=correct_scale)
    found = camera_errors(estimate, reference, alignment)
    relation = metrics.PoseRelation
    for name, metric in (
        ("ate_m", metrics.APE(relation.translation_part)),
        ("rpe_t_m", metrics.RPE(relation.translation_part, delta=1, delta_unit=metrics.Unit.frames)),
        ("rpe_r_deg", metrics.RPE(relation.rotation_angle_deg, delta=1, delta_unit=metrics.Unit.frames)),
    ):
        metric.process_data(tuple(theirs))
        assert found[name] == pytest.approx(metric.get_statistic(metrics.StatisticsType.rmse), rel=1e-9)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_perfect_estimate_has_no_error(alignment, rng):
    reference = canonicalise(walk(rng))
    errors = camera_errors(reference, reference, alignment)
    assert max(errors[name] for name in CAMERA_METRICS) < 1e-9
    assert errors["scale"] == pytest.approx(1.0) and errors["problem"] is None


def test_what_an_alignment_forgives_changes_nothing(rng):
    reference = walk(rng)
    estimate = noisy(reference, rng)
    se3, sim3 = camera_errors(estimate, reference, "se3"), camera_errors(estimate, reference, "sim3")
    moved = world_change(rng)(estimate)
    assert_same(camera_errors(moved, reference, "se3"), se3)
    assert_same(camera_errors(estimate, world_change(rng)(reference), "se3"), se3)
    assert_same(camera_errors(moved, reference, "first_pose"), camera_errors(estimate, reference, "first_pose"))
    scaled = world_change(rng, 0.3)(estimate)
    assert_same(camera_errors(scaled, reference, "sim3"), sim3)
    assert camera_errors(scaled, reference, "sim3")["scale"] == pytest.approx(sim3["scale"] / 0.3)
    assert camera_errors(scaled, reference, "se3")["ate_m"] > 2 * se3["ate_m"]


def test_more_freedom_gives_no_larger_ate(rng):
    for _ in range(20):
        reference = walk(rng)
        estimate = noisy(reference, rng, size=5.0)
        ate_m = {
            name: camera_errors(estimate, reference, name)["ate_m"] for name in ("none", "first_pose", "se3", "sim3")
        }
        assert ate_m["sim3"] <= ate_m["se3"] + 1e-12
        assert ate_m["se3"] <= min(ate_m["none"], ate_m["first_pose"]) + 1e-12


def test_rigid_alignment_leaves_the_motion_errors_alone(rng):
    reference = walk(rng)
    estimate = noisy(reference, rng)
    none = camera_errors(estimate, reference, "none")
    for alignment in ("first_pose", "se3"):
        assert_same(camera_errors(estimate, reference, alignment), none, ("rpe_t_m", "rpe_r_deg"))


def test_more_noise_is_more_error():
    """The same noise, larger."""
    reference = walk(np.random.default_rng(1))
    sizes = [
        camera_errors(noisy(reference, np.random.default_rng(2), size), reference, "se3") for size in (0.1, 0.3, 1, 3)
    ]
    for name in CAMERA_METRICS:
        values = [errors[name] for errors in sizes]
        assert values == sorted(values)


def test_a_known_error_has_its_size():
    reference = np.tile(np.eye(4), (10, 1, 1))
    reference[:, 2, 3] = np.arange(10)
    estimate = reference.copy()
    estimate[:, 2, 3] *= 1.1
    errors = camera_errors(estimate, reference, "none")
    assert errors["rpe_t_m"] == pytest.approx(0.1)
    assert errors["ate_m"] == pytest.approx(0.1 * np.sqrt(np.mean(np.arange(10) ** 2)))
    turning = poses_from_parts(
        Rotation.from_euler("y", 2.0 * np.arange(10)[:, None], degrees=True).as_matrix(), np.zeros((10, 3))
    )
    assert camera_errors(turning, np.tile(np.eye(4), (10, 1, 1)), "none")["rpe_r_deg"] == pytest.approx(2.0)


def test_a_still_head_is_reported_and_one_pose_has_no_motion(rng):
    still = np.tile(np.eye(4), (10, 1, 1))
    errors = camera_errors(walk(rng, 10), still, "sim3")
    assert "the reference does not move" in errors["problem"] and errors["scale"] == 1.0
    assert errors["reference_spread_m"] == 0.0
    single = camera_errors(still[:1], still[:1], "none")
    assert single["rpe_t_m"] is None and single["rpe_r_deg"] is None and single["ate_m"] == 0.0


def test_bad_poses_are_refused(rng):
    reference = walk(rng)
    broken = reference.copy()
    broken[7, 0, 3] = np.nan
    with pytest.raises(ValueError, match="estimate: pose 7 has NaN"):
        camera_errors(broken, reference)
    with pytest.raises(ValueError, match="reference: pose 7 has NaN"):
        camera_errors(reference, broken)
    with pytest.raises(ValueError, match="as many"):
        camera_errors(reference[:5], reference)
    with pytest.raises(ValueError, match="not 0"):
        camera_errors(reference[:0], reference[:0])


def test_files_are_paired_by_time(tmp_path, rng):
    reference = walk(rng)
    times_s = np.arange(40) / 30
    write_tum(tmp_path / "reference.txt", times_s, reference)
    write_tum(
        tmp_path / "estimate.txt", np.append(times_s[::2] + 0.004, 99.0), np.append(reference[::2], reference[:1], 0)
    )
    found = compare_files(
        tmp_path / "estimate.txt", tmp_path / "reference.txt", file_formats=("tum", "tum"), alignment="none"
    )
    assert (found["num_poses"], found["num_unmatched"], found["num_estimate"]) == (20, 1, 21)
    assert found["ate_m"] < 1e-12


def test_the_command_prints_lines_and_names_bad_files(tmp_path, rng, capsys):
    write_tum(tmp_path / "a.txt", np.arange(40) / 30, walk(rng))
    write_tum(tmp_path / "late.txt", 100 + np.arange(40) / 30, walk(rng))
    write_kitti(tmp_path / "kitti.txt", walk(rng))
    write_kitti(tmp_path / "short.txt", walk(rng, 5))
    a, late = str(tmp_path / "a.txt"), str(tmp_path / "late.txt")
    assert main([a, a, "--align", "se3"]) == 0
    assert "rpe_r_deg" in capsys.readouterr().out
    for arguments, words in (
        ([a, late], "no pose of"),
        ([a, str(tmp_path / "kitti.txt")], "kitti.txt, line 1: found 12 columns, wanted 8"),
        ([str(tmp_path / "kitti.txt"), str(tmp_path / "short.txt"), "--format", "kitti"], "need as many"),
        ([a, str(tmp_path / "absent.txt")], "absent.txt"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_files_of_two_formats_orders_and_units_compare_as_one(tmp_path, rng, capsys):
    reference, times_s = walk(rng), np.arange(40) / 30
    write_tum(tmp_path / "tum.txt", times_s, reference)
    write_euroc(tmp_path / "euroc.csv", times_s, reference)
    rows = [line.split() for line in (tmp_path / "tum.txt").read_text().splitlines()[1:]]
    w_first = [" ".join([str(round(float(row[0]) * 1e9)), *row[1:4], row[7], *row[4:7]]) for row in rows]
    (tmp_path / "w_first.txt").write_text("\n".join(["# timestamp tx ty tz qw qx qy qz", *w_first]))
    tum, euroc, mixed = (str(tmp_path / name) for name in ("tum.txt", "euroc.csv", "w_first.txt"))
    for arguments in (
        [euroc, tum, "--estimate-format", "euroc"],
        [tum, euroc, "--reference-format", "euroc"],
        [mixed, tum, "--estimate-time-unit", "ns"],
    ):
        assert main([*arguments, "--align", "none", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["num_poses"] == 40 and found["ate_m"] < 1e-9 and found["rpe_r_deg"] < 1e-6
    assert main([mixed, tum]) == 2
    assert "likely ns, say --time-unit: ns" in capsys.readouterr().err


def test_a_quaternion_that_is_w_first_by_its_header(door_dir, capsys):
    folder = door_dir / "quaternion_header"
    for name in ("est.tum", "est_wfirst.tum"):
        assert main([str(folder / name), str(folder / "gt.tum"), "--align", "se3", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["rpe_r_deg"] == pytest.approx(0.331, abs=5e-4)
