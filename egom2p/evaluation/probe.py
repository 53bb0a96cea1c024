"""What the encoder knows: a linear classifier on its features, `python -m egom2p.evaluation.probe --config FILE`.

Beside it stand the same classifier on the tokens themselves and the commonest label. N clips, D width, L tokens of one
modality, V vocabulary.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_array, hstack

from egom2p.config import Count, Natural, NotNegative, run_main, strict, to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, TokenClip
from egom2p.data.clips.clip_store import ClipStore
from egom2p.evaluation.evaluation_config import ClipsConfig
from egom2p.evaluation.linear_probe import Features, fit_and_predict
from egom2p.generation.checkpoints import Checkpoint, load_checkpoint
from egom2p.jobs.progress import progress_bar, say
from egom2p.metrics.measurements import Measured, Method, write_results
from egom2p.metrics.result_table import MethodKind, Metric, Results
from egom2p.models.features import encode_clips
from egom2p.storage import RemoteConfig, configure_remote, only_writer

_ENCODER = "encoder"
_ACCURACY = Metric("accuracy", "accuracy", "", "share of held-out clips whose label is found", True, True)


@strict
class ProbeLabelConfig:
    """One label per clip.

    kind     cell: the cell of a grid over [0, 1] x [0, 1] in which the mean of the valid samples of a track lies (gaze)
             text: the first group of `pattern` in a text (or all it matches, without a group)
    stream   stream that is read
    rows, columns   of the grid
    A clip whose text does not match, or whose track is never valid, has no label and is left out (counted).
    """

    kind: Literal["cell", "text"]
    stream: str
    rows: Count = 3
    columns: Count = 3
    pattern: str | None = None  # regular expression, of kind text

    def __post_init__(self) -> None:
        if (self.kind == "text") != (self.pattern is not None):
            raise ValueError(f"pattern is for kind text, and needed there; got kind {self.kind!r}, {self.pattern!r}")
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"rows and columns are positive, got {self.rows} and {self.columns}")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error

    def label_of(self, clip: AlignedClip) -> str | None:
        """The label of a clip; None where it has none. ValueError names a clip without the stream."""
        if self.stream not in clip:
            raise ValueError(f"clip {clip.key} has no {self.stream} for its label, only {sorted(clip.streams)}")
        stream = clip.streams[self.stream]
        if self.kind == "text":
            found = re.search(self.pattern or "", str(stream.values[0]))
            return None if found is None else found.group(found.re.groups and 1)
        if not stream.is_valid.any():
            return None
        u, v = np.clip(stream.values[stream.is_valid].mean(0), 0.0, 1.0 - 1e-9)
        return f"row {int(v * self.rows)}, column {int(u * self.columns)}"


@strict
class ProbeDataConfig:
    """What classifiers are fitted to and scored on, and where the table goes.

    train, test  clips the classifier is fitted to and scored on; of other recordings
    inputs       modalities the encoder sees (name, quantity or folder)
    labels       name -> how the label of a clip is read
    penalties    L2 penalties to choose from, on a fifth of the training recordings
    """

    output: str
    train: ClipsConfig
    test: ClipsConfig
    inputs: tuple[str, ...]
    labels: dict[str, ProbeLabelConfig]
    penalties: tuple[NotNegative, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    max_train_clips: Count | None = None
    max_test_clips: Count | None = None
    batch_size: Count = 32
    seed: Natural = 0
    device: str = "auto"
    remote: RemoteConfig = RemoteConfig()  # waiting for and asking of S3
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.inputs or not self.labels or not self.penalties:
            raise ValueError("inputs, labels and penalties need at least one entry each")


@strict
class ProbeConfig(ProbeDataConfig):
    """One probe; `ProbeDataConfig` has the other keys.

    checkpoint   model directory; None: the first pretrained one
    layers       of the encoder, as in `models.features.encode_clips`; null is its output
    """

    checkpoint: str | None = None
    layers: tuple[int | None, ...] = (None,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers:
            raise ValueError("layers need at least one entry")


@dataclass(frozen=True)
class ProbeClips:
    """Tokens of the inputs of some clips, their recordings and labels (label's name -> one per clip)."""

    tokens: list[TokenClip]
    recordings: list[str]
    labels: dict[str, list[str | None]]


class LabelProbe:
    """Classifiers of one label: fitted to the training clips that have it, scored on the test clips that have it.

    keys, recordings   of the test clips that have it
    num_train          training clips that have it; num_classes among them
    num_without_label  clips of both splits that lack it
    """

    def __init__(self, label: str, train: ProbeClips, test: ProbeClips, config: ProbeDataConfig) -> None:
        """ValueError where no clip of a split has the label."""
        self._config = config
        self._has_train, self._has_test = (
            np.array([found is not None for found in part.labels[label]]) for part in (train, test)
        )
        self._wanted, self._truth = (
            [found for found in part.labels[label] if found is not None] for part in (train, test)
        )
        self.num_train, num_test = len(self._wanted), len(self._truth)
        if not self.num_train or not num_test:
            raise ValueError(f"label {label}: found {self.num_train} training and {num_test} held-out clips with one")
        self._groups, self.recordings = (
            [name for name, has in zip(part.recordings, kept, strict=True) if has]
            for part, kept in ((train, self._has_train), (test, self._has_test))
        )
        self.keys = [clip.key for clip, has in zip(test.tokens, self._has_test, strict=True) if has]
        self.num_classes = len(set(self._wanted))
        self.num_without_label = int((~self._has_train).sum() + (~self._has_test).sum())

    def commonest(self) -> Method:
        """The training clips' commonest label, given to every test clip."""
        commonest = Counter(self._wanted).most_common(1)[0][0]
        return Method("commonest label", "baseline", {"accuracy": [float(found == commonest) for found in self._truth]})

    def is_right(self, rows: Features, test_rows: Features) -> tuple[list[float], float]:
        """1 or 0 per test clip for a classifier on features (N, D) of all clips, and the penalty it chose."""
        found, penalty = fit_and_predict(
            rows[self._has_train],
            self._wanted,
            test_rows[self._has_test],
            groups=self._groups,
            penalties=self._config.penalties,
            rng=np.random.default_rng(self._config.seed),
        )
        return [float(a == b) for a, b in zip(found, self._truth, strict=True)], penalty


def run_probe(config: ProbeConfig) -> Results:
    """Fit, score, and write results.json, results.md and per_clip.csv; returns the results.

    Raises ValueError when a recording is in both splits.
    """
    configure_remote(config.remote)
    with only_writer(config.output):
        return _run_probe(config)


def _run_probe(config: ProbeConfig) -> Results:
    checkpoint = load_checkpoint(config.checkpoint, device=config.device)
    names, train, test = read_splits(checkpoint, config)
    specs = [spec for spec in checkpoint.specs if spec.name in names]
    sources: dict[str, Callable[[Sequence[TokenClip]], Features]] = {
        "tokens, how often each": lambda clips: bag_features(clips, specs),
        "tokens, which where": lambda clips: one_hot_features(clips, specs),
    }
    for layer in config.layers:
        title = f"{_ENCODER}, output" if layer is None else f"{_ENCODER}, layer {layer}"
        sources[title] = lambda clips, layer=layer: pooled_features(checkpoint, clips, names, layer, config.batch_size)
    features = {title: (make(train.tokens), make(test.tokens)) for title, make in sources.items()}
    scored = [_score_label(label, features, train, test, config) for label in config.labels]
    about = {
        "config": to_plain(config),
        "checkpoint": str(checkpoint.directory),
        "labels": {label: found for label, (_, found) in zip(config.labels, scored, strict=True)},
    }
    words = [
        f"{label}: {found['num_classes']} classes, fitted to {found['num_train']} clips, {found['num_without_label']} "
        "clips without a label are left out"
        for label, found in about["labels"].items()
    ]
    description = f"A linear classifier on features of a clip. {'; '.join(words)}."
    measured = [found for found, _ in scored]
    results = write_results(Path(config.output), description, about, measured, seed=config.seed)
    say(results.markdown())
    return results


def read_splits(checkpoint: Checkpoint, config: ProbeDataConfig) -> tuple[list[str], ProbeClips, ProbeClips]:
    """Names of the input modalities, training clips, test clips; ValueError when a recording is in both."""
    names = [spec.name for word in config.inputs for spec in checkpoint.inputs(word)]
    train = _read_clips(checkpoint, config.train, config.max_train_clips, names, config)
    test = _read_clips(checkpoint, config.test, config.max_test_clips, names, config)
    if shared := sorted(set(train.recordings) & set(test.recordings)):
        raise ValueError(f"recording {shared[0]} is in train and in test; labels of its clips are not independent")
    return names, train, test


def _read_clips(
    checkpoint: Checkpoint, source: ClipsConfig, max_clips: int | None, names: Sequence[str], config: ProbeDataConfig
) -> ProbeClips:
    """Tokens of the modalities `names` and the labels, of clips spread evenly over the source."""
    label_streams = {label.stream for label in config.labels.values()}
    streams = sorted({checkpoint.tokenizer(name).stream for name in names} | label_streams)
    store = ClipStore(source.root, source.dataset, streams=streams)
    count = len(store) if max_clips is None else min(max_clips, len(store))
    indices = np.linspace(0, len(store) - 1, count).astype(int).tolist()
    tokens: list[TokenClip] = []
    clips: list[AlignedClip] = []
    with progress_bar(f"tokens of {source.root}", count, is_shown=config.progress) as advance:
        for first in range(0, count, config.batch_size):
            part = [store[index] for index in indices[first : first + config.batch_size]]
            tokens += checkpoint.tokenize(part, names)
            clips += [_without_pictures(clip, label_streams) for clip in part]
            advance(len(part))
    labels = {name: [label.label_of(clip) for clip in clips] for name, label in config.labels.items()}
    return ProbeClips(tokens=tokens, recordings=[clip.provenance.recording for clip in clips], labels=labels)


def _without_pictures(clip: AlignedClip, kept: set[str]) -> AlignedClip:
    streams = {name: stream for name, stream in clip.streams.items() if name in kept}
    return AlignedClip(clip.key, streams, clip.intrinsics, clip.provenance)


def _score_label(
    label: str, features: dict[str, tuple[Features, Features]], train: ProbeClips, test: ProbeClips, config: ProbeConfig
) -> tuple[Measured, dict[str, Any]]:
    """Where each feature's classifier is right, and what the table does not say."""
    probe = LabelProbe(label, train, test, config)
    methods, penalties = [probe.commonest()], {}
    for title, (rows, test_rows) in features.items():
        values, penalties[title] = probe.is_right(rows, test_rows)
        kind: MethodKind = "model" if title.startswith(_ENCODER) else "baseline"
        methods.append(Method(title, kind, {"accuracy": values}))
    about = {
        "num_classes": probe.num_classes,
        "num_train": probe.num_train,
        "num_without_label": probe.num_without_label,
        "penalties": penalties,
    }
    return Measured(label, "label", probe.keys, probe.recordings, (_ACCURACY,), methods), about


def pooled_features(
    checkpoint: Checkpoint, clips: Sequence[TokenClip], names: Sequence[str], layer: int | None, batch_size: int
) -> np.ndarray:
    found = encode_clips(checkpoint.model, clips, modalities=names, layer=layer, batch_size=batch_size)
    return np.stack([features.pooled.numpy() for features in found]).astype(np.float64)


def bag_features(clips: Sequence[TokenClip], specs: Sequence[ModalitySpec]) -> np.ndarray:
    """Share of every id among the tokens of its modality, (N, sum of V)."""
    parts = []
    for spec in specs:
        counts = [np.bincount(spec.words(clip.tokens[spec.name]), minlength=spec.vocab_size) for clip in clips]
        parts.append(np.stack(counts) / spec.num_tokens)
    return np.concatenate(parts, axis=1)


def one_hot_features(clips: Sequence[TokenClip], specs: Sequence[ModalitySpec]) -> csr_array:
    """1 for every (position, id) that a clip has, (N, sum of L times V)."""
    parts = []
    for spec in specs:
        ids = [spec.words(clip.tokens[spec.name]) for clip in clips]
        rows = np.repeat(np.arange(len(clips)), [len(ids_L) for ids_L in ids])
        columns = np.concatenate([np.arange(len(ids_L)) * spec.vocab_size + ids_L for ids_L in ids])
        shape = (len(clips), spec.num_tokens * spec.vocab_size)
        parts.append(csr_array((np.ones(len(rows)), (rows, columns)), shape=shape))
    return csr_array(hstack(parts, format="csr"))


if __name__ == "__main__":
    run_main(
        ProbeConfig,
        run_probe,
        default_config="default/egom2p/probe/world_small.yaml",
        description="Linear probe of the encoder's features.",
    )
