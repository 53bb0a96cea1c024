"""What a language model knows without media: perplexity, choices and completions of local files."""

import math
from collections.abc import Sequence

from egom2p.anytoany.conversations.datasets import row_name
from egom2p.anytoany.conversations.table_files import TableFiles
from egom2p.anytoany.evaluation.questions import Scores
from egom2p.anytoany.evaluation.settings import TextTaskConfig
from egom2p.anytoany.language.likelihood import continuation, likelihoods
from egom2p.anytoany.model import AnyToAny

_COLUMNS = {
    "perplexity": ("text",),
    "choices": ("question", "choices", "answer"),
    "completion": ("prompt", "completion"),
}


def text_task(label: str, model: AnyToAny, config: TextTaskConfig, *, batch_size: int) -> tuple[list[str], Scores]:
    """Names of the rows and their scores."""
    rows = TableFiles(config.files, list(_COLUMNS[config.kind]))
    count = len(rows) if config.max_rows is None else min(len(rows), config.max_rows)
    picked = [number * len(rows) // count for number in range(count)]
    keys = [row_name(rows, row) for row in picked]
    task = {"perplexity": _perplexity, "choices": _choices, "completion": _completion}[config.kind]
    return keys, task(label, model, [rows[row] for row in picked], keys, batch_size)


def _perplexity(label: str, model: AnyToAny, rows: Sequence[dict], keys: Sequence[str], batch_size: int) -> Scores:
    """Per row nats per token, lower is better; of the set the perplexity, in which every token counts alike.

    Perplexities of models with different tokenizers cannot be compared; nats per character can.
    """
    texts = [str(row["text"]) for row in rows]
    found = likelihoods(model, [continuation(model, "", text) for text in texts], batch_size=batch_size)
    total, num_tokens = sum(one.nats for one in found), sum(one.num_tokens for one in found)
    values = {
        "nats_per_token": [one.nats / one.num_tokens for one in found],
        "nats_per_character": [one.nats / len(text) for one, text in zip(found, texts, strict=True)],
    }
    return Scores(label, "text", values, whole={"perplexity": math.exp(total / num_tokens)})


def _choices(label: str, model: AnyToAny, rows: Sequence[dict], keys: Sequence[str], batch_size: int) -> Scores:
    texts = [[str(choice) for choice in row["choices"]] for row in rows]
    for key, row, choices in zip(keys, rows, texts, strict=True):
        if not 0 <= int(row["answer"]) < len(choices):
            raise ValueError(f"{key}: answer is the number of one of {len(choices)} choices, found {row['answer']}")
    asked = [(str(row["question"]), choice) for row, choices in zip(rows, texts, strict=True) for choice in choices]
    found = iter(
        likelihoods(model, [continuation(model, q, f" {choice}") for q, choice in asked], batch_size=batch_size)
    )
    chosen = []
    for choices in texts:
        nats = [next(found).nats / len(choice) for choice in choices]
        chosen.append(nats.index(min(nats)))
    right = [float(number == int(row["answer"])) for number, row in zip(chosen, rows, strict=True)]
    return Scores(label, "text", {"accuracy": right}, [c[n] for c, n in zip(texts, chosen, strict=True)])


def _completion(label: str, model: AnyToAny, rows: Sequence[dict], keys: Sequence[str], batch_size: int) -> Scores:
    asked = [(str(row["prompt"]), f" {str(row['completion']).strip()}") for row in rows]
    found = likelihoods(model, [continuation(model, *pair) for pair in asked], batch_size=batch_size)
    values = {
        "accuracy": [float(one.is_greedy) for one in found],
        "nats_per_token": [one.nats / one.num_tokens for one in found],
    }
    return Scores(label, "text", values)
