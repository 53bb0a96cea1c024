"""Processor time and memory of the two commands that read a long video, before and after a change, as ratios.

    git worktree add ../before moved
    python benchmarks/video_reading.py --before ../before --json benchmarks/results/video_reading_cpu.json

The video (2 minutes, 1920x1080, 30 frames a second, H.264 with its usual groups of 250) is made here. Runs of both
checkouts take turns, each in a process of its own; user and system time of the whole process, and its largest resident
size. What else the machine does costs both alike; the ratios are what to look at.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import av
import numpy as np
from environment import environment

_HERE = Path(__file__).resolve().parents[1]
_SIZE = 1920, 1080


def write_video(path: Path, seconds: float) -> None:
    """A window that wanders over one large picture, with the noise of a camera: what decoding costs on real video."""
    rng = np.random.default_rng(0)
    width, height = _SIZE
    coarse = rng.integers(0, 255, (90, 130, 3), np.uint8)
    picture = np.kron(coarse, np.ones((20, 20, 1), np.uint8))
    picture = np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(round(seconds * 30)):
            left = round(300 + 290 * np.sin(number / 61))
            top = round(300 + 290 * np.sin(number / 47))
            view = np.ascontiguousarray(picture[top : top + height, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))


def commands(video: Path, out: Path) -> dict[str, list[str]]:
    clip = ["clip.height=64", "clip.width=64", "num_workers=0", "dataset=video"]
    return {
        "prepare": ["run_prepare_data.py", f"source.root={video.parent}", f"output={out}/clips", *clip],
        "generate": ["generate.py", f"input={video}", "targets=[depth]", f"output={out}/made", "progress=false"],
    }


def run(checkout: Path, arguments: list[str]) -> dict[str, float]:
    """User plus system seconds, and the peak in MB, of one process."""
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, *arguments],
        {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)],
    )
    _, status, used = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"{checkout}: {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    return {"cpu_s": round(used.ru_utime + used.ru_stime, 2), "peak_mb": round(used.ru_maxrss / 1024)}


Runs = dict[str, dict[str, list[dict[str, float]]]]


def summary(runs: Runs) -> dict[str, dict]:
    """By command: how many times faster (medians of processor time), and the largest peaks."""
    results = {}
    for name, of_label in runs.items():
        cpu_s = {label: median(used["cpu_s"] for used in values) for label, values in of_label.items()}
        peak = {label: max(used["peak_mb"] for used in values) for label, values in of_label.items()}
        results[name] = {
            "times_faster": round(cpu_s["before"] / cpu_s["after"], 2),
            "share_of_memory": round(peak["after"] / peak["before"], 3),
            "peak_mb": peak,
            "runs": of_label,
        }
    return results


def write_results(path: Path, runs: Runs, seconds: float) -> None:
    about = {"what": __doc__.splitlines()[0], "seconds_of_video": seconds, "environment": environment()}
    path.write_text(json.dumps(about | {"results": summary(runs)}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the state to compare with")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    checkouts = {"before": given.before.resolve(), "after": _HERE}
    runs: Runs = {}
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "in" / "walk" / "video.mp4"
        video.parent.mkdir(parents=True)
        write_video(video, given.seconds)
        for number in range(given.rounds):
            for label, checkout in checkouts.items():
                os.chdir(checkout)
                for name, arguments in commands(video, Path(folder) / f"{label}_{number}").items():
                    used = run(checkout, arguments)
                    runs.setdefault(name, {}).setdefault(label, []).append(used)
                    print(number, label, name, used, flush=True)
            if given.json:
                write_results(given.json, runs, given.seconds)
    for name, found in summary(runs).items():
        print(name, {key: value for key, value in found.items() if key != "runs"})


if __name__ == "__main__":
    main()
