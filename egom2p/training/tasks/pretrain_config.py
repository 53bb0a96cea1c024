"""Root schema of a pretraining, and what it says of modalities: the tokens of the data against their tokenizers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egom2p.config import Natural, strict
from egom2p.contracts import ModalitySpec, check_fingerprint
from egom2p.data.shards.shard_files import split_folders
from egom2p.data.unified_datasets import DataConfig, data_specs
from egom2p.layers.lora import LoraConfig
from egom2p.models.egom2p_model import ModelConfig
from egom2p.models.losses import LossType
from egom2p.models.partial_loading import LoadPolicy
from egom2p.storage.atomic import with_pretrained
from egom2p.tokenizers.pretrained import card_spec
from egom2p.training.frozen import FrozenConfig
from egom2p.training.tasks.token_evaluation import TokenEvaluationConfig
from egom2p.training.training_config import PlanConfig, TrainingConfig


@strict
class PretrainConfig:
    """Root schema of `run_training_egom2p.py`.

    tokenizers        modality -> folder of the tokenizer that made its tokens, below `tokenizers_root` if that is
                      given. Every modality of the data needs an entry; they are compared with the data and copied into
                      the exported model. null: tokens only, the model then knows no tokenizer
    finetune          model to start from: folder of a model or of a run, or id of the Hub
    finetune_policy   strict: same modalities, same sizes, same mathematics. partial: whatever fits, the rest is
                      reported key by key and starts fresh (new modalities, more blocks)
    lora              train adapters only, on top of `finetune`; checkpoints and `final` hold the merged model, and the
                      adapters beside it in `adapter/`
    frozen            a first phase in which only embeddings and heads train
    evaluate_only     a model (as for `finetune`): measure it on `data.validation`, write <output_dir>/evaluation.json,
                      and train nothing
    licence           of the weights, for their card
    dry_run           check everything and tell what the run would cost under the assumptions of `plan`; train nothing
    """

    output_dir: str
    seed: Natural = 0
    model: ModelConfig
    loss: LossType = "mod"  # weighted_mod: modalities on one scale whatever their vocabulary
    finetune: str | None = None
    finetune_policy: LoadPolicy = "strict"
    lora: LoraConfig | None = None
    frozen: FrozenConfig | None = None
    evaluate_only: str | None = None
    licence: str | None = None
    tokenizers_root: str | None = None
    tokenizers: dict[str, str] | None = None
    data: DataConfig
    evaluation: TokenEvaluationConfig = TokenEvaluationConfig()
    training: TrainingConfig
    dry_run: bool = False
    plan: PlanConfig = PlanConfig()

    def __post_init__(self) -> None:
        if self.lora is not None and self.finetune is None:
            raise ValueError("lora trains adapters of a trained model; say which with finetune")
        if self.lora is not None and self.frozen is not None:
            raise ValueError("lora freezes the model for good, frozen for a while; choose one")

    @property
    def tokenizer_folders(self) -> dict[str, Path] | None:
        if self.tokenizers is None:
            return None
        root = self.tokenizers_root or ""
        return {name: with_pretrained(Path(root, folder)) for name, folder in self.tokenizers.items()}


def resolve_specs(data: DataConfig, tokenizers: Mapping[str, Path] | None) -> tuple[ModalitySpec, ...]:
    """Modalities of the data, in the model's order, with the fingerprints of the named tokenizers.

    ValueError for a modality without tokenizer, a tokenizer without modality or with other tokens; TokenizerMismatch
    when the data was made by another tokenizer.
    """
    specs = data_specs(data)
    if tokenizers is None:
        return specs
    names = {spec.name for spec in specs}
    if names - set(tokenizers):
        raise ValueError(
            f"modality {sorted(names - set(tokenizers))[0]} of the data has no tokenizer; `tokenizers` names "
            f"{sorted(tokenizers)}. Add its folder, or say tokenizers=null to train on tokens alone"
        )
    if set(tokenizers) - names:
        raise ValueError(f"tokenizer {sorted(set(tokenizers) - names)[0]} has no modality in the data {sorted(names)}")
    return tuple(_matched(spec, tokenizers[spec.name], _shards_of(spec, data)) for spec in specs)


def _shards_of(spec: ModalitySpec, data: DataConfig) -> str:
    """Pattern of the first data set that has a modality, for messages."""
    for dataset in data.datasets.values():
        if (dataset.folder_names or {}).get(spec.name, spec.folder) in split_folders(dataset.shards):
            return dataset.shards
    return "the data"


def _matched(spec: ModalitySpec, folder: Path, shards: str) -> ModalitySpec:
    made = card_spec(folder)
    for field, found, wanted in differing_fields(made, spec):
        raise ValueError(f"{folder}: the tokenizer makes {field} {found}, {spec.name} in {shards} has {wanted}")
    check_fingerprint(
        spec.name,
        found=spec.tokenizer_fingerprint,
        wanted=made.tokenizer_fingerprint,
        where=f"{shards}, with {folder} for {spec.name}",
    )
    return spec.with_fingerprint(made.tokenizer_fingerprint)


def differing_fields(made: ModalitySpec, spec: ModalitySpec) -> list[tuple[str, Any, Any]]:
    """(field, the tokenizer's, the data's) wherever tokens of the two cannot be the same."""
    pairs = [
        (name, getattr(made, name), getattr(spec, name))
        for name in ("name", "kind", "grid", "vocab_size", "patch_shape")
    ]
    return [(name, found, wanted) for name, found, wanted in pairs if found != wanted]


def token_identity(spec: ModalitySpec) -> tuple[str, tuple[int, ...], int, str | None]:
    """What must agree for the tokens of two models to mean the same."""
    return spec.name, spec.grid.shape, spec.vocab_size, spec.tokenizer_fingerprint
