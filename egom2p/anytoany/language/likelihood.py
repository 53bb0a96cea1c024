"""How likely a model finds given text: for perplexity, and for choosing among answers. And embeddings of texts.

R conversations, M labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from egom2p.anytoany.conversations.packing import collate
from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.types import NO_LOSS, LanguageBatch, Media, PerceptionFeatures, Rendered

_BATCH_TEXTS = 32
_MAX_TOKENS = 512


@dataclass(frozen=True)
class Likelihood:
    """Of one conversation's targets: `nats` -log p of all of them, their number, and whether each was most likely."""

    nats: float
    num_tokens: int
    is_greedy: bool


def no_media(media: Media) -> PerceptionFeatures:
    raise ValueError(f"a text alone was asked for, found {media.kind} {media.ref!r}")


@torch.inference_mode()
def likelihoods(
    model: AnyToAny,
    rows: Sequence[Rendered],
    features_of: Callable[[Media], PerceptionFeatures] = no_media,
    *,
    batch_size: int = 16,
) -> list[Likelihood]:
    """Of every row, in order; rows of like length are read together."""
    found: dict[int, Likelihood] = {}
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = collate([[rows[number]] for number in part], features_of, pad_id=model.tokenizer.pad_token_id)
        losses_M, likeliest_M = (tensor.cpu() for tensor in token_answers(model, batch.to(model.device)))
        is_right_M = likeliest_M == batch.labels[batch.labels != NO_LOSS]
        ends = np.cumsum((batch.labels != NO_LOSS).sum(1).numpy())
        for number, begin, end in zip(part, [0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            own = slice(begin, end)
            found[number] = Likelihood(float(losses_M[own].double().sum()), end - begin, bool(is_right_M[own].all()))
    return [found[number] for number in range(len(rows))]


@torch.no_grad()
def token_answers(model: AnyToAny, batch: LanguageBatch, *, rows_at_once: int = 256) -> tuple[Tensor, Tensor]:
    """Cross entropy (M,) float32 and most likely token (M,) at every label, in reading order."""
    hidden_ND, labels_N = model.hidden(batch).flatten(0, 1), batch.labels.flatten()
    is_asked_N = labels_N != NO_LOSS
    losses, likeliest = [], []
    parts = zip(hidden_ND[is_asked_N].split(rows_at_once), labels_N[is_asked_N].split(rows_at_once), strict=True)
    for hidden_CD, labels_C in parts:
        logits_CV = model.logits(hidden_CD).float()
        losses.append(nn.functional.cross_entropy(logits_CV, labels_C.long(), reduction="none"))
        likeliest.append(logits_CV.argmax(-1))
    return torch.cat(losses), torch.cat(likeliest)


def continuation(model: AnyToAny, context: str, text: str) -> Rendered:
    """Plain text without a chat template; the targets are the tokens of `text`, which goes on from the context.

    Without context everything but the first token is a target, or all of it where the tokenizer has a first mark.
    """
    tokenizer = model.tokenizer
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before = tokenizer.encode(context, add_special_tokens=False) if context else []
    whole = tokenizer.encode(context + text, add_special_tokens=False)
    # Where a word goes over the border its tokens count for the text.
    common = next((n for n, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), len(before))
    ids = [*start, *whole]
    if len(ids) < 2:
        raise ValueError(f"{text!r}: has {len(ids)} tokens, the first of which nothing predicts")
    is_target = np.arange(len(ids)) >= max(1, len(start) + min(common, len(whole) - 1))
    return Rendered(np.asarray(ids, np.int32), is_target)


def own_embedding(model: AnyToAny) -> Callable[[Sequence[str]], np.ndarray]:
    """Mean last states of the model's own language model."""
    return _mean_states(model.lm.base_model, model.tokenizer)


def folder_embedding(folder: str | Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Mean last states of a text encoder in a folder of transformers (a sentence encoder, for instance)."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return _mean_states(
        AutoModel.from_pretrained(str(folder), trust_remote_code=False, use_safetensors=True).eval(), tokenizer
    )


def _mean_states(encoder: torch.nn.Module, tokenizer) -> Callable[[Sequence[str]], np.ndarray]:
    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> np.ndarray:
        device = next(encoder.parameters()).device
        means = []
        for start in range(0, len(texts), _BATCH_TEXTS):
            part = list(texts[start : start + _BATCH_TEXTS])
            read = tokenizer(part, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
            ids_BL, is_real_BL = read["input_ids"].to(device), read["attention_mask"].to(device)
            states_BLD = encoder(input_ids=ids_BL, attention_mask=is_real_BL).last_hidden_state.float()
            weights_BL1 = is_real_BL[..., None].float()
            means.append(((states_BLD * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1)).cpu().numpy())
        return np.concatenate(means)

    return embed
