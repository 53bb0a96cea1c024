"""What the encoder knows: a linear classifier on its features, `python -m egom2p.evaluation.probe --config FILE`.

Beside it stand the same classifier on the tokens themselves and the commonest label. N clips, D width, L tokens of one
modality, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, hstack

from egom2p.config import run_main, strict, to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, TokenClip
from egom2p.data.clips.clip_store import ClipStore
from egom2p.evaluation.evaluation_config import ClipsConfig
from egom2p.evaluation.linear_probe import Features, fit_and_predict
from egom2p.evaluation.probe_labels import ProbeLabelConfig
from egom2p.generation.checkpoints import Checkpoint, load_checkpoint, pretrained_checkpoint
from egom2p.jobs.progress import progress_bar, say
from egom2p.metrics.bootstrap import bootstrap_interval, paired_difference_interval
from egom2p.models.features import encode_clips
from egom2p.storage import save_json


@strict
class ProbeConfig:
    """One probe.

    checkpoint   model directory; None: the pretrained one
    train, test  clips the classifier is fitted to and scored on; of other recordings
    inputs       modalities the encoder sees (name, quantity or folder)
    layers       of the encoder, as in `models.features.encode_clips`; null is its output
    labels       name -> how the label of a clip is read
    penalties    L2 penalties to choose from, on a fifth of the training recordings
    """

    output: str
    checkpoint: str | None = None
    train: ClipsConfig
    test: ClipsConfig
    inputs: tuple[str, ...]
    layers: tuple[int | None, ...] = (None,)
    labels: dict[str, ProbeLabelConfig]
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    max_train_clips: int | None = None
    max_test_clips: int | None = None
    batch_size: int = 32
    seed: int = 0
    device: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.inputs or not self.labels or not self.layers or not self.penalties:
            raise ValueError("inputs, labels, layers and penalties need at least one entry each")


@strict
class ProbeClips:
    """Tokens of the inputs of some clips, their recordings and labels."""

    tokens: Any  # list[TokenClip]
    recordings: list[str]
    labels: dict[str, list[str | None]]


def run_probe(config: ProbeConfig) -> dict[str, Any]:
    """Fit, score, and write `<output>/probe.json` and `probe.md`; returns the results.

    Raises ValueError when a recording is in both splits.
    """
    checkpoint = load_checkpoint(config.checkpoint or pretrained_checkpoint(), device=config.device)
    names = [checkpoint.spec(word).name for word in config.inputs]
    specs = [spec for spec in checkpoint.specs if spec.name in names]
    asked = {"asked": config.labels, "batch_size": config.batch_size, "progress": config.progress}
    train = read_probe_clips(checkpoint, config.train, config.max_train_clips, names, **asked)
    test = read_probe_clips(checkpoint, config.test, config.max_test_clips, names, **asked)
    if shared := sorted(set(train.recordings) & set(test.recordings)):
        raise ValueError(f"recording {shared[0]} is in train and in test; labels of its clips are not independent")
    sources: dict[str, Callable[[Sequence[TokenClip]], Features]] = {
        "tokens, how often each": lambda clips: bag_features(clips, specs),
        "tokens, which where": lambda clips: one_hot_features(clips, specs),
    }
    for layer in config.layers:
        title = "encoder, output" if layer is None else f"encoder, layer {layer}"
        sources[title] = lambda clips, layer=layer: pooled_features(checkpoint, clips, names, layer, config.batch_size)
    features = {title: (make(train.tokens), make(test.tokens)) for title, make in sources.items()}
    results = {
        "config": to_plain(config),
        "checkpoint": str(checkpoint.directory),
        "labels": [_score_label(label, features, train, test, config) for label in config.labels],
    }
    save_json(Path(config.output) / "probe.json", results)
    text = probe_table(results)
    (Path(config.output) / "probe.md").write_text(text, encoding="utf-8")
    say(text)
    return results


def probe_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for found in results["labels"]:
        lines += [
            f"### {found['label']}: {found['num_classes']} classes, fitted to {found['num_train']} clips, "
            f"{found['num_test']} held-out clips of {found['num_test_recordings']} recordings",
            "",
            "| features | accuracy | against the best baseline |",
            "|---|---|---|",
        ]
        for row in found["rows"]:
            against = row.get("against_baseline")
            words = "" if against is None else _interval(against, signed=True)
            lines.append(f"| {row['features']} | {_interval(row['accuracy'])} | {words} |")
        if found["num_without_label"]:
            lines += ["", f"{found['num_without_label']} clips have no label and are left out."]
        lines.append("")
    lines += ["Brackets: 95 % bootstrap intervals, recordings drawn whole.", ""]
    return "\n".join(lines)


def _interval(found: dict[str, Any], *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{found['mean']:{sign}.3f}"
    return text if found["low"] is None else f"{text} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def read_probe_clips(
    checkpoint: Checkpoint,
    source: ClipsConfig,
    max_clips: int | None,
    names: Sequence[str],
    asked: Mapping[str, ProbeLabelConfig],
    *,
    batch_size: int,
    progress: bool,
) -> ProbeClips:
    """Tokens of the modalities `names` and the labels that are `asked`, of clips spread evenly over the source."""
    label_streams = {label.stream for label in asked.values()}
    streams = sorted({checkpoint.tokenizer(name).stream for name in names} | label_streams)
    store = ClipStore(source.root, source.dataset, streams=streams)
    count = len(store) if max_clips is None else min(max_clips, len(store))
    indices = np.linspace(0, len(store) - 1, count).astype(int).tolist()
    tokens: list[TokenClip] = []
    clips: list[AlignedClip] = []
    with progress_bar(f"tokens of {source.root}", count, is_shown=progress) as advance:
        for first in range(0, count, batch_size):
            part = [store[index] for index in indices[first : first + batch_size]]
            tokens += checkpoint.tokenize(part, names)
            clips += [_without_pictures(clip, label_streams) for clip in part]
            advance(len(part))
    labels = {name: [label.label_of(clip) for clip in clips] for name, label in asked.items()}
    return ProbeClips(tokens=tokens, recordings=[clip.provenance.recording for clip in clips], labels=labels)


def _without_pictures(clip: AlignedClip, kept: set[str]) -> AlignedClip:
    streams = {name: stream for name, stream in clip.streams.items() if name in kept}
    return AlignedClip(clip.key, streams, clip.intrinsics, clip.provenance)


def _score_label(
    label: str, features: dict[str, tuple[Features, Features]], train: ProbeClips, test: ProbeClips, config: ProbeConfig
) -> dict[str, Any]:
    has_train, has_test = (np.array([found is not None for found in part.labels[label]]) for part in (train, test))
    wanted, truth = ([found for found in part.labels[label] if found is not None] for part in (train, test))
    if not wanted or not truth:
        raise ValueError(f"label {label}: found {len(wanted)} training and {len(truth)} held-out clips that have one")
    train_groups, test_groups = (
        [name for name, has in zip(part.recordings, kept, strict=True) if has]
        for part, kept in ((train, has_train), (test, has_test))
    )
    commonest = Counter(wanted).most_common(1)[0][0]
    right = {"commonest label": [float(found == commonest) for found in truth]}
    chosen: dict[str, float] = {}
    for title, (rows, test_rows) in features.items():
        found, chosen[title] = fit_and_predict(
            rows[has_train],
            wanted,
            test_rows[has_test],
            groups=train_groups,
            penalties=config.penalties,
            rng=np.random.default_rng(config.seed),
        )
        right[title] = [float(a == b) for a, b in zip(found, truth, strict=True)]
    baselines = [title for title in right if not title.startswith("encoder")]
    best = max(baselines, key=lambda title: float(np.mean(right[title])))
    rows_out = []
    for title, values in right.items():
        rng = np.random.default_rng(config.seed)
        row: dict[str, Any] = {"features": title, "penalty": chosen.get(title)}
        row["accuracy"] = asdict(bootstrap_interval(values, rng, groups=test_groups))
        if title not in baselines:
            difference = paired_difference_interval(values, right[best], rng, groups=test_groups)
            row |= {"baseline": best, "against_baseline": asdict(difference)}
        rows_out.append(row)
    return {
        "label": label,
        "num_classes": len(set(wanted)),
        "num_train": len(wanted),
        "num_test": len(truth),
        "num_test_recordings": len(set(test_groups)),
        "num_without_label": int((~has_train).sum() + (~has_test).sum()),
        "rows": rows_out,
    }


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
