"""Texts: exactly the true words, and how many must be changed."""

from collections import Counter

import numpy as np

from egom2p.contracts import AlignedClip, Stream
from egom2p.evaluation.scoring import ProtocolConfig, Scores, Scoring
from egom2p.metrics.caption import text_errors
from egom2p.metrics.result_table import Metric

_WORDS = "case and spaces do not count"
_METRICS = (
    Metric("exact", "exact", "", f"share of texts with exactly the true words, {_WORDS}", True, True),
    Metric("word_error_rate", "WER", "", f"words to change over words of the truth, {_WORDS}"),
)


def _score(estimate: np.ndarray, truth: AlignedClip, stream: str, protocol: ProtocolConfig) -> Scores:
    return text_errors(str(estimate[0]), str(truth.streams[stream].values[0]))


class _Baselines:
    def __init__(self) -> None:
        self._texts: Counter[str] = Counter()

    def add(self, stream: Stream) -> None:
        self._texts[str(stream.values[0])] += 1

    def estimates(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        if not self._texts:
            return {}
        return {"most frequent text": np.array([self._texts.most_common(1)[0][0]])}


def _commonest(samples: np.ndarray) -> np.ndarray:
    """Of texts (K, 1) there is no mean; the one that was said most often."""
    texts = ["\n".join(sample) for sample in samples]
    return samples[texts.index(max(texts, key=texts.count))]


SCORING = Scoring(
    metrics=lambda protocol: _METRICS,
    score=_score,
    baselines=_Baselines,
    comparable=lambda samples, truth, is_valid: None,
    mean=_commonest,
)
