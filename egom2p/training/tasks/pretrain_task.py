"""Pretraining of EgoM2P on token shards: its root schema and its task for the loop."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egom2p.contracts import LossOutput, PackedBatch
from egom2p.data.unified_datasets import STREAMING, TokenLoader
from egom2p.jobs.workers import choose_dtype
from egom2p.layers.lora import adapter_settings, attach_lora, lora_state, merged_state
from egom2p.models.egom2p_model import EgoM2P, load_model
from egom2p.models.losses import combine_losses
from egom2p.models.partial_loading import load_weights
from egom2p.models.weights import card_specs, find_model, write_model_files
from egom2p.storage import save_json, save_tensors
from egom2p.tokenizers.pretrained import copy_tokenizer
from egom2p.training.checkpoint import read_state
from egom2p.training.distributed import Ranks, autocast, ranks_of_launch
from egom2p.training.frozen import FrozenConfig, FrozenPhase, trained_lines
from egom2p.training.loop import FitResult, train
from egom2p.training.planning.plan import dry_run
from egom2p.training.run_folder import has_checkpoint, local_folder
from egom2p.training.run_log import show_measurements
from egom2p.training.schedule import Progress
from egom2p.training.task import BatchSize, Measurement, Task, seeded
from egom2p.training.tasks.pretrain_config import PretrainConfig, resolve_specs, token_identity
from egom2p.training.tasks.token_evaluation import TokenEvaluation
from egom2p.training.throughput import ModelFlops

_TOKENIZERS = "tokenizers"


def pretrain(
    config: PretrainConfig, make_task: Callable[[PretrainConfig, Ranks], "PretrainTask"] | None = None
) -> FitResult:
    """Train, evaluate and write `<output_dir>/final`; ends the process with a code when a signal stopped it.

    make_task   of a study that trains the model in another way; None: `PretrainTask`
    """
    if config.dry_run:
        dry_run(config)
        return FitResult(Progress(), 0, ())
    if config.evaluate_only is not None:
        with ranks_of_launch(config.training.device) as ranks:
            return FitResult(Progress(), 0, evaluate_model(config, ranks))
    return train(config, make_task or PretrainTask)


class PretrainTask(Task):
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
            batch_tokens=config.training.batch_tokens,
        )
        measuring = {"batch_size": batch_size, "num_registers": num_registers, "seed": config.seed, "ranks": ranks}
        self.evaluation = TokenEvaluation(config.evaluation, config.data, self.specs, **measuring)
        self.notes = self.loader.notes
        if config.training.keep_best is not None:
            self.evaluation.check_name(config.training.keep_best)
        with seeded(config.seed, 0):
            self.egom2p = EgoM2P(config.model, self.specs)
        self.num_train_clips = sum(self.loader.num_clips.values())
        self.measurements: tuple[Measurement, ...] = ()
        # A run that resumes has all weights in its checkpoint; where it started from may be gone.
        if config.finetune is not None and not has_checkpoint(config.output_dir, config.training.scratch_dir):
            self._start_from(config.finetune, is_first=ranks.is_first)
        if config.lora is not None:
            with seeded(config.seed, 2):
                attach_lora(self.egom2p, config.lora)
        self.model: nn.Module = self.egom2p
        self._flops = ModelFlops(self.egom2p)
        if config.frozen is not None:
            self._begin_frozen(config.frozen)

    def data_identity(self) -> dict[str, Any]:
        return self.loader.identity()

    def batches(self, first_clip: int) -> Iterator[PackedBatch]:
        return self.loader.batches(first_clip)

    def counts(self, batch: PackedBatch) -> tuple[int, ...]:
        return batch.head_counts

    def size(self, batch: PackedBatch) -> BatchSize:
        num_register_rows = self.config.model.num_registers * batch.num_clips  # rows of the encoder, no tokens
        return BatchSize(
            clips=batch.num_clips,
            tokens=batch.num_tokens - num_register_rows,
            token_budget=batch.token_budget,
            flops=self._flops.training(batch),
            rows=batch.num_rows - num_register_rows if batch.num_filler_clips else 0,
            trimmed=batch.num_trimmed,
        )

    def loss(self, model: nn.Module, batch: PackedBatch) -> LossOutput:
        return model(batch)

    def combine(self, sums: Tensor, denominators: tuple[int, ...]) -> Tensor:
        return combine_losses(
            sums,
            denominators,
            loss_type=self.config.loss,
            vocab_sizes=self.egom2p.vocab_sizes,
            reference_denominator=self.config.training.reference_denominator,
        )

    def evaluate(self, model: nn.Module) -> Iterable[Measurement]:
        self.measurements = tuple(self.evaluation.measure(model))
        return self.measurements

    def check_checkpoint(self, directory: Path) -> None:
        found, now = ([token_identity(spec) for spec in specs] for specs in (card_specs(directory), self.specs))
        if found != now:
            raise ValueError(
                f"{directory} was trained on {found}, but the data now holds {now}; choose another output_dir or "
                "remove the old run"
            )
        before, now = read_state(directory)["data"].get(STREAMING), self.data_identity().get(STREAMING)
        if before != now:
            how = f"streaming_lanes={before.get('lanes')} and the same batch size" if before else "access=indexed"
            raise ValueError(
                f"{directory}: found streaming of {before}, wanted {now}: clips would be lost or seen twice; "
                f"continue with data.{how}"
            )

    def export(self, directory: Path) -> None:
        sources = self.config.tokenizer_folders or {}
        for name, source in sources.items():
            copy_tokenizer(source, directory / _TOKENIZERS / name)
        state = self.weights_to_export()
        if self.config.lora is not None:
            save_tensors(directory / "adapter" / "adapter_model.safetensors", lora_state(self.egom2p))
            save_json(directory / "adapter" / "adapter_config.json", adapter_settings(self.egom2p))
        locations = {name: f"{_TOKENIZERS}/{name}" for name in sources}
        write_model_files(self.egom2p, directory, locations, state=state, about=self._about())

    def weights_to_export(self) -> Mapping[str, Tensor]:
        """The model's state dict (adapters merged), by way of the trained module: it may show an average instead."""
        return self.egom2p.state_dict() if self.config.lora is None else merged_state(self.egom2p)

    def _about(self) -> dict[str, Any]:
        """What the model card tells."""
        config = self.config
        return {
            "licence": config.licence,
            "training_data": {name: dataset.weight for name, dataset in config.data.datasets.items()},
            "started_from": config.finetune,
            "seed": config.seed,
            "measured": [
                {
                    "task": item.group,
                    "modality": item.name,
                    "nats": item.value,
                    "unigram_baseline": item.unigram_baseline,
                }
                for item in self.measurements
            ],
        }

    def _begin_frozen(self, frozen: FrozenConfig) -> None:
        training = self.config.training
        length = training.length(self.num_train_clips)
        until = training.in_units(length, frozen.until)
        what = frozen.train if isinstance(frozen.train, str) else f"embeddings of {', '.join(frozen.train)}"
        self.notes = (*self.notes, f"until {until:g} {length.unit} only {what} train")
        self.frozen = FrozenPhase(trained_lines(self.egom2p, self.specs, frozen.train), until=until)

    def _start_from(self, location: str, *, is_first: bool) -> None:
        report = load_weights(self.egom2p, find_model(location), policy=self.config.finetune_policy)
        self.notes = (*self.notes, *report.lines())
        if is_first:
            folder = local_folder(self.config.output_dir, self.config.training.scratch_dir)
            save_json(folder / "finetune.json", report.to_dict())


def evaluate_model(config: PretrainConfig, ranks: Ranks) -> tuple[Measurement, ...]:
    """Measure the model `config.evaluate_only` on the validation sets, shared out over ranks.

    The model may know more modalities than the data has, not fewer; ValueError where their tokens differ.
    """
    folder = find_model(config.evaluate_only)
    model = load_model(folder, ranks.device)
    known = {token_identity(spec) for spec in model.specs}
    for spec in resolve_specs(config.data, config.tokenizer_folders):
        if token_identity(spec) not in known:
            raise ValueError(f"{folder} was trained on {sorted(known)}; the data holds {token_identity(spec)}")
    if not config.data.validation:
        raise ValueError("evaluate_only measures data.validation, which names no set")
    evaluation = TokenEvaluation(
        config.evaluation,
        config.data,
        model.specs,
        batch_size=config.training.batch_size,
        num_registers=model.config.num_registers,
        seed=config.seed,
        ranks=ranks,
    )
    with torch.no_grad(), autocast(ranks.device, choose_dtype(config.training.dtype, ranks.device)):
        measurements = tuple(evaluation.measure(model))
    if not measurements:
        raise ValueError("the validation sets gave no target; nothing was measured")
    if ranks.is_first:
        show_measurements(str(folder), measurements)
        # JSON knows no NaN: a mean over nothing is null.
        rows = [{key: _finite_or_none(value) for key, value in asdict(item).items()} for item in measurements]
        output_dir = local_folder(config.output_dir, config.training.scratch_dir)
        save_json(output_dir / "evaluation.json", {"model": str(folder), "measurements": rows})
    return measurements


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
