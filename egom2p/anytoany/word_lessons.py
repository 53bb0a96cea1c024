"""Perception tokens learn to name the words of the answers, before the language model is asked.

A connector that begins with random numbers says nothing that a language model could read, and the model's own gradient
tells it slowly what to say: after 180 steps SmolLM2 said no better than by chance on which side the eyes were, though a
linear map of the features tells it in every clip. Here a word is named by a token that lies in the direction of its
embedding: a few seconds without the language model, after which its steps begin with tokens that say what there is.

I media items, M perception tokens of them, V words of the answers, D width of the language model.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egom2p.anytoany.connectors import SpaceTimeShuffle
from egom2p.anytoany.perception.source import FeatureRows
from egom2p.anytoany.types import Conversation, Media, Rendered

_BATCH = 64  # media items of a step
_LR, _WEIGHT_DECAY, _WARMUP = 1e-2, 0.05, 20
_FEWEST = 2  # items that a word must be said of
_SHARPNESS = 10.0  # logit of a token that is an embedding of usual length


def words_by_media(
    conversations: Sequence[Conversation], render: Callable[[Conversation], Rendered | None], endings: Sequence[int]
) -> dict[Media, set[int]]:
    """For each item that some conversations are about alone: ids of all that is answered in them, without `endings`."""
    found: dict[Media, set[int]] = {}
    for conversation in conversations:
        media = list(dict.fromkeys(conversation.media))
        rendered = render(conversation) if len(media) == 1 else None
        if rendered is not None:
            said = rendered.ids[rendered.is_target].tolist()
            found.setdefault(media[0], set()).update(set(said) - set(endings))
    return found


def teach_words(
    connector: SpaceTimeShuffle,
    words: Mapping[Media, set[int]],
    rows_of: Callable[[Sequence[Media]], FeatureRows],
    counts_of: Callable[[Media], int],
    table: Tensor,
    *,
    num_steps: int,
    generator: torch.Generator,
) -> float:
    """Train the connector alone; the loss (nats per word and item, binary) of the last tenth of the steps.

    An item names a word as much as its likeliest tokens do together: sums over its tokens of exp of their product with
    the word's embedding. `table` (V, D) has the embeddings of all ids.
    """
    items = list(words)
    counts = torch.tensor([sum(word in said for said in words.values()) for word in range(len(table))])
    known = torch.nonzero(counts >= _FEWEST)[:, 0].tolist()
    if not known:
        raise ValueError("connector.word_steps: no word is said of two media items of the training data")
    column_of = {word: column for column, word in enumerate(known)}
    is_said_IV = torch.zeros(len(items), len(known))
    for row, item in enumerate(items):
        is_said_IV[row, [column_of[word] for word in words[item] if word in column_of]] = 1.0
    is_said_IV = is_said_IV.to(table.device)
    directions_VD = F.normalize(table[known].float(), dim=1)
    usual = float(table[known].float().norm(dim=1).mean())
    sharpness = nn.Parameter(torch.tensor(math.log(_SHARPNESS / usual), device=table.device))
    bias_V = nn.Parameter(torch.logit(is_said_IV.mean(0).clamp(0.01, 0.99)))
    groups = [{"params": list(connector.parameters()), "weight_decay": _WEIGHT_DECAY}, {"params": [sharpness, bias_V]}]
    optimizer = torch.optim.AdamW(groups, lr=_LR, weight_decay=0.0)
    losses = []
    for step in range(num_steps):
        share = step / num_steps
        for group in optimizer.param_groups:
            group["lr"] = _LR * min(1.0, (step + 1) / _WARMUP) * (1 + math.cos(math.pi * share)) / 2
        chosen = torch.randperm(len(items), generator=generator)[:_BATCH].tolist()
        drawn = [items[row] for row in chosen]
        lengths = [counts_of(item) for item in drawn]
        tokens_MD = connector(rows_of(drawn), lengths)
        named_MV = tokens_MD @ directions_VD.T * sharpness.exp()
        # Of items with unlike numbers of tokens none has an advantage.
        logits_IV = torch.stack([part.logsumexp(0) - math.log(len(part)) for part in named_MV.split(lengths)]) + bias_V
        loss = F.binary_cross_entropy_with_logits(logits_IV, is_said_IV[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if share >= 0.9:
            losses.append(float(loss.detach()))
    optimizer.zero_grad(set_to_none=True)
    return sum(losses) / max(len(losses), 1)
