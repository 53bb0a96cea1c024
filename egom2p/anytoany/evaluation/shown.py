"""What the page of an evaluation shows: every question with its answers, and pictures of what some of them are about.

F frames, S samples of a track, N feature rows.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from egom2p.anytoany.evaluation.questions import Samples
from egom2p.anytoany.evaluation.report import Table
from egom2p.anytoany.evaluation.settings import EvaluatedModelConfig
from egom2p.anytoany.perception.feature_lookup import FeatureLookup, perceived_names
from egom2p.anytoany.perception.media_files import read_clips
from egom2p.anytoany.perception.source import PerceptionConfig, source_of_kind
from egom2p.anytoany.saving import load_config_of
from egom2p.anytoany.types import Conversation, Media
from egom2p.contracts import AlignedClip
from egom2p.data.clips.clip_store import ClipStore, stored_datasets, stored_streams
from egom2p.data.clips.image_files import PICTURE_SUFFIXES
from egom2p.data.clips.video_files import VIDEO_SUFFIXES
from egom2p.storage import atomic_file

_MAX_FRAMES, _MAX_HEIGHT = 6, 128
Arrays = dict[str, np.ndarray]


def write_samples(folder: Path, tables: Sequence[Table], asked: Mapping[str, Samples]) -> None:
    """samples.jsonl: a line per question with its text, media, reference, and what was answered under every control."""
    with atomic_file(folder / "samples.jsonl") as unfinished, unfinished.open("w", encoding="utf-8") as opened:
        for table in tables:
            if table.name in asked:
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(table, asked[table.name]))
                opened.writelines(lines)


def write_pictures(
    folder: Path, asked: Mapping[str, Samples], clips: Mapping[str, Sequence[str]], *, count: int, frames: "MediaFrames"
) -> None:
    """shown/<set>-<row>-<item>.npz of `count` questions spread over each set, whatever the answers were.

    clips   set -> roots of stored clips in which its media items are looked up first
    """
    shown = folder / "shown"
    shown.mkdir(parents=True, exist_ok=True)
    for old in shown.glob("*.npz"):
        old.unlink()
    for name, samples in asked.items():
        total = len(samples.conversations)
        for row in sorted({number * total // count for number in range(min(count, total))} if count else ()):
            for item, media in enumerate(samples.conversations[row].media):
                arrays = frames.of(media, clips[name])
                with atomic_file(shown / f"{name}-{row}-{item}.npz") as unfinished, unfinished.open("wb") as opened:
                    np.savez_compressed(opened, **arrays)


class MediaFrames:
    """Pictures of media items: stored clips by their key, files, or the ids that a model perceives."""

    def __init__(self, models: Mapping[str, EvaluatedModelConfig]) -> None:
        self._models = [about for about in models.values() if (Path(about.directory) / "anytoany.json").is_file()]
        self._stores: dict[str, dict[str, tuple[ClipStore, int]]] = {}
        self._lookups: list[tuple[Sequence[PerceptionConfig], FeatureLookup]] | None = None

    def of(self, media: Media, roots: Sequence[str]) -> Arrays:
        """Few small frames (F, H, W, 3) uint8 with gaze (F, 2) and gaze_is_valid; else ids (N,), position (N, 3),
        source and names; nothing for vectors, which show nothing."""
        for root in roots:
            if media.ref in (clips := self._clips(root)):
                store, index = clips[media.ref]
                return _small(store[index])
        file = Path(media.ref)  # it may be elsewhere, where its perception features were exported
        if file.suffix.lower() in (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES) and file.is_file():
            sources, _ = self._open()[0]
            clip = next(read_clips(media.ref, sources[source_of_kind(sources, media.kind)]), None)
            return _small(clip) if isinstance(clip, AlignedClip) else {}
        for sources, lookup in self._open():
            if sources[source_of_kind(sources, media.kind)].gives_ids:
                item = lookup.features(media)
                names = np.array(perceived_names(sources, media.kind))
                ids = item.features[:, 0].astype(np.int32)
                return {"ids": ids, "position": item.position, "source": item.source, "names": names}
        return {}

    def _clips(self, root: str) -> dict[str, tuple[ClipStore, int]]:
        if root not in self._stores:
            self._stores[root] = {}
            for dataset in stored_datasets(root):
                wanted = [name for name in ("rgb", "gaze") if name in stored_streams(root, dataset)]
                store = ClipStore(root, dataset, streams=wanted)
                self._stores[root] |= {key: (store, index) for index, key in enumerate(store.keys)}
        return self._stores[root]

    def _open(self) -> list[tuple[Sequence[PerceptionConfig], FeatureLookup]]:
        if self._lookups is None:
            self._lookups = []
            for about in self._models:
                config = load_config_of(about.directory)
                found = FeatureLookup(config.perception, about.features, config.connector)
                self._lookups.append((config.perception, found))
        return self._lookups


def question_text(conversation: Conversation) -> str:
    """All turns before the answer, media as `{video}`, with the speaker where there are several turns."""
    turns = conversation.turns[:-1]
    texts = ["".join(p if isinstance(p, str) else f"{{{p.kind}}} " for p in turn.parts).strip() for turn in turns]
    if len(turns) == 1:
        return texts[0]
    return "\n".join(f"{turn.role}: {text}" for turn, text in zip(turns, texts, strict=True))


def _rows(table: Table, samples: Samples) -> list[dict[str, Any]]:
    rows = []
    for number, conversation in enumerate(samples.conversations):
        answers = [
            {
                "model": scores.model,
                "control": scores.control,
                "output": scores.outputs[number],
                "values": {name: float(values[number]) for name, values in scores.values.items()},
            }
            for scores in table.rows
        ]
        about = {"table": table.name, "row": number, "key": conversation.key, "group": samples.groups[number]}
        media = [{"kind": item.kind, "ref": item.ref} for item in conversation.media]
        asked = {"question": question_text(conversation), "media": media, "reference": table.references[number]}
        rows.append({**about, **asked, "answers": answers})
    return rows


def _small(clip: AlignedClip) -> Arrays:
    if "rgb" not in clip:
        return {}
    rgb = clip.streams["rgb"]
    total = len(rgb.values)
    picked = np.unique(np.linspace(0, total - 1, min(total, _MAX_FRAMES)).round().astype(int))
    factor = max(1, rgb.values.shape[1] // _MAX_HEIGHT)
    frames = np.stack([np.asarray(Image.fromarray(rgb.values[index]).reduce(factor)) for index in picked])
    if "gaze" not in clip:
        return {"frames": frames}
    gaze = clip.streams["gaze"]
    at = np.abs(gaze.times_s[None] - rgb.times_s[picked, None]).argmin(axis=1)
    return {"frames": frames, "gaze": gaze.values[at].astype(np.float32), "gaze_is_valid": gaze.is_valid[at]}
