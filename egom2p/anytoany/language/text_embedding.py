"""Embeddings of texts by a local encoder, for comparing answers by meaning."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from egom2p.anytoany.model import AnyToAny

_BATCH_TEXTS = 32
_MAX_TOKENS = 512


def own_embedding(model: AnyToAny) -> Callable[[Sequence[str]], np.ndarray]:
    """Mean last states of the model's own language model."""
    return _mean_states(model.lm.base_model, model.tokenizer)


def folder_embedding(folder: str | Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Mean last states of a text encoder in a folder of transformers (a sentence encoder, for instance)."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return _mean_states(AutoModel.from_pretrained(str(folder)).eval(), tokenizer)


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
