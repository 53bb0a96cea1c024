"""The job of `generate.py`: from any input to files, clip by clip or whole recordings joined from windows."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import Count, deciding, not_deciding, strict
from egom2p.contracts import AlignedClip, Provenance, Recording, TokenClip
from egom2p.data.clips.clip_alignment import RecordingTooShort
from egom2p.data.recordings.reader_choice import SourceConfig, open_reader
from egom2p.data.recordings.track_files import load_npz
from egom2p.generation.checkpoints import (
    PRETRAINED,
    Checkpoint,
    load_checkpoint,
    pretrained_checkpoint,
    unfamiliar_input,
)
from egom2p.generation.clip_generation import Generated, generate_clips
from egom2p.generation.generation_inputs import (
    RECORDED_KINDS,
    Prompt,
    check_is_shown,
    clip_config_of,
    kind_of_input,
    read_prompts,
    read_recordings,
    recorded_prompts,
)
from egom2p.generation.generation_memory import (
    check_joined_fits,
    fitting_batch,
    free_bytes,
    in_smaller_batches,
    measure_memory,
)
from egom2p.generation.generation_outputs import write_generated
from egom2p.generation.long_generation import Segment, generate_segment, overlap_of, plan_segments, window_seeds
from egom2p.generation.request import Request, clip_seed
from egom2p.jobs.progress import progress_bar, say
from egom2p.jobs.workers import Dtype
from egom2p.storage import (
    atomic_directory,
    atomic_file,
    inside,
    load_json,
    only_writer,
    remove_directory,
    remove_unfinished,
    save_json,
)


@strict
class GenerationConfig(Request):
    """One generation job: a request, what it is asked of, and where the answer goes.

    checkpoint   model directory or id of the Hub; it names its tokenizers. None: the first of the pretrained ones that
                 makes every target and reads the input
    input        what to start from, see `generation_inputs.kind_of_input`; or
    source       a reader of recordings, as in data preparation
    max_clips    stop after so many (clips, or recordings)
    video        file type of the videos
    dtype        of the model's weights; auto: bf16 on a GPU, else fp32. Decides the result, by the weights' fingerprint
    graphs       GPUs replay generations of few clips whose shapes come again as CUDA graphs
    """

    checkpoint: str | None = None
    input: str | None = None
    source: SourceConfig | None = None
    output: str = not_deciding()
    max_clips: Count | None = not_deciding(None)
    video: Literal["mp4", "webm"] = "mp4"
    device: str = not_deciding("auto")
    dtype: Dtype = not_deciding("auto")
    graphs: bool = not_deciding(True)
    progress: bool = not_deciding(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.input is None) == (self.source is None):
            raise ValueError("say what to start from: either input=<path> or source={kind: ...}")


def run_generation(config: GenerationConfig) -> Path:
    """Generate and write `<output>/<key>/...` and `<output>/manifest.json`; returns the manifest's path.

    What is already there, made with the same settings, is passed over. One process writes to an output at a time.
    """
    with only_writer(config.output):
        return _generate(config)


def _generate(config: GenerationConfig) -> Path:
    checkpoint, why = _checkpoint(config)
    asked, config = config, config.settled(checkpoint)  # also for its errors, before any work
    specs = config.specs(checkpoint)
    kind = "folder" if config.input is None else kind_of_input(config.input)
    device = next(checkpoint.model.parameters()).device
    estimate = measure_memory(checkpoint, config.plans(specs))
    # Samples of a clip share much of their work where they are made together.
    wanted = max(config.batch_size, config.num_samples)
    config = replace(config, batch_size=fitting_batch(estimate, wanted, free_bytes(device)))
    name = config.checkpoint or f"pretrained {checkpoint.directory.name}"
    chosen = "; ".join(part for part in (f"{name}{why}", _how(asked, config, checkpoint)) if part)
    is_news = config.checkpoint is None or config.num_samples > 1 or checkpoint.recommended.num_samples > 1
    job = _Job(config, checkpoint, _settings(config, checkpoint), Path(config.output), chosen, is_news)
    keys = (
        job.run_recordings(_recordings(config)) if kind in RECORDED_KINDS and config.join != "none" else job.run_clips()
    )
    if not keys:
        raise ValueError(f"{config.input}: found no clip to generate from")
    if job.num_kept:
        say(f"{job.num_kept} of {len(keys)} clips were already there and are kept")
    manifest = job.folder / "manifest.json"
    save_json(manifest, job.manifest(keys))
    # What a killed run left half-written; others may write beside us, under other names.
    remove_unfinished(job.folder, {manifest.name, *keys, *map(_windows, keys)})
    return manifest


def _checkpoint(config: GenerationConfig) -> tuple[Checkpoint, str]:
    """The one that is asked for, or the first pretrained one that has what is asked; and why it was taken."""
    options = {"device": config.device, "dtype": config.dtype, "graphs": config.graphs}
    if config.checkpoint is not None:
        return load_checkpoint(config.checkpoint, **options), ""
    why = ""
    for name in PRETRAINED[:-1]:
        checkpoint = load_checkpoint(pretrained_checkpoint(name), **options)
        try:
            config.settled(checkpoint)
            check_is_shown(checkpoint, config, config.input or _recordings(config))
            return checkpoint, f", the first of {', '.join(PRETRAINED)} that makes this of such input{why}"
        except ValueError as error:
            why += f", as {name} does not do this ({str(error).removeprefix(f'{checkpoint.directory}: ')})"
    # Its errors are told where the work meets them.
    return load_checkpoint(pretrained_checkpoint(PRETRAINED[-1]), **options), why


def _how(asked: Request, settled: Request, checkpoint: Checkpoint) -> str:
    """Of how many samples the results are, and whether that is what the checkpoint was measured with."""
    count, recommended = settled.num_samples, checkpoint.recommended.num_samples
    if count > 1:
        return f"mean of {count} samples{', as it was measured' if count == recommended else ''}"
    if recommended == 1:
        return ""
    why = "one is asked for" if asked.num_samples == 1 else asked.why_single(asked.specs(checkpoint))
    return f"one sample, not the mean of {recommended} that it was measured with: {why}"


def _recordings(config: GenerationConfig) -> Iterator[Recording]:
    if config.source is not None:
        reader = open_reader(config.source, dataset=config.dataset or "")
        yield from (reader.read(index) for index in range(len(reader)))
    elif config.input is not None:
        yield from read_recordings(
            config.input, kind_of_input(config.input), rate_hz=config.rate_hz, rotate=config.rotate
        )


@dataclass
class _Job:
    """One run: what is written where, and what was there before."""

    config: GenerationConfig
    checkpoint: Checkpoint
    settings: Mapping[str, Any]
    folder: Path
    chosen: str
    is_news: bool
    num_kept: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    unused_s: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run_recordings(self, recordings: Iterator[Recording]) -> list[str]:
        """One result per recording (several where streams miss for a while); keys of what is there afterwards.

        A recording that is too short is an error where it is the only one; among others it is left out and reported.
        """
        config, clip_config = self.config, clip_config_of(self.checkpoint, span="any")
        overlap_s = overlap_of(clip_config, config.overlap_s, join=config.join)
        keys: dict[str, None] = {}
        too_short: list[RecordingTooShort] = []
        for number, recording in enumerate(islice(recordings, config.max_clips)):
            self._note_unfamiliar(recording.provenance)
            if recording.notes:
                say(f"note on {recording.name}: {'; '.join(recording.notes)}")
            try:
                segments = plan_segments(recording, clip_config, overlap_s=overlap_s)
            except RecordingTooShort as error:
                too_short.append(error)
                self.skipped[recording.name] = str(error)
                continue
            for segment in segments:
                _add_new(keys, segment.key)
                if self._is_done(segment.key, recording.provenance):
                    self.num_kept += 1
                else:
                    self._make_segment(segment, window_seeds(config.seed, number, segment))
            self.unused_s[recording.name] = round(segments[0].unused_s, 6)
        if too_short and not keys:
            raise too_short[0]
        for name, why in self.skipped.items():
            say(f"left out {name}: {why}")
        return list(keys)

    def _make_segment(self, segment: Segment, seeds: Sequence[int]) -> None:
        config, size = self.config, segment.config
        num_pixels = segment.num_samples(size.video_rate_hz) * size.height * size.width
        num_pixels *= 1 if config.num_samples == 1 else 2  # the two ends of a range
        check_joined_fits(segment.key, num_pixels, shutil.disk_usage(self.folder).free)
        fingerprints = {spec.name: spec.tokenizer_fingerprint for spec in self.checkpoint.specs}
        settings = self._settings(segment.recording.provenance)
        store = WindowStore(inside(self.folder, _windows(segment.key)), settings, fingerprints)
        with self._bar(f"generate {segment.key}", len(segment.windows)) as advance:
            result = generate_segment(
                self.checkpoint,
                segment,
                config,
                seeds=seeds,
                store=store,
                folder=store.folder,
                advance=advance,
            )
        self._write(result.generated, result.note())
        store.remove()

    def run_clips(self) -> list[str]:
        """One result per clip; keys of what is there afterwards."""
        config = self.config
        # Read as they are needed: the pictures of an hour do not fit into memory.
        prompts = enumerate(islice(self._prompts(), config.max_clips))
        keys: dict[str, None] = {}
        with self._bar("generate clips", config.max_clips) as advance:
            while part := list(islice(prompts, max(1, config.batch_size // config.num_samples))):
                for _, prompt in part:
                    self._note_unfamiliar(_provenance(prompt))
                    _add_new(keys, prompt.key)
                jobs = [(i, prompt) for i, prompt in part if not self._is_done(prompt.key, _provenance(prompt))]
                self.num_kept += len(part) - len(jobs)
                for made in in_smaller_batches(self._made_clips, jobs):
                    self._write(made, {})
                advance(len(part))
        return list(keys)

    def _note_unfamiliar(self, provenance: Provenance | None) -> None:
        """Say once, when there is something to generate from, which checkpoint it is; and for the page too that the
        input is none of what it was trained on."""
        if self.is_news:
            say(f"checkpoint: {self.chosen}")
            self.is_news = False
        is_world = getattr(self.config.source, "kind", None) == "synthetic"
        if provenance is None or is_world or self.notes:
            return
        if note := unfamiliar_input(self.checkpoint.directory, [provenance.dataset or "recordings"]):
            self.notes.append(note)
            say(f"note: {note}")

    def _prompts(self) -> Iterator[Prompt]:
        if self.config.input is None:
            return recorded_prompts(_recordings(self.config), self.checkpoint, self.config)
        return read_prompts(self.config.input, self.checkpoint, self.config)

    def _made_clips(self, jobs: Sequence[tuple[int, Prompt]]) -> list[Generated]:
        """Clips, each with its number in the whole input."""
        seeds = [clip_seed(self.config.seed, index) for index, _ in jobs]
        return generate_clips(self.checkpoint, [prompt for _, prompt in jobs], self.config, seeds)

    def _write(self, made: Generated, more: Mapping[str, Any]) -> None:
        settings = self._settings(made.clip.provenance)
        note = {"given": made.given, "made": made.made, "made_streams": made.made_streams, "settings": settings}
        note["ranges"] = made.clip.extra.get("ranges", {})
        folder = inside(self.folder, made.clip.key)
        write_generated(folder, made.clip, made.tokens, note | dict(more), video=self.config.video, truth=made.truth)

    def _is_done(self, key: str, provenance: Provenance | None) -> bool:
        note = self.folder / key / "clip.json"
        return note.is_file() and load_json(note)["settings"] == self._settings(provenance)

    def _settings(self, provenance: Provenance | None) -> dict[str, Any]:
        """What decides the result of one item: of an input of several files, those that it comes from too."""
        stamp = _own_stamp(self.config.input, "" if provenance is None else provenance.source)
        return {**self.settings, **({} if stamp is None else {"own_files": stamp})}

    def _bar(self, title: str, total: int | None) -> Any:
        return progress_bar(title, total, is_shown=self.config.progress)

    def manifest(self, keys: Sequence[str]) -> dict[str, Any]:
        clips = []
        for key in keys:
            note = load_json(self.folder / key / "clip.json")
            files = sorted(path.name for path in (self.folder / key).iterdir() if path.name[0] != ".")
            made = {name: note[name] for name in ("given", "made", "made_streams")}
            clips.append({"key": key, **made, "files": files})
        about = {"settings": dict(self.settings), "num_clips": len(clips), "clips": clips}
        about |= {"skipped": self.skipped, "unused_s": self.unused_s, "notes": self.notes}
        return about | {"checkpoint": self.chosen, "about_checkpoint": self.checkpoint.summary}


class WindowStore:
    """Tokens of the finished windows of an unfinished recording, so that an interrupted run goes on.

    A folder of token files beside the result; emptied when it was made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], fingerprints: Mapping[str, str | None]) -> None:
        self.folder, self._fingerprints = folder, dict(fingerprints)
        card = folder / "settings.json"
        if not (card.is_file() and load_json(card) == settings):
            with atomic_directory(folder) as unfinished:
                save_json(unfinished / card.name, dict(settings))

    def load(self, key: str) -> TokenClip | None:
        """What was made of a window, or None."""
        path = inside(self.folder, f"{key}.npz")
        return TokenClip(key, load_npz(path), self._fingerprints) if path.is_file() else None

    def save(self, clip: TokenClip) -> None:
        with atomic_file(inside(self.folder, f"{clip.key}.npz")) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **clip.tokens)

    def remove(self) -> None:
        """When the recording is whole."""
        remove_directory(self.folder)


def _windows(key: str) -> str:
    """Name of the folder that keeps the finished windows of a recording that is not whole yet."""
    return f".windows_{key}"


def _add_new(keys: dict[str, None], key: str) -> None:
    """Note a key; a second clip of the same one would be taken for finished, and never made."""
    if key in keys:
        raise ValueError(f"two recordings or clips of the input are called {key!r}; give one of them another name")
    keys[key] = None


def _settings(config: GenerationConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """What decides the result of a clip; a clip made with other settings is made again.

    Everything that was asked, but for what is declared `not_deciding`; and what the names in it stand for now.
    """
    named = {"checkpoint": config.checkpoint or f"pretrained {checkpoint.directory.name}"}
    marks = {name: tokenizer.fingerprint for name, tokenizer in sorted(checkpoint.tokenizers.items())}
    about = {"input_file": _file_stamp(config.input), "model": checkpoint.fingerprint, "tokenizers": marks}
    return deciding(config) | named | about


def _file_stamp(source: str | None) -> list[int] | None:
    """Changes when the file that is the whole input was written again; None for folders and patterns."""
    if source is None or not Path(source).is_file():
        return None
    found = Path(source).stat()
    return [found.st_size, found.st_mtime_ns]


def _own_stamp(root: str | None, source: str) -> list[list[Any]] | None:
    """Changes when the file, or a file of the folder, that an item of the input was read from was written again.

    None where the input is one file, and where the item was not read from files below it (made, converted, gone).
    """
    if root is None or not Path(root).is_dir() or not source or not Path(source).is_relative_to(root):
        return None
    path = Path(source)
    if not path.exists():
        return None
    found = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in found]


def _provenance(prompt: Prompt) -> Provenance | None:
    return prompt.provenance if isinstance(prompt, AlignedClip) else None
