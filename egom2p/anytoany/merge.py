"""A trained model as a plain language model: `python -m egom2p.anytoany.merge model=<directory> output=<folder>`.

The folder is read back by plain transformers, and must give the same logits for spliced embeddings as the model did.
"""

import sys

import torch

from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.saving import load_anytoany, save_merged
from egom2p.config import NotNegative, run_main, strict

_NUM_POSITIONS = 24
_TOLERANCE, _TOLERANCE_OF_HALVES = 1e-5, 5e-2


@strict
class MergeConfig:
    """What is merged, and where to.

    model       any-to-any directory
    output      folder for the plain language model
    tolerance   largest difference of a logit, times the largest logit where that is above 1; null: 1e-5 in float32,
                5e-2 in half precision, where adapter and weights summed are rounded to 3 digits
    """

    model: str
    output: str
    tolerance: NotNegative | None = None


@torch.inference_mode()
def merge(config: MergeConfig) -> float:
    """Write the merged model; returns the largest difference found. ValueError where it is above the tolerance."""
    from transformers import AutoModelForCausalLM

    model = load_anytoany(config.model)
    ids_1T, embeddings_1TD = _probe(model)
    before = _logits(model, embeddings_1TD)
    save_merged(model, config.output)
    plain = AutoModelForCausalLM.from_pretrained(
        config.output, dtype=model.lm.dtype, trust_remote_code=False, use_safetensors=True
    ).eval()
    of_embeddings = plain(inputs_embeds=embeddings_1TD, use_cache=False).logits[..., : before.shape[-1]]
    of_ids = (plain.get_input_embeddings()(ids_1T) - embeddings_1TD).abs().max()
    largest = max(1.0, before.abs().max().item())
    difference = max((of_embeddings - before).abs().max().item(), of_ids.item()) / largest
    usual = _TOLERANCE if model.lm.dtype == torch.float32 else _TOLERANCE_OF_HALVES
    tolerance = usual if config.tolerance is None else config.tolerance
    if not difference <= tolerance:
        raise ValueError(f"{config.output}: the merged model differs by {difference:.2e}, wanted {tolerance:.0e}")
    return difference


def _probe(model: AnyToAny) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (1, T) of known and of new tokens, and their embeddings (1, T, D) in the model."""
    last = len(model.tokenizer) - 1
    ids_1T = torch.linspace(0, last, _NUM_POSITIONS, device=model.device).round().long()[None]
    return ids_1T, model.embed_ids(ids_1T)


def _logits(model: AnyToAny, embeddings_1TD: torch.Tensor) -> torch.Tensor:
    """The model's own (1, T, V), of all tokens that it may emit.

    New tokens may stand in rows that the language model had to spare; those that never come out end the count.
    """
    logits_1TV = model.logits(model.lm.base_model(inputs_embeds=embeddings_1TD, use_cache=False).last_hidden_state)
    is_never_emitted = model.new_tokens is not None and model.new_tokens.emitted_rows() is None
    return logits_1TV[..., : model.media_id if is_never_emitted else len(model.tokenizer)]


def main(config: MergeConfig) -> None:
    difference = merge(config)
    sys.stdout.write(f"{config.output}: a plain language model; logits differ by at most {difference:.1e}\n")


if __name__ == "__main__":
    run_main(MergeConfig, main, default_config="default/anytoany/merge.yaml", description=str(__doc__))
