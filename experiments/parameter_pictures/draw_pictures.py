"""One picture per parameter of generation: the same clip and seeds, one setting changed at a time.

    python -m experiments.parameter_pictures.draw_pictures output=docs/pictures

F frames, S samples of a track, K samples of one setting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from egom2p.config import run_main, strict
from egom2p.contracts import AlignedClip
from egom2p.data.clips.clip_store import ClipStore
from egom2p.evaluation.evaluation_config import ClipsConfig
from egom2p.generation.loaded_model import LoadedModel, load_model
from egom2p.generation.partial_prompts import InpaintingMask
from egom2p.geometry import canonicalise
from egom2p.jobs.progress import progress_bar
from egom2p.models.sampling import SamplingConfig, step_temperatures, token_counts
from egom2p.storage import atomic_file
from egom2p.viewing import plots
from egom2p.viewing.plots import coloured_depth, depth_range

_NUM_SAMPLES = 6  # paths drawn for one setting
_DPI = 100


@strict
class ParameterPicturesConfig:
    """checkpoint: model directory (None: the pretrained one); clip: which of the held-out clips is shown."""

    output: str
    clips: ClipsConfig
    checkpoint: str | None = None
    clip: int = 0
    device: str = "auto"


def write_parameter_pictures(config: ParameterPicturesConfig) -> list[Path]:
    """Write one PNG per parameter into `output` and return them."""
    model = load_model(config.checkpoint, device=config.device)
    clip = ClipStore(config.clips.root, config.clips.dataset)[config.clip]
    painter = _Painter(model, clip)
    pictures = painter.pictures()
    written = []
    with progress_bar("pictures of parameters", len(pictures)) as advance:
        for name, draw in pictures.items():
            path = Path(config.output) / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            with matplotlib.rc_context(plots.STYLE), atomic_file(path) as unfinished:
                draw().savefig(unfinished, format="png", dpi=_DPI, bbox_inches="tight")
            written.append(path)
            advance(1)
    return written


class _Painter:
    """Draws what a model makes of one clip under several settings."""

    def __init__(self, model: LoadedModel, clip: AlignedClip) -> None:
        self.model, self.clip = model, clip
        self.rgb_only = replace(clip, streams={"rgb": clip.streams["rgb"]})
        self.range_m = depth_range([clip.depth_m])

    def pictures(self) -> dict[str, Callable[[], Figure]]:
        hot = SamplingConfig(temperature=1.0)
        guided = SamplingConfig(num_steps=4)
        maskgit = replace(hot, scheme="maskgit", num_steps=8)
        return {
            "num_steps": lambda: self.depths({f"{n}": replace(hot, num_steps=n) for n in (1, 2, 4, 8, 16)}),
            "scheme": lambda: self.depths(
                {name: replace(hot, scheme=name, num_steps=8) for name in ("roar", "maskgit", "autoregressive")}
            ),
            "token_schedule": _token_schedules,
            "temperature": lambda: self.paths({f"{t:g}": SamplingConfig(temperature=t) for t in (0.0, 0.5, 1.0, 2.0)}),
            "temperature_schedule": _temperature_schedules,
            "top_k": lambda: self.paths({f"{k}" if k else "0 (all)": replace(hot, top_k=k) for k in (1, 4, 16, 0)}),
            "top_p": lambda: self.paths({f"{p:g}": replace(hot, top_p=p) for p in (0.2, 0.5, 0.8, 1.0)}),
            "guidance": lambda: self.rgbs({f"{s:g}": replace(guided, guidance=s) for s in (-1.0, 0.0, 1.0, 2.0, 4.0)}),
            "guidance_weights": self._weights,
            "grow_conditioning": lambda: self._chain(
                {str(grow).lower(): replace(guided, guidance=2.0, grow_conditioning=grow) for grow in (True, False)}
            ),
            "max_condition_tokens": lambda: self.depths(
                {f"{count}": SamplingConfig(max_condition_tokens=count) for count in (8, 32, 96, 320)}
            ),
            "rewrite_fraction": lambda: self.depths(
                {f"{share:g}": replace(maskgit, rewrite_fraction=share) for share in (0.0, 0.25, 0.5)}
            ),
            "inpainting": self._inpainting,
        }

    def make(
        self, source: AlignedClip, targets: Sequence[str], sampling: Mapping[str, Any], **more: Any
    ) -> AlignedClip:
        return self.model.generate(source, targets, sampling=sampling, join="none", **more)

    def depths(self, settings: Mapping[str, SamplingConfig]) -> Figure:
        """Depth of the middle frame from rgb, beside the picture and the truth."""
        middle = len(self.clip.rgb) // 2
        pictures = {"given rgb": self.clip.rgb[middle]}
        for name, sampling in settings.items():
            made = self.make(self.rgb_only, ["depth"], {"depth": sampling})
            pictures[name] = coloured_depth(made.depth_m, *self.range_m)[middle]
        return _strip(pictures | {"true depth": coloured_depth(self.clip.depth_m, *self.range_m)[middle]})

    def rgbs(self, settings: Mapping[str, SamplingConfig]) -> Figure:
        """Rgb of the middle frame from depth."""
        middle = len(self.clip.rgb) // 2
        depth_only = replace(self.clip, streams={"depth": self.clip.streams["depth"]})
        pictures = {"given depth": coloured_depth(self.clip.depth_m, *self.range_m)[middle]}
        for name, sampling in settings.items():
            pictures[name] = self.make(depth_only, ["rgb"], {"rgb": sampling}).rgb[middle]
        return _strip(pictures | {"true rgb": self.clip.rgb[middle]})

    def paths(self, settings: Mapping[str, SamplingConfig]) -> Figure:
        """Camera paths from rgb, several seeds each, from above."""
        return self._fan({name: (self.rgb_only, ["camera"], {"camera": found}) for name, found in settings.items()})

    def _weights(self) -> Figure:
        source = replace(self.clip, streams={name: self.clip.streams[name] for name in ("rgb", "gaze")})
        rgb, gaze = (self.model.spec(word).name for word in ("rgb", "gaze"))
        settings = [(1.0, 0.0), (1.0, 1.0), (2.0, 0.0), (0.0, 1.0)]
        named = {f"rgb {a:g}, gaze {b:g}": {rgb: a, gaze: b} for a, b in settings}
        plans = {name: SamplingConfig(temperature=1.0, guidance_weights=weights) for name, weights in named.items()}
        return self._fan({name: (source, ["camera"], {"camera": plan}) for name, plan in plans.items()})

    def _chain(self, settings: Mapping[str, SamplingConfig]) -> Figure:
        hot = {name: replace(found, temperature=1.0) for name, found in settings.items()}
        jobs = {name: (self.rgb_only, ["depth", "camera"], {"default": found}) for name, found in hot.items()}
        return self._fan({f"rgb to depth to camera, {name}": job for name, job in jobs.items()})

    def _fan(self, jobs: Mapping[str, tuple[AlignedClip, list[str], Mapping[str, SamplingConfig]]]) -> Figure:
        figure = Figure(figsize=(2.5 * len(jobs), 2.7))
        truth_S3 = canonicalise(self.clip.world_from_cam)[:, :3, 3]
        reach_m = float(np.ptp(truth_S3, axis=0).max())
        grid = figure.subplots(1, len(jobs), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, (source, targets, sampling)) in zip(grid, jobs.items(), strict=True):
            for seed in range(_NUM_SAMPLES):
                made = self.make(source, targets, sampling, seed=seed)
                path_S3 = canonicalise(made.world_from_cam)[:, :3, 3]
                axes.plot(path_S3[:, 0], path_S3[:, 2], color=plots.COLOURS[1], lw=1.2, alpha=0.7)
            axes.plot(truth_S3[:, 0], truth_S3[:, 2], color=plots.TRUTH, lw=2.0)
            axes.set_title(name, fontsize=9.5)
            axes.set_xlim(-0.45 * reach_m, 0.45 * reach_m)
            axes.set_aspect("equal", adjustable="box")
            axes.set_xlabel("right (m)")
        grid[0].set_ylabel("ahead (m)")
        return figure

    def _inpainting(self) -> Figure:
        """Inpainting of a box, and prediction of the second half, in the last frame."""
        last = len(self.clip.rgb) - 1
        end_s = self.clip.streams["rgb"].times_s[-1] - self.clip.streams["rgb"].times_s[0]
        masks = {
            "box": InpaintingMask(box=(0.25, 0.25, 0.75, 0.75)),
            "second half": InpaintingMask(seconds=(end_s / 2, end_s + 1)),
        }
        plan = SamplingConfig(num_steps=8)
        pictures = {"truth": self.clip.rgb[last]}
        for name, mask in masks.items():
            made = self.make(self.rgb_only, ["rgb"], {"rgb": plan}, inpainting={"rgb": mask})
            pictures[name] = made.rgb[last]
        return _strip(pictures)


def _strip(pictures: Mapping[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(1.75 * len(pictures), 2.0))
    for axes, (name, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(name, fontsize=9.5)
        axes.set_axis_off()
    return figure


def _token_schedules() -> Figure:
    figure = Figure(figsize=(5.0, 2.2))
    axes = figure.add_subplot()
    for shift, (schedule, colour) in enumerate(zip(("linear", "cosine"), plots.COLOURS, strict=False)):
        counts = token_counts(schedule, num_steps=8, num_tokens=320)
        positions = np.arange(1, len(counts) + 1) + 0.4 * (shift - 0.5)
        axes.bar(positions, counts, width=0.38, color=colour, label=schedule)
    axes.set(xlabel="step", ylabel="tokens written (of 320)")
    axes.legend()
    return figure


def _temperature_schedules() -> Figure:
    figure = Figure(figsize=(5.0, 2.2))
    axes = figure.add_subplot()
    counts = token_counts("linear", num_steps=16, num_tokens=320)
    for schedule, colour in zip(("constant", "linear", "onex:0.05:0.5"), plots.COLOURS, strict=False):
        heat = step_temperatures(schedule, temperature=1.0, counts=counts)
        axes.plot(range(1, len(heat) + 1), heat, color=colour, marker="o", ms=3, label=schedule)
    axes.set(xlabel="step of 16", ylabel="temperature")
    axes.legend()
    return figure


if __name__ == "__main__":
    run_main(
        ParameterPicturesConfig,
        write_parameter_pictures,
        default_config="experiments/parameter_pictures/draw_pictures.yaml",
        description="Draw what every parameter of generation does.",
    )
