"""Perception tokens that are words of the answers: they learn to name them before the language model is asked.

A language model can read words at once and foreign vectors only after long training: after 180 steps SmolLM2 said no
better than by chance on which side the eyes were, though a linear map of the perception tokens told it in 95 % of the
clips. A token that is a mixture of word embeddings (Masry et al. 2025, AlignVLM, mix the whole vocabulary) is read
as words are. Which ones is learned here in seconds, from the answers alone.

I media items, M perception tokens of them, V words and silence, D width of the language model.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from egom2p.anytoany.connectors import SpaceTimeShuffle
from egom2p.anytoany.perception.source import FeatureRows
from egom2p.anytoany.types import Conversation, Media, Rendered

_BATCH = 64  # media items of a step
_LR, _WEIGHT_DECAY, _WARMUP = 1e-2, 0.05, 20
_FEWEST = 2  # items that a word must be said of
_LARGEST_SHARE = 0.9  # of the items; what is said of nearly all tells nothing of one
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
    """Choose the words, the commonest first, and train the connector alone; the last loss, in nats per word and item.

    An item says a word where one of its tokens does, each on its own (noisy or). `table`: embeddings of all ids.
    """
    items = list(words)
    counts = Counter(word for said in words.values() for word in said)
    usable = [word for word, count in counts.most_common() if _FEWEST <= count <= _LARGEST_SHARE * len(items)]
    known = sorted(usable[: len(connector.words) - 1])
    if not known:
        raise ValueError("connector.num_words: no word tells media items of the training data from one another")
    is_said_IV = torch.tensor([[word in words[item] for word in known] for item in items], device=table.device)
    connector.words[0] = table.float().mean(0)
    connector.words[1 : 1 + len(known)] = table[known].float()
    connector.is_word[: 1 + len(known)] = True
    with torch.no_grad():
        connector.sharpness.fill_(math.log(_SHARPNESS / float(table[known].float().norm(dim=1).mean())))
    optimizer = torch.optim.AdamW(connector.parameters(), lr=_LR, weight_decay=_WEIGHT_DECAY)
    loss = torch.zeros(())
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = _LR * min(1.0, (step + 1) / _WARMUP) * (1 + math.cos(math.pi * step / num_steps)) / 2
        chosen = torch.randperm(len(items), generator=generator)[:_BATCH].tolist()
        drawn = [items[row] for row in chosen]
        lengths = [counts_of(item) for item in drawn]
        share_MV = connector.said(connector.vectors(rows_of(drawn), lengths))[:, 1 : 1 + len(known)]
        silent_MV = torch.log1p(-share_MV.clamp(max=1 - 1e-6))
        silent_IV = torch.stack([part.sum(0) for part in silent_MV.split(lengths)]).clamp(max=-1e-6)
        loss = -torch.where(is_said_IV[chosen], torch.log(-torch.expm1(silent_IV)), silent_IV).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())
