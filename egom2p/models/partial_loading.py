"""Starting a model from another one: all weights, or those that fit, with a report of every key."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from egom2p.config import to_plain
from egom2p.contracts import ModalitySpec
from egom2p.models.egom2p_model import EgoM2P, ModelConfig, read_model
from egom2p.models.weights import owner, split_tables

LoadPolicy = Literal["strict", "partial"]

# Settings that may differ without a word: they shape training and speed, not what the weights compute.
_FREE_SETTINGS = {"drop_path", "embedding_std", "input_embedding_std", "attention_backend"}
_NUM_SHOWN = 12


@dataclass(frozen=True)
class LoadReport:
    """What became of every key. Tables are reported by modality, as `decoder_embeddings.head_table[tok_gaze]`.

    loaded      taken from the source
    fresh       the source has no such key; it keeps its random start
    mismatched  in both, but not taken: `key: reason`; it keeps its random start
    unused      in the source only
    settings    settings in which the two models differ: `name: theirs -> ours`
    """

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    mismatched: tuple[str, ...]
    unused: tuple[str, ...]
    settings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For the console: counts, and the first keys of each kind but the loaded ones."""
        total = len(self.loaded) + len(self.fresh) + len(self.mismatched)
        lines = [f"weights from {self.source}: {len(self.loaded)} of {total} keys loaded"]
        for item in ("fresh", "mismatched", "unused", "settings"):
            keys = getattr(self, item)
            if keys:
                more = f" and {len(keys) - _NUM_SHOWN} more" if len(keys) > _NUM_SHOWN else ""
                lines.append(f"  {item} ({len(keys)}): {', '.join(keys[:_NUM_SHOWN])}{more}")
        return lines


def load_weights(model: EgoM2P, directory: str | Path, *, policy: LoadPolicy = "strict") -> LoadReport:
    """Copy the weights of a model directory into `model`; what is not loaded keeps its values.

    strict    every key of both models must fit, and they must compute the same
    partial   whatever fits by name and shape; new modalities keep their fresh embeddings. A modality whose tokens
              another tokenizer made keeps its fresh embeddings too: equal ids mean other things
    ValueError says what does not fit (strict), or that nothing does.
    """
    config, specs, state = read_model(directory)
    found, wanted = split_tables(state, specs), split_tables(model.state_dict(), model.specs)
    strangers = _other_tokenizers(specs, model.specs)
    loaded, fresh, mismatched = [], [], []
    for name, tensor in wanted.items():
        modality = owner(name)
        if name not in found:
            fresh.append(name)
        elif found[name].shape != tensor.shape:
            mismatched.append(f"{name}: shape {tuple(found[name].shape)}, wanted {tuple(tensor.shape)}")
        elif modality in strangers:
            mismatched.append(f"{name}: {strangers[modality]}")
        else:
            loaded.append(name)
    unused = [name for name in found if name not in wanted]
    report = LoadReport(
        str(directory), tuple(loaded), tuple(fresh), tuple(mismatched), tuple(unused),
        tuple(_differing(config, model.config)),
    )  # fmt: skip
    _check(report, policy)
    with torch.no_grad():
        for name in loaded:
            wanted[name].copy_(found[name])
    return report


def _other_tokenizers(theirs: tuple[ModalitySpec, ...], ours: tuple[ModalitySpec, ...]) -> dict[str, str]:
    """Modality -> reason, where the tokens of two models of that name mean different things."""
    known = {spec.name: spec for spec in theirs}
    reasons = {}
    for spec in ours:
        other = known.get(spec.name)
        if other is None:
            continue
        fingerprints = (other.tokenizer_fingerprint, spec.tokenizer_fingerprint)
        if None not in fingerprints and fingerprints[0] != fingerprints[1]:
            reasons[spec.name] = f"tokenizer {fingerprints[0]}, wanted {fingerprints[1]}"
    return reasons


def _differing(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    old, new = to_plain(theirs), to_plain(ours)
    names = [item.name for item in fields(ModelConfig) if item.name not in _FREE_SETTINGS]
    return [f"{name}: {old[name]} -> {new[name]}" for name in names if old[name] != new[name]]


def _check(report: LoadReport, policy: LoadPolicy) -> None:
    if policy == "strict":
        problems = [f"{key} is not there" for key in report.fresh] + list(report.mismatched)
        problems += [f"{key} has no counterpart here" for key in report.unused]
        problems += [f"model.{line}" for line in report.settings]
        if problems:
            more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
            raise ValueError(
                f"{report.source}: the model to start from does not fit: {'; '.join(problems[:4])}{more}. "
                "finetune_policy=partial takes what fits and reports the rest"
            )
    elif not report.loaded:
        raise ValueError("\n".join([f"{report.source}: nothing of it fits this model", *report.lines()[1:]]))
