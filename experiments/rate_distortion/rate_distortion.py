"""Trajectory tokenizers against each other: train every variant alike, then measure bits per clip against error.

Every (variant, seed) is a folder with its run and a `rate_distortion.json`; what has one is not run again.
B clips, L tokens.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.config import from_plain, strict, to_plain
from egom2p.contracts import AlignedClip
from egom2p.data.unigram_baseline import baseline_cross_entropy, position_counts
from egom2p.storage import load_json, save_json
from egom2p.tokenizers.pretrained import load_tokenizer
from egom2p.tokenizers.protocol import mean_errors
from egom2p.tokenizers.trajectory.track_representations import camera_clip_errors, gaze_clip_errors
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae, TrajectoryVqVaeConfig
from egom2p.training.tasks.tokenizer_config import ClipSequence, ClipSourceConfig, TokenizerTrainingConfig
from egom2p.training.tasks.tokenizer_task import train_tokenizer
from egom2p.training.training_config import TrainingConfig

RESULT_FILE = "rate_distortion.json"


@strict
class HeldOutConfig:
    """Clips that nothing was trained on."""

    clips: ClipSourceConfig
    quantities: tuple[str, ...]  # streams they have
    may_be_absent: bool = False  # real samples that not everyone has; the report says so


@strict
class VariantConfig:
    """One tokenizer: settings of `networks[of]` that it replaces."""

    of: str  # which network
    changes: dict[str, Any] = field(default_factory=dict)  # settings of it that are replaced
    seeds: tuple[int, ...] = (0,)  # one run each


@strict
class RateDistortionConfig:
    """Root schema. All variants share training data, steps, batch and learning rate."""

    output_dir: str
    networks: dict[str, TrajectoryVqVaeConfig]
    variants: dict[str, VariantConfig]
    train: ClipSourceConfig
    held_out: dict[str, HeldOutConfig]
    training: TrainingConfig
    noise_shares: tuple[float, ...] = (0.02, 0.1)  # of the tokens, replaced by random ones before decoding
    page: str | None = None  # Markdown page with the tables; its plots lie beside it

    def __post_init__(self) -> None:
        for name in self.variants:
            self.network(name)

    def network(self, variant: str) -> TrajectoryVqVaeConfig:
        """ValueError names the variant whose settings are wrong."""
        about = self.variants[variant]
        if about.of not in self.networks:
            raise ValueError(f"variant {variant}: networks has {sorted(self.networks)}, not {about.of!r}")
        plain = to_plain(self.networks[about.of]) | about.changes
        return from_plain(TrajectoryVqVaeConfig, plain, where=f"variant {variant}")


@dataclass(frozen=True)
class HeldOutClips:
    """Clips of one held-out set, read when first used."""

    name: str
    config: HeldOutConfig

    def clips(self, quantity: str) -> Sequence[AlignedClip]:
        return list(ClipSequence(self.config.clips, quantity))


def absent_sets(config: RateDistortionConfig) -> dict[str, str]:
    """Held-out sets that may be absent and are: name -> root."""
    optional = {name: about for name, about in config.held_out.items() if about.may_be_absent}
    return {name: about.clips.root for name, about in optional.items() if not _is_there(about)}


def run_variants(config: RateDistortionConfig) -> Iterator[dict[str, Any]]:
    """Train and measure what is missing; the result of each run, seed by seed in the order of the config."""
    absent = absent_sets(config)
    held_out = [HeldOutClips(name, about) for name, about in config.held_out.items() if name not in absent]
    for seed in sorted({seed for about in config.variants.values() for seed in about.seeds}):
        for name, about in config.variants.items():
            if seed in about.seeds:
                yield _run_one(config, name, seed, held_out)


def references(config: RateDistortionConfig) -> list[dict[str, Any]]:
    """What no bits at all give, in the form of results: a camera that stands still, a gaze at the middle."""
    absent, found = absent_sets(config), []
    shares = [f"{share:g}" for share in (0.0, *config.noise_shares)]
    for quantity, name in (("camera", "stationary"), ("gaze", "image centre")):
        sets = {}
        for which, about in config.held_out.items():
            if which not in absent and quantity in about.quantities:
                clips = list(ClipSequence(about.clips, quantity))
                errors = mean_errors([_still_errors(clip, quantity) for clip in clips])
                sets[which] = {"num_clips": len(clips), "errors": dict.fromkeys(shares, errors)}
        about = {"name": name, "seed": 0, "settings": {"quantity": quantity}, "sets": sets}
        found.append(about | {"num_tokens": 0, "num_codes": 0, "bits": 0.0, "position_bits": 0.0})
    return found


def _still_errors(clip: AlignedClip, quantity: str) -> dict[str, float]:
    stream = clip.streams[quantity]
    if quantity == "camera":
        poses = stream.values[stream.is_valid]
        return camera_clip_errors(np.tile(np.eye(4), (len(poses), 1, 1)), poses)
    return gaze_clip_errors(np.full_like(stream.values, 0.5), np.ones(len(stream.values), bool), clip)


def _is_there(config: HeldOutConfig) -> bool:
    root = Path(config.clips.root)
    return all((root / q / dataset).is_dir() for q in config.quantities for dataset in config.clips.datasets)


def _run_one(config: RateDistortionConfig, name: str, seed: int, held_out: Sequence[HeldOutClips]) -> dict[str, Any]:
    folder = Path(config.output_dir) / name / f"seed{seed}"
    network, settings = config.network(name), to_plain(config.network(name))
    file = folder / RESULT_FILE
    found = load_json(file) if file.is_file() else None
    if found is not None and (found["settings"], found["num_steps"]) != (settings, config.training.num_steps):
        raise ValueError(f"{file}: was made with other settings; choose another output_dir or remove the run")
    started = time.perf_counter()
    if found is None:
        usable = [which for which in held_out if network.quantity in which.config.quantities]
        training = TokenizerTrainingConfig(
            output_dir=str(folder), seed=seed, network=network, train=config.train,
            validation=replace(usable[0].config.clips, max_clips=16), normalisation_clips=500, training=config.training,
        )  # fmt: skip
        train_tokenizer(training)
        seconds = time.perf_counter() - started
        found = {"name": name, "of": config.variants[name].of, "seed": seed, "settings": settings, "sets": {}}
        found |= {"num_steps": config.training.num_steps, "seconds": seconds, **_rate(config, folder, usable[0])}
    missing = [
        which for which in held_out if network.quantity in which.config.quantities and which.name not in found["sets"]
    ]
    if missing:
        tokenizer = _network(folder)
        for which in missing:
            found["sets"][which.name] = measured(tokenizer, which.clips(network.quantity), config.noise_shares)
        save_json(file, found)
    return found


def _network(folder: Path) -> TrajectoryVqVae:
    network = load_tokenizer(folder / "final").network
    assert isinstance(network, TrajectoryVqVae)
    return network


def _rate(config: RateDistortionConfig, folder: Path, held_out: HeldOutClips) -> dict[str, float]:
    """Bits of a clip: of its tokens as they are, and after a code that knows how often each stands at its place."""
    network = _network(folder)
    spec = network.spec
    train_clips = list(ClipSequence(config.train, network.stream))
    train_ids, ids = network.encode_clips(train_clips), network.encode_clips(held_out.clips(spec.quantity))
    nats = baseline_cross_entropy(position_counts(train_ids, spec), ids)
    return {
        "num_tokens": spec.num_tokens,
        "num_codes": spec.vocab_size,
        "bits": spec.num_tokens * math.log2(spec.vocab_size),
        "position_bits": spec.num_tokens * nats / math.log(2),
    }


def measured(network: TrajectoryVqVae, clips: Sequence[AlignedClip], noise_shares: Sequence[float]) -> dict[str, Any]:
    """Mean errors of decoding the ids, as they are ("0") and with a share of them replaced by random ones."""
    network.eval()
    ids_BL = network.encode_clips(clips)
    errors: dict[str, Mapping[str, float]] = {}
    for share in (0.0, *noise_shares):
        rng = np.random.default_rng(0)
        is_replaced_BL = rng.random(ids_BL.shape) < share
        random_BL = rng.integers(0, network.spec.vocab_size, ids_BL.shape, dtype=ids_BL.dtype)
        noisy_BL = np.where(is_replaced_BL, random_BL, ids_BL)
        errors[f"{share:g}"] = mean_errors(network.clip_errors(clips, noisy_BL))
    return {"num_clips": len(clips), "errors": errors}
