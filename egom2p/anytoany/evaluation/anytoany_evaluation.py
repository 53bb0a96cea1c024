"""Any-to-any models on questions and texts.

Command: `python -m egom2p.anytoany.evaluation.anytoany_evaluation --config FILE`.

Every table of questions has the controls: true, shuffled and zero features. Of some questions what they are about is
kept for the page: frames with the gaze, or ids. F frames, S samples of a track, N feature rows.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from egom2p.anytoany.evaluation.harness import check_installed, file_perception, run_lm_eval, run_lmms_eval
from egom2p.anytoany.evaluation.questions import (
    QuestionAsker,
    Samples,
    Scores,
    commonest_answer,
    draw_samples,
    text_task,
)
from egom2p.anytoany.evaluation.report import DESCRIPTION, Table, conclude_table, glance, provenance, write_report
from egom2p.anytoany.evaluation.settings import AnyToAnyEvaluationConfig, EvaluatedModelConfig
from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.perception.feature_store import FeatureLookup, perceived_names
from egom2p.anytoany.perception.media_files import read_clips
from egom2p.anytoany.perception.source import PerceptionConfig, source_of_kind
from egom2p.anytoany.saving import is_anytoany, load_anytoany, load_config_of, load_plain
from egom2p.anytoany.types import Conversation, Media
from egom2p.config import run_main, to_plain
from egom2p.contracts import AlignedClip
from egom2p.data.clips.clip_store import ClipStore, stored_datasets, stored_streams
from egom2p.data.clips.image_files import PICTURE_SUFFIXES
from egom2p.data.clips.video_files import VIDEO_SUFFIXES
from egom2p.jobs.progress import progress_bar, say
from egom2p.jobs.workers import choose_device
from egom2p.metrics.caption import Encoder
from egom2p.metrics.result_table import Results
from egom2p.storage import atomic_file, inside, only_writer

_MAX_FRAMES, _MAX_HEIGHT = 6, 128
Arrays = dict[str, np.ndarray]


def evaluate_anytoany(config: AnyToAnyEvaluationConfig) -> Results:
    """Evaluate, write results.json, results.md, per_sample.csv, samples.jsonl and shown/ below `config.output`.

    Models are loaded one after the other; all answer the same questions. Returns the results. One process writes to an
    output at a time.
    """
    with only_writer(config.output):
        return _evaluate(config)


def _evaluate(config: AnyToAnyEvaluationConfig) -> Results:
    device, folder = choose_device(config.device), Path(config.output)
    check_installed(config)
    samples = {name: draw_samples(name, part, seed=config.seed) for name, part in config.questions.items()}
    rows: dict[str, list[Scores]] = {name: [] for name in (*config.questions, *config.texts)}
    text_keys: dict[str, list[str]] = {}
    harness: dict[str, Any] = {}
    seconds = {}
    for label, about in config.models.items():
        start_s = time.perf_counter()
        model = load_evaluated(about, device=device)
        _ask(label, model, about, config, samples, rows)
        for name, task in config.texts.items():
            text_keys[name], scores = text_task(label, model, task, batch_size=config.batch_size)
            rows[name].append(scores)
        harness |= _harness_results(label, model, config)
        seconds[label] = round(time.perf_counter() - start_s, 1)
        say(f"{label}: {seconds[label]} s")
        del model
    tables = [_question_table(name, config, samples[name], rows[name]) for name in config.questions]
    tables += [Table(name, text_keys[name], text_keys[name], rows[name]) for name in config.texts]
    about = {
        "config": to_plain(config),
        "notes": provenance(config),
        "seconds": seconds,
        "harness": harness,
        "machine": _machine(device),
    }
    results = Results(DESCRIPTION, tuple(conclude_table(table, seed=config.seed) for table in tables), about)
    write_report(folder, tables, results)
    write_samples(folder, tables, samples)
    roots = {name: part.clip_roots for name, part in config.questions.items()}
    write_pictures(folder, samples, roots, count=config.num_shown, frames=MediaFrames(config.models))
    return results


def load_evaluated(about: EvaluatedModelConfig, *, device: torch.device) -> AnyToAny:
    """An any-to-any directory, or a plain language model, which answers without media."""
    if is_anytoany(about.directory):
        return load_anytoany(about.directory, device=device, live_encoder=about.live_encoder)
    return load_plain(about.directory, device=device)


def _ask(
    label: str,
    model: AnyToAny,
    about: EvaluatedModelConfig,
    config: AnyToAnyEvaluationConfig,
    samples: Mapping[str, Samples],
    rows: Mapping[str, list[Scores]],
) -> None:
    if not config.questions:
        return
    asker = QuestionAsker(label, model, about, config, _encoder(config, model))
    with progress_bar(f"{label}: sets x controls", len(config.questions) * asker.num_controls) as advance:
        for name, part in config.questions.items():
            rows[name].extend(asker.scores(part, samples[name], advance))


def _question_table(name: str, config: AnyToAnyEvaluationConfig, samples: Samples, rows: list[Scores]) -> Table:
    constant = commonest_answer(config.questions[name], samples)
    return Table(name, samples.keys, samples.groups, [*rows, constant], samples.references)


def _encoder(config: AnyToAnyEvaluationConfig, model: AnyToAny) -> Encoder | None:
    if config.embedding is None:
        return None
    from egom2p.anytoany.language.likelihood import folder_embedding, own_embedding

    return own_embedding(model) if config.embedding == "own" else folder_embedding(config.embedding)


def _harness_results(label: str, model: AnyToAny, config: AnyToAnyEvaluationConfig) -> dict[str, Any]:
    """Last of all: lm_eval uses the model up."""
    results: dict[str, Any] = {}
    if config.lmms_eval is None and config.lm_eval is None:
        return results
    if config.lmms_eval is not None:
        perceive = file_perception(model)
        results["lmms_eval"] = run_lmms_eval(model, config.lmms_eval, perceive, batch_size=config.batch_size)
    if config.lm_eval is not None:
        results["lm_eval"] = run_lm_eval(
            model, config.lm_eval, batch_size=config.batch_size, workplace=Path(config.output)
        )
    return {label: results}


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "CPU" if device.type == "cpu" else str(device)


def main(config: AnyToAnyEvaluationConfig) -> None:
    results = evaluate_anytoany(config)
    say(glance(results.tables))
    say("\n".join(results.about["notes"]))
    for label, found in results.about["harness"].items():
        say(f"{label}: {found}")
    say(f"{config.output}: results.json, results.md, per_sample.csv, samples.jsonl")
    say(f"page with pictures: python -m egom2p.viewing.anytoany_page evaluation={config.output}")


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
    shown = inside(folder, "shown")
    shown.mkdir(parents=True, exist_ok=True)
    for old in shown.glob("*.npz"):
        old.unlink()
    for name, samples in asked.items():
        total = len(samples.conversations)
        for row in sorted({number * total // count for number in range(min(count, total))} if count else ()):
            for item, media in enumerate(samples.conversations[row].media):
                arrays = frames.of(media, clips[name])
                file = inside(shown, f"{name}-{row}-{item}.npz")
                with atomic_file(file) as unfinished, unfinished.open("wb") as opened:
                    np.savez_compressed(opened, **arrays)


class MediaFrames:
    """Pictures of media items: stored clips by their key, files, or the ids that a model perceives."""

    def __init__(self, models: Mapping[str, EvaluatedModelConfig]) -> None:
        self._models = [about for about in models.values() if is_anytoany(about.directory)]
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


if __name__ == "__main__":
    run_main(AnyToAnyEvaluationConfig, main, description=str(__doc__))
