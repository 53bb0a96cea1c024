"""How near a text is to the true one."""


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
