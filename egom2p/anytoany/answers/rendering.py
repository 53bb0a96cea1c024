"""What the language model answers in codes, made visible: EgoM2P fills the other modalities from it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from egom2p.anytoany.answers.answer_generation import Answer
from egom2p.anytoany.codebooks import CodebookConfig, Codebooks
from egom2p.contracts import ModalitySpec, TokenClip
from egom2p.models.egom2p_model import EgoM2P
from egom2p.models.generate import generate
from egom2p.models.generation_plans import TargetPlan
from egom2p.storage import atomic_file

_KIND_OF_QUANTITY = {"rgb": "video", "depth": "depth", "gaze": "gaze", "camera": "cam"}


def codebook_of(spec: ModalitySpec) -> CodebookConfig:
    """The vocabulary's codebook for a modality of EgoM2P."""
    if spec.quantity not in _KIND_OF_QUANTITY:
        raise ValueError(f"{spec.name}: {spec.quantity} is no kind of media of the language model")
    return CodebookConfig(
        kind=_KIND_OF_QUANTITY[spec.quantity],
        modality=spec.name,
        size=spec.vocab_size,
        num_tokens=spec.num_tokens,
        fingerprint=spec.tokenizer_fingerprint,
    )


def token_clip_of(answer: Answer, codebooks: Codebooks, *, key: str) -> TokenClip:
    """Codes of an answer, as tokens of a clip; of several spans of a kind the last counts."""
    configs = {kind: codebooks.configs[kind] for kind, _ in answer.spans}
    return TokenClip(
        key,
        {configs[kind].modality: codes for kind, codes in answer.spans},
        {config.modality: config.fingerprint for config in configs.values()},
    )


def render(
    model: EgoM2P, answers: Sequence[Answer], codebooks: Codebooks, plans: Sequence[TargetPlan], seeds: Sequence[int]
) -> list[TokenClip]:
    """Clips with the codes of the answers, and the targets of the plans generated from them.

    ValueError for an answer without codes: EgoM2P would make a clip out of nothing.
    """
    prompts = [token_clip_of(answer, codebooks, key=f"answer-{number}") for number, answer in enumerate(answers)]
    for number, prompt in enumerate(prompts):
        if not prompt.tokens:
            text = answers[number].text
            raise ValueError(f"answer {number} holds no span of codes ({text!r}); there is nothing to render from")
    return generate(model, prompts, plans, seeds)


def write_tokens(clip: TokenClip, file: str | Path) -> None:
    """Codes as an .npz by modality: an input of `generate.py`."""
    with atomic_file(file) as unfinished, unfinished.open("wb") as opened:
        np.savez(opened, **clip.tokens)
