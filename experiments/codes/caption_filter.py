"""Leave out captions that a model finds least likely: `python -m experiments.codes.caption_filter --config FILE`.

A model that was trained on all of them for a short time, correct or not, knows what most of them have in common; a
caption of another clip is unlikely to it. Trained until it knows rows by heart, it could no longer tell.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egom2p.anytoany.conversations.chat import ChatConfig, ChatRenderer
from egom2p.anytoany.conversations.datasets import CaptionsConfig, open_dataset
from egom2p.anytoany.conversations.table_files import TableFiles
from egom2p.anytoany.language.likelihood import likelihoods
from egom2p.anytoany.perception.feature_store import FeatureLookup
from egom2p.config import run_main, strict
from egom2p.data.clip_order import clip_rng
from egom2p.jobs.progress import say
from egom2p.jobs.workers import choose_device
from egom2p.storage import atomic_file


@strict
class CaptionFilterConfig:
    """Root schema.

    model       any-to-any directory; features: folders of exported features that it perceives
    keep_share  of the rows: the likeliest ones
    planted     column that says which captions are wrong, where that is known: for the area under the ROC curve
    output      .jsonl file of the rows that are kept, in their order
    """

    model: str
    dataset: CaptionsConfig
    output: str
    features: tuple[str, ...] = ()
    keep_share: float = 0.7
    planted: str | None = None
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep_share <= 1:
            raise ValueError(f"keep_share must be in (0, 1], got {self.keep_share}")
        if Path(self.output).suffix != ".jsonl":
            raise ValueError(f"output must be a .jsonl file, got {self.output}")


@dataclass(frozen=True)
class Filtered:
    """Rows, those kept, and how well the losses tell planted errors from the others: 0.5 is chance."""

    num_rows: int
    num_kept: int
    auc: float | None = None
    wrong_before: float | None = None
    wrong_after: float | None = None


def filter_captions(config: CaptionFilterConfig) -> Filtered:
    """Score all rows, write those that are kept."""
    columns = [name for name in (config.dataset.caption, config.dataset.ref, config.planted) if name]
    rows = TableFiles(config.dataset.files, columns)
    parquet = next((file for file in rows.files if file.suffix == ".parquet"), None)
    if parquet is not None and config.dataset.ref is None:
        raise ValueError(f"{parquet}: its rows hold their media items, which a .jsonl file of the kept rows would not")
    nats_N = caption_nats(config)
    num_kept = round(config.keep_share * len(rows))
    is_kept_N = np.zeros(len(rows), bool)
    is_kept_N[np.argsort(nats_N, kind="stable")[:num_kept]] = True
    with atomic_file(Path(config.output)) as unfinished:
        lines = (json.dumps(rows[number]) + "\n" for number in np.flatnonzero(is_kept_N).tolist())
        unfinished.write_text("".join(lines), encoding="utf-8")
    if config.planted is None:
        return Filtered(len(rows), num_kept)
    is_wrong_N = np.array([bool(rows[number][config.planted]) for number in range(len(rows))])
    before, after = float(is_wrong_N.mean()), float(is_wrong_N[is_kept_N].mean())
    return Filtered(len(rows), num_kept, area_under_curve(nats_N, is_wrong_N), before, after)


def caption_nats(config: CaptionFilterConfig) -> np.ndarray:
    """(N,) nats per token of each row's caption."""
    # Imported here: it brings transformers along.
    from egom2p.anytoany.saving import load_anytoany

    device = choose_device()
    model = load_anytoany(config.model, device=device)
    lookup = FeatureLookup(model.config.perception, config.features, model.config.connector)
    renderer = ChatRenderer(model.tokenizer, lookup.span_length, ChatConfig(max_length=1 << 20))
    dataset = open_dataset(config.dataset)
    rendered = []
    for number in range(len(dataset)):
        found = renderer.render(dataset.conversation(number, clip_rng(config.seed, "filtered row", number)))
        assert found is not None
        rendered.append(found)
    scores = likelihoods(model, rendered, lookup.features, batch_size=config.batch_size)
    return np.array([one.nats / one.num_tokens for one in scores])


def area_under_curve(scores: np.ndarray, is_positive: np.ndarray) -> float | None:
    """How often a positive (N,) has a higher score (N,) than a negative; equal ones count half. None without a pair."""
    positive, negative = np.sort(scores[is_positive]), np.sort(scores[~is_positive])
    if not len(positive) or not len(negative):
        return None
    lower = np.searchsorted(negative, positive, side="left")
    not_higher = np.searchsorted(negative, positive, side="right")
    return float((lower + not_higher).mean() / 2 / len(negative))


def main(config: CaptionFilterConfig) -> None:
    found = filter_captions(config)
    say(f"kept {found.num_kept} of {found.num_rows} rows: {config.output}")
    if found.auc is not None:
        say(
            f"area under the curve {found.auc:.4f}; wrong captions: {found.wrong_before:.3f} before, "
            f"{found.wrong_after:.3f} after"
        )


if __name__ == "__main__":
    run_main(CaptionFilterConfig, main, description="Leave out captions that a model finds unlikely.")
