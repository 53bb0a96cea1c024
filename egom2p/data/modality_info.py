"""The published modalities, and specs made from configs, tokenizer cards or shards."""

from collections.abc import Mapping
from typing import Any

from egom2p.contracts import ModalitySpec
from egom2p.data.shards.folder_set import open_clips

# 2 s clips: 16 frames at 8 Hz (5 latent frames of 32x32 tokens), 60 track samples at 30 Hz (30 tokens).
_VIDEO = {"kind": "grid", "grid": (5, 32, 32), "vocab_size": 64000, "rate_hz": 8.0}
_TRACK = {"kind": "track", "grid": (30,), "vocab_size": 256, "rate_hz": 30.0}
PUBLISHED_MODALITIES: Mapping[str, Mapping[str, Any]] = {
    "tok_rgb": {**_VIDEO, "quantity": "rgb", "folder": "rgb", "conventions": {"value": "uint8 RGB"}},
    "tok_depth": {**_VIDEO, "quantity": "depth", "folder": "depth", "conventions": {"value": "metres along camera z"}},
    "tok_gaze": {**_TRACK, "quantity": "gaze", "folder": "gaze", "conventions": {"value": "(u, v) in [0, 1]"}},
    "tok_cam": {**_TRACK, "quantity": "camera", "folder": "cam", "conventions": {"value": "world_from_cam, metres"}},
}


def default_specs() -> tuple[ModalitySpec, ...]:
    """The four published modalities, in the model's order (alphabetical)."""
    return build_specs(PUBLISHED_MODALITIES)


def build_specs(modalities: Mapping[str, Any]) -> tuple[ModalitySpec, ...]:
    """Specs sorted by name from `name -> fields of ModalitySpec` (plain values, as in YAML or a tokenizer card).

    A published name needs only the fields that differ from its published values; None or {} takes them all. Raises
    ValueError for an unknown or missing field, and when two modalities share a folder.
    """
    specs = tuple(_build_spec(name, modalities[name] or {}) for name in sorted(modalities))
    owners: dict[str, str] = {}
    for spec in specs:
        if spec.folder in owners:
            raise ValueError(f"{spec.name} and {owners[spec.folder]} share the folder {spec.folder!r}")
        owners[spec.folder] = spec.name
    return specs


def specs_from_shards(pattern: str, *, index_cache: str | None = None) -> tuple[ModalitySpec, ...]:
    """Specs of a token set as its cards tell them. Raises ValueError for a folder without card."""
    clips = open_clips(pattern, index_cache=index_cache)
    cards = {folder: clips.card(folder) for folder in clips.folders}
    for folder, card in cards.items():
        if "name" not in card:
            raise ValueError(f"{pattern}: folder {folder} has no card.json that names its modality")
    return build_specs({card["name"]: card for card in cards.values()})


def _build_spec(name: str, values: Mapping[str, Any] | ModalitySpec) -> ModalitySpec:
    if isinstance(values, ModalitySpec):
        return values
    fields = {**PUBLISHED_MODALITIES.get(name, {}), **values, "name": name}
    known = set(ModalitySpec.__dataclass_fields__)
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"modality {name} has unknown fields {unknown}; known are {sorted(known)}")
    wanted = ("kind", "quantity", "grid", "vocab_size", "folder")
    if missing := [field for field in wanted if fields.get(field) is None]:
        raise ValueError(f"modality {name} is not a published one and needs {missing}")
    return ModalitySpec.from_dict(fields)
