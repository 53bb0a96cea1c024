"""The tokenizers of a run: compared with the tokens they should have made, and copied beside the exported model."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egom2p.contracts import ModalitySpec, check_fingerprint
from egom2p.data.shards.shard_files import split_folders
from egom2p.data.unified_datasets import DataConfig, data_specs
from egom2p.storage import load_json


def resolve_specs(data: DataConfig, tokenizers: Mapping[str, Path] | None) -> tuple[ModalitySpec, ...]:
    """Modalities of the data, in the model's order, with the fingerprints of the named tokenizers.

    ValueError for a modality without tokenizer, a tokenizer without modality or with other tokens; TokenizerMismatch
    when the data was made by another tokenizer.
    """
    specs = data_specs(data)
    if tokenizers is None:
        return specs
    names = {spec.name for spec in specs}
    if names - set(tokenizers):
        raise ValueError(
            f"modality {sorted(names - set(tokenizers))[0]} of the data has no tokenizer; `tokenizers` names "
            f"{sorted(tokenizers)}. Add its folder, or say tokenizers=null to train on tokens alone"
        )
    if set(tokenizers) - names:
        raise ValueError(f"tokenizer {sorted(set(tokenizers) - names)[0]} has no modality in the data {sorted(names)}")
    return tuple(_matched(spec, tokenizers[spec.name], _shards_of(spec, data)) for spec in specs)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer folder; weights share their disk space where the file system can (files are never rewritten)."""
    target.mkdir(parents=True)
    for file in sorted(path for path in source.iterdir() if path.is_file()):
        if file.suffix == ".safetensors":
            try:
                os.link(file, target / file.name)
                continue
            except OSError:
                pass  # another disk, or a file system without links
        shutil.copy2(file, target / file.name)


def _shards_of(spec: ModalitySpec, data: DataConfig) -> str:
    """Pattern of the first data set that has a modality, for messages."""
    for dataset in data.datasets.values():
        if (dataset.folder_names or {}).get(spec.name, spec.folder) in split_folders(dataset.shards):
            return dataset.shards
    return "the data"


def _matched(spec: ModalitySpec, folder: Path, shards: str) -> ModalitySpec:
    card = load_json(folder / "tokenizer.json")
    made = ModalitySpec.from_dict(card["spec"])
    for field, found, wanted in differing_fields(made, spec):
        raise ValueError(f"{folder}: the tokenizer makes {field} {found}, {spec.name} in {shards} has {wanted}")
    check_fingerprint(
        spec.name,
        found=spec.tokenizer_fingerprint,
        wanted=card["fingerprint"],
        where=f"{shards}, with {folder} for {spec.name}",
    )
    return spec.with_fingerprint(card["fingerprint"])


def differing_fields(made: ModalitySpec, spec: ModalitySpec) -> list[tuple[str, Any, Any]]:
    """(field, the tokenizer's, the data's) wherever tokens of the two cannot be the same."""
    pairs = [(name, getattr(made, name), getattr(spec, name)) for name in ("name", "kind", "grid", "vocab_size")]
    return [(name, found, wanted) for name, found, wanted in pairs if found != wanted]


def token_identity(spec: ModalitySpec) -> tuple[str, tuple[int, ...], int, str | None]:
    """What must agree for the tokens of two models to mean the same."""
    return spec.name, spec.grid.shape, spec.vocab_size, spec.tokenizer_fingerprint
