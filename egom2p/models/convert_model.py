"""A released EgoM2P checkpoint (`.pth`) -> our model directory.

    python -m egom2p.models.convert_model checkpoint=released.pth output=outputs/released

Sizes are read off the weights; what weights cannot tell (what a modality means, the number of heads) is in the config.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from egom2p.config import Count, run_main, strict
from egom2p.contracts import ModalitySpec
from egom2p.layers.blocks import sincos_positions
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.sampling import Recommendation
from egom2p.models.weights import from_reference_state_dict, save_model
from egom2p.storage import load_json
from egom2p.storage.foreign_checkpoints import foreign_weights

_PUBLISHED_HEAD_DIM = 64
_TOKENS, _POSITIONS = "encoder_embeddings.{}.token_emb.weight", "encoder_embeddings.{}.pos_emb"


@strict
class ConvertModelConfig:
    """Root schema.

    modalities    name -> fields of ModalitySpec without vocab_size; others in the checkpoint are an error
    tokenizers    modality -> folder of the tokenizer that made its tokens; their fingerprints enter the model
    num_heads     null: 64 channels per head, as all published sizes
    recommended   number of samples and sampling that the weights were measured with
    """

    checkpoint: str
    output: str
    modalities: dict[str, dict[str, Any]]
    tokenizers: dict[str, str] | None = None
    num_heads: Count | None = None
    causal_decoder: bool = False  # whether the weights are of that variant
    recommended: Recommendation | None = None


def convert_model(config: ConvertModelConfig) -> EgoM2P:
    """Write the model directory and return the model.

    ValueError names the file and what does not fit, before anything is written.
    """
    weights, _ = foreign_weights(config.checkpoint)
    try:
        size = model_config(weights, config.num_heads, causal_decoder=config.causal_decoder)
        model = EgoM2P(size, _specs(config, weights))
        from_reference_state_dict(model, weights)
    except ValueError as error:
        raise ValueError(f"{config.checkpoint}: {error}") from None
    output = Path(config.output)
    locations = {name: os.path.relpath(folder, output) for name, folder in (config.tokenizers or {}).items()}
    save_model(model, output, locations, recommended=config.recommended)
    return model


def model_config(weights: Mapping[str, Tensor], num_heads: int | None, *, causal_decoder: bool = False) -> ModelConfig:
    """Sizes of the network that published weights belong to."""
    if "mask_token" not in weights or "encoder.0.mlp.fc1.weight" not in weights:
        raise ValueError(f"not the weights of an EgoM2P; they begin with {', '.join(list(weights)[:3])}")
    dim = weights["mask_token"].shape[-1]
    is_gated = "encoder.0.mlp.fc3.weight" in weights
    mlp_dim = weights["encoder.0.mlp.fc1.weight"].shape[0]
    registers = weights.get("register_tokens")
    heads = [name for name in weights if name.startswith("decoder_embeddings.") and name.endswith("to_logits.weight")]
    return ModelConfig(
        dim=dim,
        num_heads=num_heads or max(1, dim // _PUBLISHED_HEAD_DIM),
        encoder_depth=_depth(weights, "encoder"),
        decoder_depth=_depth(weights, "decoder"),
        mlp_ratio=_mlp_ratio(mlp_dim, dim, is_gated=is_gated),
        activation="swiglu" if is_gated else "gelu",
        use_bias="encoder.0.attn.qkv.bias" in weights,
        qk_norm="encoder.0.attn.q_norm.weight" in weights,
        num_registers=0 if registers is None else registers.shape[-2],
        share_embeddings=all(
            weights[name].equal(weights[name.replace("to_logits", "token_emb")])
            for name in heads
            if name.replace("to_logits", "token_emb") in weights
        ),
        causal_decoder=causal_decoder,
    )


def _mlp_ratio(mlp_dim: int, dim: int, *, is_gated: bool) -> float:
    """The ratio that gives this width: a whole one, as all published, where there is one."""
    factor = 2 / 3 if is_gated else 1.0  # as BlockConfig.mlp_dim, rounded down there
    whole = round(mlp_dim / dim / factor)
    return float(whole) if int(factor * whole * dim) == mlp_dim else (mlp_dim + 0.5) / dim / factor


def _specs(config: ConvertModelConfig, weights: Mapping[str, Tensor]) -> tuple[ModalitySpec, ...]:
    """Modalities in alphabetical order, the published one, checked against the tables of the checkpoint."""
    prefix, suffix = _TOKENS.split("{}")
    found = {name[len(prefix) : -len(suffix)] for name in weights if name.startswith(prefix) and name.endswith(suffix)}
    if found != set(config.modalities):
        raise ValueError(f"its modalities are {sorted(found)}, the config describes {sorted(config.modalities)}")
    if unknown := set(config.tokenizers or {}) - found:
        raise ValueError(f"tokenizers names {sorted(unknown)}, its modalities are {sorted(found)}")
    return tuple(_spec(name, config, weights) for name in sorted(found))


def _spec(name: str, config: ConvertModelConfig, weights: Mapping[str, Tensor]) -> ModalitySpec:
    vocab_size, dim = weights[_TOKENS.format(name)].shape
    try:
        spec = ModalitySpec.from_dict({**config.modalities[name], "name": name, "vocab_size": vocab_size})
    except (TypeError, KeyError) as error:
        raise ValueError(f"modality {name} of the config: {error}") from None
    positions = weights.get(_POSITIONS.format(name))
    if positions is not None:
        wanted = sincos_positions(spec.grid, dim)
        positions = positions.reshape(-1, dim)
        if positions.shape != wanted.shape or not positions.float().allclose(wanted, atol=1e-4):
            raise ValueError(f"{name}: its {len(positions)} positions are not those of the grid {spec.grid.shape}")
    folder = (config.tokenizers or {}).get(name)
    if folder is None:
        return spec
    made = load_json(Path(folder) / "tokenizer.json")
    made_by = ModalitySpec.from_dict(made["spec"])
    if (made_by.name, made_by.grid, made_by.vocab_size) != (name, spec.grid, vocab_size):
        raise ValueError(
            f"{folder} makes {made_by.name} {made_by.grid.shape} of {made_by.vocab_size} ids, the checkpoint knows "
            f"{name} {spec.grid.shape} of {vocab_size}"
        )
    return spec.with_fingerprint(made["fingerprint"])


def _depth(weights: Mapping[str, Tensor], side: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith(f"{side}."))


if __name__ == "__main__":
    run_main(
        ConvertModelConfig,
        convert_model,
        default_config="default/egom2p/convert/released.yaml",
        description="Convert a released EgoM2P checkpoint to a model directory.",
    )
