"""Frames right of frames tried, for every codec, container and timing that PyAV here can write: a count, not a timing.

    python benchmarks/video_decoding.py --markdown docs/results/video_decoding.md

Every frame carries its number. Each file is asked for each of its frames by time, one by one and in any order, and the
numbers are read from the pictures. "refused" is an error that names the file and the reason.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data"))
from video_cases import CODECS, CONTAINERS, TIMINGS, decoded_in_order, frames_right, remux, write_case, written_cases

from egom2p.data.clips.video_files import open_video

_DECODERS = ("pyav", *(name for name in ("decord", "torchcodec") if find_spec(name)))
_ABOUT = """# Frames of videos: right of tried

Made by `benchmarks/video_decoding.py`. Every frame carries its number; each is asked for by its time, one by one and
in any order. `constant`: 30 frames a second. `vfr`: frames missing here and there. `late`: the first frame is shown at
1.5 s. `trimmed`: an edit list hides the first 17 frames, which the others need; tried is what FFmpeg shows when it
decodes the file from its start (with periodic refresh it begins at 23). `refused`: an error that names the file and the
reason. Empty: FFmpeg does not write the pair, or the container cannot say the timing.

Codecs with reordered frames and gaps between them are refused in AVI and WMV where FFmpeg does not know their order:
these containers hold times in the order of decoding only. H.264, HEVC and H.263 in an MPEG program stream are refused:
the times of their frames run backwards there, or their packets are damaged.
"""
_HIDDEN = 17


def count(path: Path, times_s: np.ndarray, decoder: str, numbers: list[int] | None = None) -> str:
    """`right/tried`, or "refused"."""
    try:
        right = frames_right(open_video(path, decoder=decoder), times_s, np.random.default_rng(0), numbers=numbers)
    except ValueError:
        return "refused"
    return f"{right}/{len(times_s)}"


def table(folder: Path, codecs: list[str]) -> dict[tuple[str, str, str], dict[str, str]]:
    """Codec, container, timing -> decoder -> result."""
    found = {}
    for codec, container, timing, path, times_s in written_cases(folder, codecs):
        found[codec, container, timing] = {decoder: count(path, times_s, decoder) for decoder in _DECODERS}
        path.unlink()
    for codec in codecs:
        for container in ("mp4", "mov"):
            source, trimmed = folder / "whole.mp4", folder / f"trimmed.{container}"
            try:
                write_case(source, codec, TIMINGS["constant"])
                remux(source, trimmed, hide_before=_HIDDEN)
            except (av.FFmpegError, ValueError):
                continue
            if (codec, container, "constant") in found:
                times_s, numbers = decoded_in_order(trimmed)
                found[codec, container, "trimmed"] = {
                    decoder: count(trimmed, times_s, decoder, numbers) for decoder in _DECODERS
                }
    return found


def markdown(found: dict[tuple[str, str, str], dict[str, str]]) -> str:
    """A row per codec and container, a column per timing, for PyAV; then what the other decoders do."""
    timings = [*TIMINGS, "trimmed"]
    lines = [_ABOUT, "| codec | container | " + " | ".join(timings) + " |", "|---|---|" + "---|" * len(timings)]
    for codec in CODECS:
        for container in CONTAINERS:
            cells = [found.get((codec, container, timing), {}).get("pyav", "") for timing in timings]
            if any(cells):
                lines.append(f"| {codec} | {container} | " + " | ".join(cells) + " |")
    sums: dict[str, dict[str, int]] = {decoder: defaultdict(int) for decoder in _DECODERS}
    for of_decoder in found.values():
        for decoder, cell in of_decoder.items():
            right, _, tried = cell.partition("/")
            kind = "refused" if not tried else "right" if right == tried else "wrong"
            sums[decoder][kind] += 1
            sums[decoder]["frames right"] += int(right) if tried else 0
            sums[decoder]["frames tried"] += int(tried) if tried else 0
    kinds = ["right", "refused", "wrong", "frames right", "frames tried"]
    lines += ["", f"All {len(found)} files, by decoder (another than PyAV is used only when it is named):", ""]
    lines += [
        "| decoder | files " + " | files ".join(kinds[:3]) + " | frames right | frames tried |",
        "|---|" + "---|" * 5,
    ]
    lines += [f"| {name} | " + " | ".join(str(sums[name][kind]) for kind in kinds) + " |" for name in _DECODERS]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codecs", nargs="*", default=list(CODECS))
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    av.logging.set_level(av.logging.PANIC)
    with tempfile.TemporaryDirectory() as folder:
        text = markdown(table(Path(folder), given.codecs))
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
