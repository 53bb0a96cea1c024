"""How well models go on with a video: `python -m experiments.frame_prediction.compare_frames --config FILE`.

Two tables: the likelihood of the hidden tokens, frame by frame of the token grid and all at once; and the pictures that
are generated, beside the last known one held and the best the tokenizer could do.
B clips, F frames, L tokens of the video, P positions asked.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from egom2p.config import run_main, strict, to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, TokenClip
from egom2p.data.clips.clip_store import ClipStore
from egom2p.evaluation.evaluation_config import ClipsConfig
from egom2p.generation.checkpoints import Checkpoint, load_checkpoint
from egom2p.generation.partial_prompts import InpaintingMask, encode_given
from egom2p.generation.request import clip_seed
from egom2p.jobs.progress import progress_bar, say
from egom2p.metrics.measurements import Measured, Method, write_results
from egom2p.metrics.result_table import Metric
from egom2p.metrics.video import video_errors
from egom2p.models.generate import Sampler
from egom2p.models.prompt_batches import UNKNOWN
from egom2p.models.sampling import SamplingConfig

_BATCH = 32


@strict
class FramePredictionConfig:
    """Checkpoints that share a video tokenizer, and ways of generating.

    hidden_s    seconds that are hidden, to the end of the clip
    plans       label -> how the hidden tokens are generated
    num_clips   evenly spaced among the held-out clips; None: all
    num_timed   the first so many are generated once more, one at a time, for the time that takes
    """

    output: str
    checkpoints: dict[str, str]  # label -> model directory
    clips: ClipsConfig
    modality: str = "rgb"
    hidden_s: tuple[float, float]
    plans: dict[str, SamplingConfig]
    num_clips: int | None = None
    num_timed: int = 8
    seed: int = 0
    device: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.checkpoints or not self.plans:
            raise ValueError("checkpoints and plans need at least one entry each")


@dataclass(frozen=True)
class _Task:
    """The held-out clips, the tokens of the whole video, those that are known; is_hidden (F,): pictures to be made."""

    clips: list[AlignedClip]
    whole: list[TokenClip]
    known: list[TokenClip]
    is_hidden: np.ndarray


def run_frame_prediction(config: FramePredictionConfig) -> Path:
    """Measure every checkpoint and plan; writes results.json, results.md and per_clip.csv; returns the folder."""
    checkpoints = {
        label: load_checkpoint(location, device=config.device) for label, location in config.checkpoints.items()
    }
    first = next(iter(checkpoints.values()))
    spec = first.spec(config.modality)
    if spec.quantity != "rgb":
        raise ValueError(f"frame prediction compares pictures; {config.modality} is of quantity {spec.quantity}")
    task = _read(first, spec, config)
    likelihood: list[Method] = []
    pictures = _references(first, spec, task)
    total = len(checkpoints) * (1 + len(config.plans))
    with progress_bar("frame prediction", total, is_shown=config.progress) as advance:
        for label, checkpoint in checkpoints.items():
            likelihood.append(Method("true past", "model", _nats(checkpoint, spec, task), label))
            advance(1)
            for name, plan in config.plans.items():
                values = _generated(checkpoint, spec, task, plan, config)
                pictures.append(Method(name, "model", values, label))
                advance(1)
    keys, recordings = ([clip.key for clip in task.clips], [clip.provenance.recording for clip in task.clips])
    tables = {
        "likelihood of hidden tokens": (_likelihood_columns(spec), likelihood),
        "hidden frames": (_PICTURE_COLUMNS, pictures),
    }
    results = [Measured(title, spec.quantity, keys, recordings, *table) for title, table in tables.items()]
    description = "From {:g} to {:g} s of a clip, from what comes before.".format(*config.hidden_s)
    about = {
        "config": to_plain(config),
    }
    folder = Path(config.output)
    write_results(folder, description, about, results, seed=config.seed)
    say(f"wrote {folder}/results.md, results.json, per_clip.csv")
    return folder


_PICTURE_COLUMNS = (
    Metric("psnr_db", "PSNR", "dB", "per frame, mean over the hidden frames", True, True, 2),
    Metric("ssim", "SSIM", "", "per frame, window 11, mean over the hidden frames", True),
    Metric("seconds", "time", "s", "one clip at a time, model and sampler without the tokenizer"),
)


def _likelihood_columns(spec: ModalitySpec) -> tuple[Metric, ...]:
    steps = [
        Metric(f"nats/{step}", f"frame {step}", "nats", "mean over its tokens, given all true tokens before")
        for step in range(1, spec.grid.shape[0])
    ]
    hidden = Metric("nats/hidden", "hidden frames", "nats", "mean of those that are hidden", False, True)
    at_once = Metric("nats/at_once", "at once", "nats", "hidden tokens given the known ones alone")
    return (*steps, hidden, at_once)


def _read(checkpoint: Checkpoint, spec: ModalitySpec, config: FramePredictionConfig) -> _Task:
    tokenizer, mask = checkpoint.tokenizer(spec.name), InpaintingMask(seconds=config.hidden_s)
    store = ClipStore(config.clips.root, config.clips.dataset, streams=[tokenizer.stream])
    count = len(store) if config.num_clips is None else min(config.num_clips, len(store))
    clips = [store[index] for index in np.linspace(0, len(store) - 1, count).astype(int).tolist()]
    is_hidden_F = mask.is_masked(len(clips[0].streams[tokenizer.stream].values), spec.rate_hz or 1.0)
    if not is_hidden_F.any() or is_hidden_F.all() or not is_hidden_F[-1]:
        raise ValueError(f"hidden_s {config.hidden_s} must leave some first frames and run to the end of the clip")
    whole, known = checkpoint.tokenize(clips, [spec.name]), []
    for clip, tokens in zip(clips, whole, strict=True):
        ids_L = encode_given(tokenizer, clip, ~is_hidden_F)
        known.append(TokenClip(clip.key, {spec.name: ids_L}, dict(tokens.fingerprints)))
    return _Task(clips=clips, whole=whole, known=known, is_hidden=is_hidden_F)


def _references(checkpoint: Checkpoint, spec: ModalitySpec, task: _Task) -> list[Method]:
    """The last known frame held, and the true tokens decoded."""
    last = int(np.flatnonzero(~task.is_hidden)[-1])
    held = [np.repeat(clip.rgb[last : last + 1], len(clip.rgb), axis=0) for clip in task.clips]
    decoded, _ = checkpoint.tokenizer(spec.name).decode(np.stack([clip.tokens[spec.name] for clip in task.whole]))
    rows = [("last known frame held", "baseline", held), ("true tokens, decoded", "ceiling", decoded)]
    return [Method(label, kind, _picture_scores(frames, task)) for label, kind, frames in rows]


def _picture_scores(estimates: Sequence[np.ndarray], task: _Task) -> dict[str, list[float]]:
    found = [
        video_errors(np.asarray(frames)[task.is_hidden], clip.rgb[task.is_hidden])
        for frames, clip in zip(estimates, task.clips, strict=True)
    ]
    return {key: [errors[key] for errors in found] for key in ("psnr_db", "ssim")}


def _generated(
    checkpoint: Checkpoint, spec: ModalitySpec, task: _Task, plan: SamplingConfig, config: FramePredictionConfig
) -> dict[str, list[float | None]]:
    plans, seeds = [plan.plan(spec.name)], [clip_seed(config.seed, number) for number in range(len(task.known))]
    ids: list[np.ndarray] = []
    for start in range(0, len(seeds), _BATCH):
        part = slice(start, start + _BATCH)
        ids += [made.tokens[spec.name] for made in checkpoint.sampler.generate(task.known[part], plans, seeds[part])]
    seconds: list[float | None] = [None] * len(seeds)
    sampler = Sampler(checkpoint.model)  # keeps nothing of what was encoded before
    for number in range(min(config.num_timed, len(seeds))):
        began = time.perf_counter()
        sampler.generate([task.known[number]], plans, [seeds[number]])
        seconds[number] = time.perf_counter() - began
    frames, _ = checkpoint.tokenizer(spec.name).decode(np.stack(ids))
    return _picture_scores(frames, task) | {"seconds": seconds}


def _nats(checkpoint: Checkpoint, spec: ModalitySpec, task: _Task) -> dict[str, list[float]]:
    """Per clip, mean over tokens: of every frame of tokens but the first given those before, and at once."""
    num_frames = spec.grid.shape[0]
    size = spec.num_tokens // num_frames
    values: dict[str, list[float]] = {}
    for step in range(1, num_frames):
        asked_P = np.arange(step * size, (step + 1) * size)
        is_later_L = np.arange(spec.num_tokens) >= step * size
        shown = [_hidden(clip, spec, is_later_L) for clip in task.whole]
        values[f"nats/{step}"] = _mean_nats(checkpoint, spec, task, shown, asked_P)
    unknown_L = task.known[0].tokens[spec.name] == UNKNOWN
    steps = sorted(set((np.flatnonzero(unknown_L) // size).tolist()))
    values["nats/hidden"] = np.mean([values[f"nats/{step}"] for step in steps if step > 0], axis=0).tolist()
    part = [_hidden(clip, spec, unknown_L) for clip in task.whole]
    values["nats/at_once"] = _mean_nats(checkpoint, spec, task, part, np.flatnonzero(unknown_L))
    return values


def _hidden(clip: TokenClip, spec: ModalitySpec, is_hidden_L: np.ndarray) -> TokenClip:
    ids_L = np.where(is_hidden_L, UNKNOWN, clip.tokens[spec.name]).astype(np.int32)
    return TokenClip(clip.key, {spec.name: ids_L}, clip.fingerprints)


def _mean_nats(
    checkpoint: Checkpoint, spec: ModalitySpec, task: _Task, prompts: Sequence[TokenClip], asked_P: np.ndarray
) -> list[float]:
    plan, found = SamplingConfig().plan(spec.name), []
    for start in range(0, len(prompts), _BATCH):
        part = prompts[start : start + _BATCH]
        logits = checkpoint.sampler.logits(part, plan, [asked_P] * len(part))
        for logits_PV, clip in zip(logits, task.whole[start : start + _BATCH], strict=True):
            truth_P = torch.from_numpy(clip.tokens[spec.name][asked_P]).long().to(logits_PV.device)
            found.append(float(torch.nn.functional.cross_entropy(logits_PV, truth_P)))
    return found


if __name__ == "__main__":
    run_main(
        FramePredictionConfig,
        run_frame_prediction,
        default_config="experiments/frame_prediction/compare_frames.yaml",
        description="The rest of a video from its beginning: likelihood and pictures.",
    )
