"""Pretraining of EgoM2P on token shards: its root schema and its task for the loop."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from egom2p.config import strict, to_plain
from egom2p.contracts import LossOutput, ModalitySpec, PackedBatch, check_fingerprint
from egom2p.data.shard_paths import split_folders
from egom2p.data.unified_datasets import DataConfig, TokenLoader, data_specs
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.losses import LossType, combine_losses
from egom2p.models.weights import load_model, write_model_files
from egom2p.storage import load_json
from egom2p.training.distributed import Ranks, ranks_of_launch
from egom2p.training.interruption import end_if_stopped
from egom2p.training.loop import FitResult, fit
from egom2p.training.randomness import seeded
from egom2p.training.task import BatchSize, Measurement
from egom2p.training.token_evaluation import TokenEvaluation, TokenEvaluationConfig
from egom2p.training.training_config import TrainingConfig

_TOKENIZERS = "tokenizers"


@strict
class PretrainConfig:
    """Root schema of `run_training_egom2p.py`.

    tokenizers        modality -> folder of the tokenizer that made its tokens, below `tokenizers_root` if that is
                      given. Every modality of the data needs an entry; they are compared with the data and copied into
                      the exported model. null: tokens only, the model then knows no tokenizer
    finetune          folder of a model to start from; it must have the same modalities and sizes
    """

    output_dir: str
    seed: int = 0
    model: ModelConfig
    loss: LossType = "mod"
    finetune: str | None = None
    tokenizers_root: str | None = None
    tokenizers: dict[str, str] | None = None
    data: DataConfig
    evaluation: TokenEvaluationConfig = TokenEvaluationConfig()
    training: TrainingConfig

    @property
    def tokenizer_folders(self) -> dict[str, Path] | None:
        if self.tokenizers is None:
            return None
        return {name: Path(self.tokenizers_root or "", folder) for name, folder in self.tokenizers.items()}


def pretrain(config: PretrainConfig) -> FitResult:
    """Train, evaluate and write `<output_dir>/final`; ends the process with a code when a signal stopped it."""
    with ranks_of_launch(config.training.device) as ranks:
        task = PretrainTask(config, ranks)
        result = fit(
            task,
            config.training,
            output_dir=config.output_dir,
            ranks=ranks,
            seed=config.seed,
            settings=to_plain(config),
            num_train_clips=sum(task.loader.num_clips.values()),
        )
    end_if_stopped(result.stopped_by)
    return result


class PretrainTask:
    """EgoM2P on a mixture of token sets as the loop's `Task`."""

    def __init__(self, config: PretrainConfig, ranks: Ranks) -> None:
        self.config = config
        self.specs = resolve_specs(config.data, config.tokenizer_folders)
        batch_size, num_registers = config.training.batch_size, config.model.num_registers
        self.loader = TokenLoader(
            config.data,
            self.specs,
            batch_size=batch_size,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            num_workers=config.training.num_workers,
            num_registers=num_registers,
            pin_memory=ranks.device.type == "cuda",
        )
        self.evaluation = TokenEvaluation(
            config.evaluation,
            config.data,
            self.specs,
            batch_size=batch_size,
            num_registers=num_registers,
            seed=config.seed,
            ranks=ranks,
        )
        with seeded(config.seed, 0):
            self._egom2p = EgoM2P(config.model, self.specs)
        if config.finetune is not None:
            _start_from(self._egom2p, config.finetune)
        self.model: nn.Module = self._egom2p

    def batches(self, first_clip: int) -> Iterator[PackedBatch]:
        return self.loader.batches(first_clip)

    def counts(self, batch: PackedBatch) -> tuple[int, ...]:
        return batch.head_counts

    def size(self, batch: PackedBatch) -> BatchSize:
        return BatchSize(clips=batch.num_clips, tokens=batch.num_tokens, slots=batch.num_slots)

    def loss(self, model: nn.Module, batch: PackedBatch) -> LossOutput:
        return model(batch)

    def combine(self, sums: Tensor, denominators: tuple[int, ...]) -> Tensor:
        return combine_losses(
            sums,
            denominators,
            loss_type=self.config.loss,
            vocab_sizes=self._egom2p.vocab_sizes,
            reference_denominator=self.config.training.reference_denominator,
        )

    def after_step(self) -> None:
        """Nothing: all state is in weights and optimizer."""

    def evaluate(self, model: nn.Module) -> Iterable[Measurement]:
        return self.evaluation.measure(model)

    def check_checkpoint(self, directory: Path) -> None:
        found = [ModalitySpec.from_dict(values) for values in load_json(directory / "model.json")["modalities"]]
        if [_identity(spec) for spec in found] != [_identity(spec) for spec in self.specs]:
            raise ValueError(
                f"{directory} was trained on {[_identity(spec) for spec in found]}, but the data now holds "
                f"{[_identity(spec) for spec in self.specs]}; choose another output_dir or remove the old run"
            )

    def export(self, directory: Path) -> None:
        sources = self.config.tokenizer_folders or {}
        for name, source in sources.items():
            copy_tokenizer(source, directory / _TOKENIZERS / name)
        write_model_files(self._egom2p, directory, {name: f"{_TOKENIZERS}/{name}" for name in sources})


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


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer folder; weights share their disk space where the file system can (files are never rewritten)."""
    target.mkdir(parents=True)
    for file in sorted(path for path in source.iterdir() if path.is_file()):
        if file.suffix == ".safetensors":
            try:
                os.link(file, target / file.name)
                continue
            except OSError:
                pass  # another disk, or a file system without links
        shutil.copy2(file, target / file.name)


def _shards_of(spec: ModalitySpec, data: DataConfig) -> str:
    """Pattern of the first data set that has a modality, for messages."""
    for dataset in data.datasets.values():
        if (dataset.folder_names or {}).get(spec.name, spec.folder) in split_folders(dataset.shards):
            return dataset.shards
    return "the data"


def _matched(spec: ModalitySpec, folder: Path, shards: str) -> ModalitySpec:
    card = load_json(folder / "tokenizer.json")
    made = ModalitySpec.from_dict(card["spec"])
    for field in ("name", "kind", "grid", "vocab_size"):
        if getattr(made, field) != getattr(spec, field):
            raise ValueError(
                f"{folder}: the tokenizer makes {field} {getattr(made, field)}, {spec.name} in {shards} has "
                f"{getattr(spec, field)}"
            )
    check_fingerprint(
        spec.name,
        found=spec.tokenizer_fingerprint,
        wanted=card["fingerprint"],
        where=f"{shards}, with {folder} for {spec.name}",
    )
    return spec.with_fingerprint(card["fingerprint"])


def _identity(spec: ModalitySpec) -> tuple[str, tuple[int, ...], int, str | None]:
    return spec.name, spec.grid.shape, spec.vocab_size, spec.tokenizer_fingerprint


def _start_from(model: EgoM2P, directory: str) -> None:
    source = load_model(directory)
    if source.specs != model.specs or source.config != model.config:
        raise ValueError(
            f"{directory}: the model to start from has modalities {[_identity(spec) for spec in source.specs]} and "
            f"{source.config}; wanted {[_identity(spec) for spec in model.specs]} and {model.config}"
        )
    model.load_state_dict(source.state_dict())
