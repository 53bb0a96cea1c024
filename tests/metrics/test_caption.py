"""Caption metrics against plain second implementations, and the promises that make them worth trusting."""

import math

import numpy as np
import pytest

from egom2p.metrics.caption import (
    SCORES,
    caption_scores,
    corpus_bleu4,
    embedding_cosine,
    text_chunks,
    words_of,
)

REFERENCES = [
    ["the wearer picks up the red mug while turning left"],
    ["a person opens a green box and looks at it", "someone opens the green box"],
    ["the wearer wipes the white plate while standing still"],
    ["the camera moves forward along a corridor, then stops"],
    ["the wearer pushes the blue bowl while walking forward"],
    ["two people sit at a table and talk to each other"],
]
TRUE = [several[0] for several in REFERENCES]
BEST = {"exact_match": 1.0, "token_f1": 1.0, "bleu4": 1.0, "rouge_l": 1.0}


def means(candidates, references=REFERENCES):
    return {name: float(np.mean(values)) for name, values in caption_scores(candidates, references).items()}


def test_a_candidate_equal_to_its_reference_gets_the_most():
    scores = caption_scores(TRUE, REFERENCES)
    for name, best in BEST.items():
        assert scores[name] == pytest.approx([best] * len(TRUE)), name
    single = caption_scores(TRUE, [[text] for text in TRUE])
    assert single["cider_d"] == pytest.approx([10.0] * len(TRUE))
    assert corpus_bleu4(TRUE, REFERENCES) == pytest.approx(1.0)
    assert tuple(scores) == SCORES


def test_case_and_punctuation_do_not_count():
    assert caption_scores(["The Wearer PICKS up: the red mug, while turning left."], REFERENCES[:1])["exact_match"] == [
        1
    ]
    assert words_of("It's a-b, C.") == ["it's", "a", "b", "c"]


def test_answers_of_other_samples_score_low():
    right, shuffled = means(TRUE), means(TRUE[2:] + TRUE[:2])
    assert shuffled["exact_match"] == 0
    for name in SCORES:
        assert shuffled[name] < 0.6 * right[name], name


def test_nothing_said_scores_nothing():
    assert all(values == [0.0] for values in caption_scores(["..."], [["a cup"]]).values())
    assert corpus_bleu4([""], [["a cup"]]) == 0


@pytest.mark.parametrize("trick", ["twice", "padded", "everything", "one word", "one word many times"])
def test_gaming_by_length_does_not_pay(trick: str):
    def gamed(text: str) -> str:
        return {
            "twice": f"{text} {text}",
            "padded": f"{text} a a the the the it while left right red blue",
            "everything": " ".join(TRUE),
            "one word": "the",
            "one word many times": "the " * 9,
        }[trick]

    honest, tricked = means(TRUE), means([gamed(text) for text in TRUE])
    for name in SCORES:
        assert tricked[name] < 0.9 * honest[name], name
    assert corpus_bleu4([gamed(text) for text in TRUE], REFERENCES) < 0.9


def test_a_worse_caption_scores_worse():
    """Each step breaks one more word of the caption; no score may rise on the way."""
    words = TRUE[0].split()
    ladder = [" ".join([*words[: len(words) - broken], *["zzz"] * broken]) for broken in range(len(words))]
    rows = [means([candidate, *TRUE[1:]]) for candidate in ladder]
    for name in SCORES:
        values = [row[name] for row in rows]
        assert all(later <= earlier + 1e-12 for earlier, later in zip(values, values[1:], strict=False)), name
        assert values[-1] < values[0]


def test_the_order_of_the_samples_changes_nothing(rng):
    candidates = [TRUE[0], "someone opens it", "the wearer wipes a plate", "it moves", "a blue bowl", "they talk"]
    order = rng.permutation(len(candidates))
    plain = caption_scores(candidates, REFERENCES)
    permuted = caption_scores([candidates[i] for i in order], [REFERENCES[i] for i in order])
    for name in SCORES:
        assert permuted[name] == pytest.approx([plain[name][i] for i in order]), name


def test_a_second_implementation_agrees(rng):
    """Bag-of-lists implementations straight from the papers' formulas, on random texts."""
    vocabulary = "a b c d e f".split()

    def draw():
        return " ".join(rng.choice(vocabulary, size=rng.integers(1, 9)))

    candidates = [draw() for _ in range(25)]
    references = [[draw() for _ in range(rng.integers(1, 4))] for _ in candidates]
    scores = caption_scores(candidates, references)
    for number, (candidate, several) in enumerate(zip(candidates, references, strict=True)):
        assert scores["token_f1"][number] == pytest.approx(max(plain_f1(candidate, text) for text in several))
        assert scores["rouge_l"][number] == pytest.approx(max(plain_rouge(candidate, text) for text in several))
        assert scores["cider_d"][number] == pytest.approx(plain_cider(candidate, several, references))
    assert corpus_bleu4(candidates, references) == pytest.approx(plain_bleu(candidates, references))


def test_values_worked_out_by_hand():
    # 4 of 5 words in common on both sides; longest common subsequence 4; 5 words each, so no penalty.
    scores = caption_scores(["a cat sat on mats"], [["a cat sat on mat"]])
    assert scores["token_f1"] == pytest.approx([0.8])
    assert scores["rouge_l"] == pytest.approx([0.8])
    # Hits 4/5, 3/4, 2/3, 1/2 of the orders; smoothed (3+1)/(4+1), (2+1)/(3+1), (1+1)/(2+1).
    assert scores["bleu4"] == pytest.approx([(4 / 5 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25])
    assert corpus_bleu4(["a cat sat on mats"], [["a cat sat on mat"]]) == pytest.approx((0.2) ** 0.25)
    # The clipped count of Papineni's example: "the" counts twice at most.
    assert caption_scores(["the the the the the the the"], [["the cat is on the mat"]])["token_f1"] == [
        pytest.approx(2 * 2 / (7 + 6))
    ]
    # Two samples without a common word: idf is log 2 everywhere, orders 1 and 2 agree fully, 3 and 4 do not exist.
    assert caption_scores(["red mug", "blue bowl"], [["red mug"], ["blue bowl"]])["cider_d"] == pytest.approx(
        [5.0, 5.0]
    )


def test_references_are_checked():
    with pytest.raises(ValueError, match="sample 1"):
        caption_scores(["a", "b"], [["a"], ["..."]])
    with pytest.raises(ValueError, match="found 1 and 2"):
        caption_scores(["a"], [["a"], ["b"]])


def test_embeddings_are_means_over_chunks():
    def letters(texts):
        return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)

    same = embedding_cosine(TRUE, REFERENCES, letters)
    assert same == pytest.approx([1.0] * len(TRUE))
    assert np.mean(embedding_cosine(TRUE[2:] + TRUE[:2], REFERENCES, letters)) < 0.99
    assert embedding_cosine([""], [["a"]], letters) == [0.0]
    # An encoder that sees two words only: without chunks it would miss the difference at the end.
    seen = []

    def short(texts):
        seen.extend(texts)
        return letters([" ".join(text.split()[:2]) for text in texts])

    cosine = embedding_cosine(["aa aa bb bb"], [["aa aa cc cc"]], short, max_words=2)[0]
    assert cosine == pytest.approx(0.5)
    assert all(len(text.split()) <= 2 for text in seen)


def test_chunks_end_where_sentences_do():
    text = "One two three. Four five, six seven eight nine ten"
    assert text_chunks(text, max_words=5) == ["One two three.", "Four five,", "six seven eight nine ten"]
    assert " ".join(text_chunks(text, max_words=3)) == text


def grams(text, order):
    words = text.split()
    return [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]


def plain_f1(candidate, text):
    left, common = text.split(), 0
    for word in candidate.split():
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(candidate.split()), common / len(text.split())
    return 2 * precision * recall / (precision + recall)


def plain_rouge(candidate, text):
    def lcs(a, b):
        if not a or not b:
            return 0
        return lcs(a[1:], b[1:]) + 1 if a[0] == b[0] else max(lcs(a[1:], b), lcs(a, b[1:]))

    longest = lcs(candidate.split(), text.split())
    if not longest:
        return 0.0
    p, r = longest / len(candidate.split()), longest / len(text.split())
    return (1 + 1.44) * p * r / (r + 1.44 * p)


def plain_bleu(candidates, references):
    product = 1.0
    for order in (1, 2, 3, 4):
        hits = total = 0
        for candidate, several in zip(candidates, references, strict=True):
            mine = grams(candidate, order)
            total += len(mine)
            for gram in set(mine):
                hits += min(mine.count(gram), max(grams(text, order).count(gram) for text in several))
        product *= hits / total if total else 0.0
    length = sum(len(candidate.split()) for candidate in candidates)
    nearest = 0
    for candidate, several in zip(candidates, references, strict=True):
        sizes = sorted(len(text.split()) for text in several)
        nearest += min(sizes, key=lambda size, candidate=candidate: abs(size - len(candidate.split())))
    return min(1.0, math.exp(1 - nearest / length)) * product**0.25


def plain_cider(candidate, several, references):
    total = 0.0
    for order in (1, 2, 3, 4):

        def vector(text, order=order):
            values = {}
            for gram in set(grams(text, order)):
                with_gram = sum(any(gram in grams(other, order) for other in others) for others in references)
                values[gram] = grams(text, order).count(gram) * math.log(len(references) / max(with_gram, 1))
            return values

        mine = vector(candidate)
        for text in several:
            theirs = vector(text)
            dot = sum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in mine if gram in theirs)
            size = math.sqrt(sum(v * v for v in mine.values()) * sum(v * v for v in theirs.values()))
            gap = len(candidate.split()) - len(text.split())
            total += (dot / size if size else 0.0) * math.exp(-(gap**2) / 72)
    return 10 * total / 4 / len(several)
