"""How near captions and answers are to what people wrote.

Every sample has a candidate and one or several references. Words are compared without case and punctuation. All scores
are 0 for nothing in common and largest for a candidate equal to its reference; a longer candidate never gains by length
alone. Scores of a sample depend on the other samples in `cider_d` only (through how rare a phrase is).

Of a text that a model wrote down as one of its modalities, `text_errors` counts the wrong words.

S samples.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

Encoder = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors (texts, D)."""

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MAX_ORDER = 4
_ROUGE_BETA = 1.2  # recall counts more than precision, as in the COCO captions evaluation
_CIDER_SIGMA = 6.0  # words of difference in length
SCORES = ("exact_match", "token_f1", "bleu4", "rouge_l", "cider_d")
_ORDERS = range(1, _MAX_ORDER + 1)


def words_of(text: str) -> list[str]:
    """Words of a text, in one case and without punctuation."""
    return _WORD.findall(text.casefold())


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """All of SCORES per sample; against several references the best one counts, in `cider_d` their mean."""
    found, wanted = _split(candidates, references)
    pairs = list(zip(found, wanted, strict=True))
    return {
        "exact_match": [max(float(candidate == words) for words in several) for candidate, several in pairs],
        "token_f1": [max(token_f1(candidate, words) for words in several) for candidate, several in pairs],
        "bleu4": [sentence_bleu4(candidate, several) for candidate, several in pairs],
        "rouge_l": [max(rouge_l(candidate, words) for words in several) for candidate, several in pairs],
        "cider_d": cider_d(found, wanted),
    }


def token_f1(candidate: Sequence[str], wanted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words; each occurrence counts once."""
    common = sum((Counter(candidate) & Counter(wanted)).values())
    return 2 * common / (len(candidate) + len(wanted)) if common else 0.0


def rouge_l(candidate: Sequence[str], wanted: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004)."""
    longest = _longest_common(candidate, wanted)
    if not longest:
        return 0.0
    precision, recall = longest / len(candidate), longest / len(wanted)
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def corpus_bleu4(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of the whole set (Papineni et al. 2002), orders 1 to 4, not smoothed: 0 when no phrase of 4 words fits."""
    found, wanted = _split(candidates, references)
    hits, totals = np.zeros(_MAX_ORDER), np.zeros(_MAX_ORDER)
    candidate_length = reference_length = 0
    for candidate, several in zip(found, wanted, strict=True):
        part_hits, part_totals = _phrase_hits(candidate, several)
        hits, totals = hits + part_hits, totals + part_totals
        candidate_length += len(candidate)
        reference_length += _nearest_length(candidate, several)
    if not hits.all():
        return 0.0
    return _brevity(candidate_length, reference_length) * math.exp(float(np.log(hits / totals).mean()))


def sentence_bleu4(candidate: Sequence[str], several: Sequence[Sequence[str]]) -> float:
    """BLEU of one sample; orders 2 to 4 with one hit and one phrase added, so that short answers have a score."""
    hits, totals = _phrase_hits(candidate, several)
    if not hits[0]:
        return 0.0
    hits[1:] += 1
    totals[1:] += 1
    return _brevity(len(candidate), _nearest_length(candidate, several)) * math.exp(float(np.log(hits / totals).mean()))


def cider_d(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of every sample (Vedantam et al. 2015), 0 to 10: agreement in phrases that are rare among the references.

    A text of fewer than 4 words has no phrase of 4 and stays below 10. Where all references are equal nothing is rare
    and all scores are 0.
    """
    counts = [[[_phrases(words, order) for order in _ORDERS] for words in several] for several in wanted]
    num_with: list[Counter[tuple[str, ...]]] = [Counter() for _ in _ORDERS]
    for several in counts:
        for number in range(_MAX_ORDER):
            num_with[number].update({phrase for phrases in several for phrase in phrases[number]})
    log_samples = math.log(max(len(wanted), 1))
    scores = []
    for candidate, texts, several in zip(found, wanted, counts, strict=True):
        total = 0.0
        for number, order in enumerate(_ORDERS):
            rarity = num_with[number]
            candidate_weights = _weights(_phrases(candidate, order), rarity, log_samples)
            for words, phrases in zip(texts, several, strict=True):
                likeness = _clipped_cosine(candidate_weights, _weights(phrases[number], rarity, log_samples))
                total += likeness * math.exp(-((len(candidate) - len(words)) ** 2) / (2 * _CIDER_SIGMA**2))
        scores.append(10.0 * total / (_MAX_ORDER * len(several)))
    return scores


def embedding_cosine(
    candidates: Sequence[str], references: Sequence[Sequence[str]], encoder: Encoder, *, max_words: int = 50
) -> list[float]:
    """Cosine (S,) between embeddings of candidate and reference, of several references the best one.

    A long text is cut into chunks of at most `max_words` and its embedding is the mean over them, so that an encoder
    with a short context sees all of it. A text without words gets 0.
    """
    if len(candidates) != len(references):
        raise ValueError(f"every candidate needs references, found {len(candidates)} and {len(references)}")
    texts = list(dict.fromkeys([*candidates, *(text for several in references for text in several)]))
    chunks = {text: text_chunks(text, max_words=max_words) for text in texts}
    every = list(dict.fromkeys(chunk for parts in chunks.values() for chunk in parts))
    vectors = dict(zip(every, np.asarray(encoder(every), np.float64), strict=True)) if every else {}
    means = {text: np.mean([vectors[chunk] for chunk in parts], axis=0) for text, parts in chunks.items() if parts}
    return [
        max((_cosine(means.get(candidate), means.get(text)) for text in several), default=0.0)
        for candidate, several in zip(candidates, references, strict=True)
    ]


def text_chunks(text: str, *, max_words: int) -> list[str]:
    """A text in pieces of at most `max_words`, cut after a sentence where possible, else a comma, else anywhere."""
    words = text.split()
    chunks = []
    while words:
        part = words[:max_words]
        if len(words) > max_words:
            ends = [number for number, word in enumerate(part, start=1) if word[-1] in ".!?;"]
            ends = ends or [number for number, word in enumerate(part, start=1) if word[-1] in ",:"] or [len(part)]
            part = part[: ends[-1]]
        chunks.append(" ".join(part))
        words = words[len(part) :]
    return chunks


def _split(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    if len(candidates) != len(references):
        raise ValueError(f"every candidate needs references, found {len(candidates)} and {len(references)}")
    wanted = [[words_of(text) for text in several] for several in references]
    for number, several in enumerate(wanted):
        if not several or not all(several):
            raise ValueError(f"sample {number} has a reference without words: {list(references[number])}")
    return [words_of(text) for text in candidates], wanted


def _phrases(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def _phrase_hits(candidate: Sequence[str], several: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """For each order: phrases of the candidate that a reference has (as often as there), and all of them."""
    hits, totals = np.zeros(_MAX_ORDER), np.zeros(_MAX_ORDER)
    for number, order in enumerate(_ORDERS):
        phrases = _phrases(candidate, order)
        allowed: Counter[tuple[str, ...]] = Counter()
        for words in several:
            allowed |= _phrases(words, order)
        hits[number], totals[number] = sum((phrases & allowed).values()), sum(phrases.values())
    return hits, totals


def _nearest_length(candidate: Sequence[str], several: Sequence[Sequence[str]]) -> int:
    return min((abs(len(words) - len(candidate)), len(words)) for words in several)[1]


def _brevity(candidate_length: int, reference_length: int) -> float:
    return 1.0 if candidate_length >= reference_length else math.exp(1 - reference_length / candidate_length)


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for column, other in enumerate(b, start=1):
            diagonal, row[column] = row[column], diagonal + 1 if word == other else max(row[column], row[column - 1])
    return row[-1]


def _weights(
    phrases: Counter[tuple[str, ...]], num_with: Counter[tuple[str, ...]], log_samples: float
) -> dict[tuple[str, ...], float]:
    return {phrase: count * (log_samples - math.log(max(num_with[phrase], 1))) for phrase, count in phrases.items()}


def _clipped_cosine(candidate: dict[tuple[str, ...], float], wanted: dict[tuple[str, ...], float]) -> float:
    """Cosine in which the candidate has nothing from saying a phrase more often than the reference."""
    size = math.sqrt(sum(v * v for v in candidate.values())) * math.sqrt(sum(v * v for v in wanted.values()))
    common = sum(min(value, wanted[phrase]) * wanted[phrase] for phrase, value in candidate.items() if phrase in wanted)
    return common / size if size else 0.0


def _cosine(a: np.ndarray | None, b: np.ndarray | None) -> float:
    if a is None or b is None:
        return 0.0
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else 0.0


def text_errors(estimate: str, reference: str) -> dict[str, float]:
    """Comparison of two texts, word by word; case and runs of spaces do not count.

    exact             1.0 where all words are the same, else 0.0
    word_error_rate   fewest words inserted, left out or replaced, over the words of the reference; may exceed 1
    """
    found, wanted = estimate.casefold().split(), reference.casefold().split()
    if not wanted:
        raise ValueError("the reference text has no words")
    return {"exact": float(found == wanted), "word_error_rate": _edits(found, wanted) / len(wanted)}


def _edits(found: list[str], wanted: list[str]) -> int:
    """Levenshtein distance between two lists of words."""
    row = list(range(len(wanted) + 1))
    for number, word in enumerate(found, start=1):
        before, row[0] = row[0], number
        for column, other in enumerate(wanted, start=1):
            cost = min(row[column] + 1, row[column - 1] + 1, before + (word != other))
            before, row[column] = row[column], cost
    return row[-1]
