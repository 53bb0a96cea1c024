"""Which files run: those of the package whose functions are called in a real, tiny run, in the order of the first call.

python tests/house/paths.py prints the paths that docs/ARCHITECTURE.md describes.
"""

import inspect
import os
import runpy
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "training")]

from tiny_artifacts import make_tiny_world  # noqa: E402
from tiny_tokens import pretrain_values, write_tokens  # noqa: E402

from egom2p.config import save_config  # noqa: E402
from egom2p.data.clips.video_files import write_video  # noqa: E402
from egom2p.geometry import write_tum  # noqa: E402

_PACKAGE = f"{ROOT / 'egom2p'}{os.sep}"
Moment = tuple[str, str, int]
"""(file, function, n): the n-th time that a function returns."""


class FilesRun:
    """Records `files` between two moments (None: from the beginning, to the end).

    What is called while a module of the package is imported does not count: decorators and registries are no step.
    """

    def __init__(self, *, since: Moment | None = None, until: Moment | None = None) -> None:
        self.files: dict[str, None] = {}
        self._moments = {"since": since, "until": until}
        self._is_on = since is None
        self._returns: dict[tuple[str, str], int] = {}

    def __enter__(self) -> "FilesRun":
        threading.setprofile(self._event)
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            return
        file = code.co_filename[len(_PACKAGE) :]
        if event == "return":
            self._returned(file, code.co_name)
        elif event == "call" and self._is_on and file not in self.files:
            is_function = code.co_flags & inspect.CO_OPTIMIZED  # neither a module nor the body of a class
            if is_function and not file.endswith("__init__.py") and not _is_importing(frame):
                self.files[file] = None

    def _returned(self, file: str, function: str) -> None:
        if not any(moment and moment[:2] == (file, function) for moment in self._moments.values()):
            return
        count = self._returns[file, function] = self._returns.get((file, function), 0) + 1
        if self._moments["since"] == (file, function, count):
            self._is_on = True
        if self._moments["until"] == (file, function, count):
            sys.setprofile(None)  # the rest of the run need not be slow


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(_PACKAGE):
            return True
        frame = frame.f_back
    return False


def run_command(script: str, *arguments: str, since: Moment | None = None, until: Moment | None = None) -> list[str]:
    """Files of the package that a top-level command runs, in this process, quietly."""
    before, sys.argv = sys.argv, [str(ROOT / script), *arguments]
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            with FilesRun(since=since, until=until) as found:
                runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before
    return list(found.files)


STEP = ("training/loop.py", "_step")


def measured_paths(root: Path) -> dict[str, list[str]]:
    """Name of a path -> its files; what they read and write lies below `root`."""
    world = make_tiny_world(root / "world")
    for dataset in ("train", "val"):
        write_tokens(root / "tokens", dataset, 16, seed=0)
    # Nothing is logged or measured between the first two steps: what is counted is a step.
    plain = pretrain_values(root / "tokens", root / "run", num_steps=3, log_every=3)
    save_config(plain, root / "training.yaml")
    training = ["--config", str(root / "training.yaml")]
    _write_recording(root / "recordings" / "walk")
    video = str(root / "recordings" / "walk" / "video.mp4")
    to = f"output={root / 'made'}"
    return {
        "to the first step": run_command(
            "run_training_egom2p.py", *training, f"output_dir={root / 'first'}", until=(*STEP, 1)
        ),
        "one training step": run_command(
            "run_training_egom2p.py", *training, f"output_dir={root / 'second'}", since=(*STEP, 1), until=(*STEP, 2)
        ),
        "one generation": run_command(
            "generate.py", f"checkpoint={world / 'model'}", f"input={video}", "targets=[depth,cam,gaze]", to,
            "device=cpu",
        ),
        "one preparation": run_command(
            # Its format is named: telling it asks every reader once, one file each.
            "run_prepare_data.py", "source.kind=plain_folder",
            f"source.root={root / 'recordings'}", f"output={root / 'clips'}", "dataset=home",
            "clip.height=16", "clip.width=16",
        ),
    }  # fmt: skip


def _write_recording(folder: Path, *, seconds: float = 2.5) -> None:
    folder.mkdir(parents=True)
    count = round(seconds * 30)
    rgb = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 24, 24, 3))
    write_video(folder / "video.mp4", np.ascontiguousarray(rgb), 30)
    write_tum(folder / "trajectory.txt", np.arange(count) / 30, np.tile(np.eye(4), (count, 1, 1)))


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        for name, files in measured_paths(Path(scratch)).items():
            print(f"{name}: {len(files)} files\n  " + "\n  ".join(files))
