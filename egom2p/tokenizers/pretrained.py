"""Tokenizers on disk: a folder with `model.safetensors` and `tokenizer.json`, and the object that encodes with it.

B clips, L tokens, T samples or frames.

The fingerprint says which ids a tokenizer makes: its weights (normalisation and codebook are among them) and those
settings that differ from their defaults. A setting added later, with a default that keeps the earlier behaviour,
changes no fingerprint. The checksum guards the folder: weights, fingerprint and settings as its card writes them.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from egom2p.config import from_plain, to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, check_shape, plain_name
from egom2p.storage import (
    atomic_directory,
    check_finite,
    check_link,
    check_sizes,
    copy_file,
    fingerprint_of,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
)
from egom2p.storage.hub import fetch
from egom2p.tokenizers.patches import PatchesConfig, PatchTokenizer, load_patches
from egom2p.tokenizers.protocol import TrainableTokenizer
from egom2p.tokenizers.text import VOCABULARY_FILE, TextTokenizer, WordPieceConfig, load_text_tokenizer
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae, TrajectoryVqVaeConfig
from egom2p.tokenizers.video.video_codec import VideoCodec, VideoCodecConfig

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "tokenizer.json"

TokenizerNetworkConfig = Annotated[TrajectoryVqVaeConfig | VideoCodecConfig, Field(discriminator="architecture")]
"""Config of any tokenizer network, chosen by its key `architecture`; for root schemas of jobs."""

_WORDS = {str: "text", dict: "a mapping"}
# The only classes a card can name.
_ARCHITECTURES = {
    "trajectory_vqvae": (TrajectoryVqVaeConfig, TrajectoryVqVae),
    "video_codec": (VideoCodecConfig, VideoCodec),
    "wordpiece": (WordPieceConfig, None),  # no network: see tokenizers/text.py
    "patches": (PatchesConfig, None),  # no network: see tokenizers/patches.py
}


class PretrainedTokenizer:
    """A finished network with its identity (`contracts.Tokenizer`).

    spec         its modality, with fingerprint
    fingerprint  identity of the ids it makes
    stream       stream of a clip it reads
    card         what its folder says about it: training data, metrics, licence
    """

    def __init__(
        self, network: TrainableTokenizer, *, fingerprint: str, card: Mapping[str, Any], batch_size: int = 32
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.fingerprint = fingerprint
        self.spec: ModalitySpec = network.spec.with_fingerprint(fingerprint)
        self.stream = network.stream
        self.card = dict(card)
        self.batch_size = batch_size

    @staticmethod
    def from_pretrained(
        id_or_path: str | Path, *, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> "PretrainedTokenizer | TextTokenizer | PatchTokenizer":
        """`load_tokenizer` under the name that users of the Hub expect."""
        return load_tokenizer(id_or_path, revision=revision, device=device)

    def to(self, device: torch.device | str) -> "PretrainedTokenizer":
        self.network.to(device)
        return self

    def encode(self, clips: Sequence[AlignedClip]) -> np.ndarray:
        """Ids (B, L) int32 of clips that all have the stream.

        ValueError names the clip whose stream is missing, of another size, or not finite.
        """
        for clip in clips:
            if self.stream not in clip:
                raise ValueError(f"clip {clip.key} has no {self.stream} for {self.spec.name}")
        groups = [self.network.encode_clips(group) for group in self._groups(clips)]
        return np.concatenate([np.zeros((0, self.spec.num_tokens), dtype=np.int32), *groups])

    def decode(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (B, T, ...) in the stream's unit and validity (B, T) bool, from at least one row of ids (B, L)."""
        ids = np.asarray(ids)
        check_shape(f"ids of {self.spec.name}", ids, "b l", l=self.spec.num_tokens)
        if len(ids) == 0:
            raise ValueError(f"no ids of {self.spec.name} to decode")
        if ids.min() < 0 or ids.max() >= self.spec.vocab_size:
            raise ValueError(
                f"ids of {self.spec.name} run from {ids.min()} to {ids.max()}, "
                f"its vocabulary has {self.spec.vocab_size} codes"
            )
        decoded = [self.network.decode_ids(group) for group in self._groups(ids)]
        return np.concatenate([values for values, _ in decoded]), np.concatenate([valid for _, valid in decoded])

    def _groups(self, rows: Sequence) -> list:
        return [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]


def build_network(config: Any) -> TrainableTokenizer:
    """Untrained network of a config; its initial weights come from torch's global generator."""
    _, network_class = _ARCHITECTURES[config.architecture]
    return network_class(config)


def _is_row_sum(name: str) -> bool:
    return ".books.layers." in name and name.endswith("._codebook.embed_avg")


def _with_row_sums(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Rows times their uses, where a folder does not hold the sums."""
    missing = [name for name in wanted if _is_row_sum(name) and name not in tensors]
    stems = [name.removesuffix("embed_avg") for name in missing]
    sums = [tensors[f"{stem}embed"] * tensors[f"{stem}cluster_size"][..., None] for stem in stems]
    return dict(tensors) | dict(zip(missing, sums, strict=True))


def save_tokenizer(
    network: TrainableTokenizer,
    directory: str | Path,
    *,
    training_data: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    licence: str | None = None,
) -> str:
    """Write a tokenizer folder atomically; return the fingerprint.

    training_data   plain words: dataset, number of clips, steps, seed
    metrics         what `evaluate` measured, in physical units
    """
    state = network.state_dict()
    # Sums behind the rows of residual codebooks are of use to training alone, and half of what such a tokenizer weighs.
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items() if not _is_row_sum(name)}
    check_finite(tensors, where=f"{directory} is not written")
    fingerprint = fingerprint_of(tensors, _chosen_settings(network.config))
    config = to_plain(network.config)
    card = {
        "fingerprint": fingerprint,
        "checksum": _checksum(tensors, fingerprint, config),
        "config": config,
        "spec": network.spec.with_fingerprint(fingerprint).to_dict(),
        "training_data": dict(training_data or {}),
        "metrics": dict(metrics or {}),
        "licence": licence,
    }
    with atomic_directory(directory) as folder:
        save_tensors(folder / WEIGHTS_FILE, tensors)
        save_json(folder / CARD_FILE, card)
    return fingerprint


def load_tokenizer(
    id_or_path: str | Path, *, revision: str | None = None, device: torch.device | str = "cpu"
) -> PretrainedTokenizer | TextTokenizer | PatchTokenizer:
    """Read a tokenizer folder, or a repository `owner/name` of the Hub (`storage.hub.fetch` says how).

    ValueError when weights and card do not belong together. Settings that the card does not have yet, because an
    earlier version wrote it, get their defaults.
    """
    directory = fetch(id_or_path, revision=revision)
    card_file, weights_file = directory / CARD_FILE, directory / WEIGHTS_FILE
    card = load_json(card_file)
    config = _config_of(card, card_file)
    if isinstance(config, WordPieceConfig):
        return load_text_tokenizer(directory, config)
    if isinstance(config, PatchesConfig):
        return load_patches(directory, config)
    check_sizes(card["config"], weights_file, where=card_file)
    network = build_network(config)
    tensors = load_tensors(weights_file)
    _check_weights(tensors, card, weights_file)
    check_finite(tensors, where=weights_file)
    try:
        network.load_state_dict(_with_row_sums(tensors, network.state_dict()))
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{weights_file} does not fit the config in {card_file.name}: {error}") from error
    return PretrainedTokenizer(network.to(device), fingerprint=card["fingerprint"], card=card)


def card_config(directory: str | Path) -> Any:
    """The network's config by the card of a tokenizer folder; ValueError names file and key."""
    file = Path(directory) / CARD_FILE
    return _config_of(load_json(file), file)


def card_spec(directory: str | Path) -> ModalitySpec:
    """The modality, with fingerprint, by the card of a tokenizer folder; ValueError names file and key."""
    file = Path(directory) / CARD_FILE
    card = load_json(file)
    spec = ModalitySpec.from_dict(card.get("spec") if isinstance(card, dict) else card, f"{file}: spec")
    if not isinstance(card.get("fingerprint"), str):
        raise ValueError(f"{file}: `fingerprint` is {card.get('fingerprint')!r:.80}, wanted {_WORDS[str]}")
    return spec.with_fingerprint(card["fingerprint"])


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer folder into a new one, and nothing else that lies there. ValueError: it is none."""
    card_spec(source)
    target.mkdir(parents=True)
    for name in (CARD_FILE, WEIGHTS_FILE, VOCABULARY_FILE):
        if (source / name).is_file():
            check_link(source / name, source)
            copy_file(source / name, target / name)


def _chosen_settings(config: Any) -> dict[str, Any]:
    """Settings without a default and those that differ from it."""
    defaults = {field.name: field.default for field in dataclasses.fields(config) if field.name != "architecture"}
    plain = to_plain(config)
    return {name: value for name, value in plain.items() if value != to_plain(defaults.get(name, dataclasses.MISSING))}


def _checksum(tensors: Mapping[str, Tensor], fingerprint: str, config: Mapping[str, Any]) -> str:
    return fingerprint_of(tensors, {"fingerprint": fingerprint, "config": config})


def _check_weights(tensors: Mapping[str, Tensor], card: Mapping[str, Any], weights_file: Path) -> None:
    """The card's own words are hashed, not the config read from them, so that a new default cannot break a folder."""
    found = _checksum(tensors, card["fingerprint"], card["config"])
    if found != card["checksum"]:
        raise ValueError(
            f"{weights_file}: weights and config have checksum {found}, {CARD_FILE} says {card['checksum']}"
        )


def _config_of(card: Any, card_file: Path) -> Any:
    if not isinstance(card, dict) or not {"fingerprint", "checksum", "config"} <= card.keys():
        raise ValueError(f"{card_file}: a tokenizer card needs the keys fingerprint, checksum and config")
    for key, kind in (("fingerprint", str), ("checksum", str), ("config", dict)):
        if not isinstance(card[key], kind):
            raise ValueError(f"{card_file}: `{key}` is {card[key]!r:.80}, wanted {_WORDS[kind]}")
    architecture = card["config"].get("architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        raise ValueError(f"{card_file}: architecture is {architecture!r}, known are {sorted(_ARCHITECTURES)}")
    schema, _ = _ARCHITECTURES[architecture]
    config = from_plain(schema, card["config"], where=str(card_file))
    for key in ("modality", "folder"):  # where tokens are written is decided by them
        plain_name(getattr(config, key), key, card_file)
    return config
