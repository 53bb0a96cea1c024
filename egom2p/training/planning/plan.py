"""Dry run of a training: the whole plan checked and reported before a GPU is touched, in seconds, on any machine.

N input rows and M target rows of a clip.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from egom2p.config import cfgs_root, from_plain, load_plain
from egom2p.contracts import MaskedClip, ModalitySpec, TokenClip
from egom2p.data.clip_order import clip_rng
from egom2p.data.clips.clip_store import ClipStore
from egom2p.data.collate import collate
from egom2p.data.masking import UnifiedMasking
from egom2p.data.unified_datasets import DatasetConfig
from egom2p.layers.lora import attach_lora
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.partial_loading import load_weights
from egom2p.models.weights import find_model
from egom2p.storage import is_remote
from egom2p.tokenizers.pretrained import build_network
from egom2p.training.parallel import check_parallel
from egom2p.training.planning.plan_checks import (
    DatasetFacts,
    check_dataset,
    check_room,
    check_tokenizers,
    modalities_of,
    planned_specs,
)
from egom2p.training.planning.plan_report import Plan, report_plan
from egom2p.training.planning.training_memory import (
    ClipRows,
    TrainingMemory,
    count_parameters,
    model_without_weights,
    states,
)
from egom2p.training.run_folder import FINAL, has_checkpoint, local_folder
from egom2p.training.schedule import Length
from egom2p.training.task import seeded
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.tokenizer_config import ClipSourceConfig, TokenizerTrainingConfig
from egom2p.training.throughput import ModelFlops

_DRAWS = 64  # maskings drawn of each data set
_SIZES = ("tiny", "small", "base", "large", "xlarge")


def dry_run(config: PretrainConfig) -> None:
    """Print the plan; ValueError that lists every problem when the run could not start. Only rank 0 speaks."""
    report_plan(plan_pretraining(config))


def plan_pretraining(config: PretrainConfig) -> Plan:
    """Everything that can be known of a run without a device and without its data."""
    plan = Plan(config.output_dir, num_gpus=config.plan.num_gpus or int(os.environ.get("WORLD_SIZE", "1")))
    config = replace(config, training=config.training.shared_by(plan.num_gpus))
    specs, source = planned_specs(config.data, config.tokenizer_folders)
    plan.facts.append(("modalities", f"{', '.join(spec.name for spec in specs) or 'unknown'} (known from {source})"))
    _check_data(plan, config, specs)
    _check_run(plan, config, specs)
    if specs:
        plan.problems += check_tokenizers(config.tokenizer_folders, specs)
        _add_cost(plan, config, specs)
    return plan


def _check_data(plan: Plan, config: PretrainConfig, specs: tuple[ModalitySpec, ...]) -> None:
    for prefix, datasets in (("", config.data.datasets), ("validation ", config.data.validation)):
        for name, dataset in datasets.items():
            facts, problems = check_dataset(f"{prefix}{name}", dataset, specs, verify_shards=config.plan.verify_shards)
            plan.problems += problems
            plan.datasets.append(facts)
    readers = plan.num_gpus * max(1, config.training.num_workers)
    train = [facts for facts in plan.datasets[: len(config.data.datasets)] if facts.weight > 0]
    num_shards = sum(facts.num_shards for facts in train)
    if 0 < num_shards < readers:
        plan.notes.append(
            f"{num_shards} shards for {readers} reading processes: several read the same file at a time, which a local "
            f"disk bears and an object store may not"
        )
    per_step = _clips_per_step(config, plan.num_gpus)
    for facts in train:
        if 0 < facts.num_clips < per_step * facts.weight / sum(other.weight for other in train):
            plan.notes.append(f"{facts.name}: {facts.num_clips} clips are less than its share of one step")


def _check_run(plan: Plan, config: PretrainConfig, specs: tuple[ModalitySpec, ...]) -> None:
    training = config.training
    try:
        check_parallel(training.parallel, plan.num_gpus)
    except ValueError as error:
        plan.problems.append(str(error))
    _check_folder(plan, config)
    for name in ("finetune", "evaluate_only"):
        location = getattr(config, name)
        if location is None:
            continue
        if is_remote(location) or not Path(location).exists() and location.count("/") == 1:
            plan.notes.append(f"{name}={location} is not on this machine; a dry run does not fetch it")
            continue
        try:
            folder = find_model(location)
            if name == "finetune" and specs:
                report = load_weights(model_without_weights(config.model, specs), folder, policy=config.finetune_policy)
                plan.notes += report.lines()
        except (ValueError, OSError) as error:
            plan.problems.append(f"{name}: {error}")


def _check_folder(plan: Plan, config: PretrainConfig | TokenizerTrainingConfig) -> None:
    """What lies in `output_dir` already."""
    folder = local_folder(config.output_dir, config.training.scratch_dir)
    if (folder / FINAL).is_dir():
        plan.notes.append(f"{folder / FINAL} exists: the run is finished, nothing would be trained")
    elif has_checkpoint(config.output_dir, config.training.scratch_dir):
        if config.training.resume:
            plan.notes.append(f"{folder} has checkpoints: the run would continue from the newest")
        else:
            plan.problems.append(f"{folder} has checkpoints, and training.resume is false: choose another output_dir")


def _add_cost(plan: Plan, config: PretrainConfig, specs: tuple[ModalitySpec, ...]) -> None:
    training = config.training
    try:
        drawn = list(_draw_clips(config, specs))
    except ValueError as error:
        plan.problems.append(str(error))
        return
    model = _planned_model(config, specs, config.model)
    weights = [weight for weight, _, _ in drawn]
    inputs = _average([_rows(clip.input_ids) for _, _, clip in drawn], weights)
    targets = _average([_rows(clip.target_ids) for _, _, clip in drawn], weights)
    budget = float(np.average([dataset.token_budget for _, dataset, _ in drawn], weights=weights))
    flops = _average_flops(model, [clip for _, _, clip in drawn], weights)
    tokens = sum(inputs.values()) + sum(targets.values())
    per_step = _clips_per_step(config, plan.num_gpus, tokens_per_clip=tokens)
    num_clips = sum(facts.num_clips for facts in plan.datasets[: len(config.data.datasets)])
    plan.facts += [
        ("parameters", f"{count_parameters(model, training.optimizer).trainable / 1e6:.1f} M"),
        (
            "a clip",
            f"{sum(inputs.values()):.0f} input + {sum(targets.values()):.0f} target tokens of a budget of {budget:.0f}",
        ),
        (
            "FLOPs",
            f"{flops / 1e12:.3g} T per clip, {flops / max(tokens, 1e-9) / 1e9:.3g} G per token, backward included",
        ),
        ("a step", f"{per_step:.0f} clips, {per_step * tokens:,.0f} tokens on {plan.num_gpus} devices"),
    ]
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    room, problem = check_room(local_folder(config.output_dir, training.scratch_dir), num_parameters, training)
    plan.facts.append(("checkpoints", room))
    plan.problems += [problem] if problem else []
    try:
        length = training.length(num_clips or None)
    except ValueError as error:
        plan.problems.append(str(error))
    else:
        amount, steps = _steps_of(length, clips=per_step, tokens=per_step * tokens, token_budget=per_step * budget)
        rate = training.learning_rate(length, plan.num_gpus)
        clips = steps * per_step
        plan.facts += [
            ("learning rate", f"{rate.peak:.3g}, warm-up of {length.warmup / amount:,.0f} steps"),
            ("the run", f"{steps:,.0f} steps, a token budget of {clips * budget:.3g}, {clips * tokens:.3g} tokens"),
            ("hours", _hours(config, clips * flops, plan.num_gpus)),
        ]
        if num_clips:
            plan.facts.append(("epochs", f"{clips / num_clips:.3g} of {num_clips:,} clips"))
    _add_memory(plan, config, specs, _full_rows(config, specs, inputs, targets))


def _steps_of(length: Length, **per_step: float) -> tuple[float, float]:
    """What one step is worth in the unit of the length, and how many steps that makes."""
    amount = max({"steps": 1, **per_step}[length.unit], 1e-9)
    return amount, -(-length.total // amount)


def _hours(config: PretrainConfig, flops: float, num_gpus: int) -> str:
    peak, mfu = config.plan.peak_tflops, config.plan.mfu
    hours = flops / (num_gpus * peak * 1e12 * mfu) / 3600
    return (
        f"{_readable(hours)} ({_readable(hours * num_gpus)} device hours) if {mfu:.0%} of {peak:g} TFLOP/s are "
        f"reached; evaluation and checkpoints not counted"
    )


def _readable(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _add_memory(plan: Plan, config: PretrainConfig, specs: tuple[ModalitySpec, ...], rows: ClipRows) -> None:
    """Footprints of this run, and the most clips per device for every size and device memory."""
    num_shards = config.training.parallel.shard_size or max(plan.num_gpus, 2)
    # Plans are made on any machine, for GPUs.
    is_compiled = config.training.compile is not False
    ways = {
        "DDP": {},
        "DDP, recomputed": {"recompute": True},
        f"FSDP over {num_shards}": {"num_shards": num_shards},
        f"FSDP over {num_shards}, recomputed": {"num_shards": num_shards, "recompute": True},
        **({"DDP, MLP recomputed": {"recompute": "mlp"}} if is_compiled else {}),
    }
    sizes = _sizes(config.model) if config.plan.memory_gb else {}
    for name, size in {"this run": config.model, **sizes}.items():
        memory = TrainingMemory(
            partial(_planned_model, config, specs),
            size,
            rows,
            config.training.optimizer,
            has_average=config.training.ema is not None,
            is_mixed=config.training.dtype != "fp32",
            is_compiled=is_compiled,
        )
        if name == "this run":
            num_clips = _clips_per_device(config, rows)
            plan.footprints = {way: memory.footprint(num_clips, **options) for way, options in ways.items()}
        plan.memory[name] = {
            gigabytes: {way: memory.most_clips(gigabytes, **options) for way, options in ways.items()}
            for gigabytes in config.plan.memory_gb
        }


def _sizes(config: ModelConfig) -> dict[str, ModelConfig]:
    """The ladder of sizes, with the options of this run."""
    folder = cfgs_root() / "default" / "egom2p" / "models" / "size"
    found = {}
    for name in _SIZES:
        values = load_plain(folder / f"{name}.yaml")
        size = from_plain(ModelConfig, values, where=name)
        found[name] = replace(
            config, **{key: getattr(size, key) for key in ("dim", "encoder_depth", "decoder_depth", "num_heads")}
        )
    return found


def _draw_clips(
    config: PretrainConfig, specs: tuple[ModalitySpec, ...]
) -> Iterator[tuple[float, DatasetConfig, MaskedClip]]:
    """Maskings as training would draw them, of clips whose ids are all 0, with the weight of their data set."""
    for name, dataset in config.data.datasets.items():
        present = modalities_of(dataset, specs)
        if not present:
            raise ValueError(f"{name}: {dataset.shards} lists no folder of {[spec.folder for spec in specs]}")
        masking = UnifiedMasking(specs, dataset)
        masking.check([spec.name for spec in present], where=f"data set {name}")
        clip = TokenClip(name, {spec.name: spec.filled(0) for spec in present})
        for number in range(_DRAWS if dataset.weight > 0 else 0):
            yield dataset.weight / _DRAWS, dataset, masking(clip, clip_rng(config.seed, f"plan of {name}", number))


def _rows(sides) -> dict[str, int]:
    return {name: len(ids) for name, ids in sides.items()}


def _average(rows: list[dict[str, int]], weights: list[float]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row})
    return {name: float(np.average([row.get(name, 0) for row in rows], weights=weights)) for name in names}


def _average_flops(model: EgoM2P, clips: list[MaskedClip], weights: list[float]) -> float:
    flops = ModelFlops(model)
    batches = [collate([clip], model.specs, model.config.num_registers, 0) for clip in clips]
    return float(np.average([flops.training(batch) for batch in batches], weights=weights))


def _planned_model(config: PretrainConfig, specs: tuple[ModalitySpec, ...], size: ModelConfig) -> EgoM2P:
    """The model as it would train, adapters attached, without weights."""
    model = model_without_weights(size, specs)
    if config.lora is not None:
        with seeded(config.seed, 2):
            attach_lora(model, config.lora)
    return model


def _full_rows(
    config: PretrainConfig, specs: tuple[ModalitySpec, ...], inputs: dict[str, float], targets: dict[str, float]
) -> ClipRows:
    """A clip whose budgets are full: what memory must hold in the worst step. Shares of modalities as drawn."""
    datasets = [dataset for dataset in config.data.datasets.values() if dataset.weight > 0]
    most_targets, total = max(dataset.max_target_tokens for dataset in datasets), sum(targets.values())
    shares = {name: count / max(total, 1e-9) * most_targets for name, count in targets.items()}
    most_inputs, total = max(dataset.max_input_tokens for dataset in datasets), sum(inputs.values())
    names = [spec.name for spec in specs if spec.kind == "patches"]
    patches = {name: inputs.get(name, 0) / max(total, 1e-9) * most_inputs for name in names}
    return ClipRows(most_inputs, shares, patches)


def _clips_per_device(config: PretrainConfig, rows: ClipRows) -> int:
    training = config.training
    if training.batching == "clips":
        return training.batch_size
    return max(1, round(training.batch_tokens / (rows.inputs + rows.num_targets)))


def _clips_per_step(config: PretrainConfig, num_gpus: int, *, tokens_per_clip: float = 0.0) -> float:
    training = config.training
    per_device: float = training.batch_size
    if training.batching == "tokens" and tokens_per_clip:
        per_device = training.batch_tokens / tokens_per_clip
    return per_device * training.accumulation * num_gpus


def dry_run_tokenizer(config: TokenizerTrainingConfig) -> None:
    """Print the plan; ValueError that lists every problem when the training could not start."""
    report_plan(plan_tokenizer(config))


def plan_tokenizer(config: TokenizerTrainingConfig) -> Plan:
    """What is known before the first clip is read. Activations of convolutions are not estimated."""
    plan = Plan(config.output_dir, num_gpus=config.plan.num_gpus or int(os.environ.get("WORLD_SIZE", "1")))
    training = config.training.shared_by(plan.num_gpus)
    network = build_network(config.network)
    for prefix, source in (("", config.train), ("validation ", config.validation)):
        for dataset in source.datasets:
            facts, problem = _check_clips(prefix + dataset, dataset, source, network.stream)
            plan.datasets.append(facts)
            plan.problems += problem
    num_clips = sum(facts.num_clips for facts in plan.datasets[: len(config.train.datasets)])
    counts = count_parameters(network, training.optimizer, has_average=training.ema is not None)
    gigabytes = states(counts).total / 1e9
    per_step = training.batch_size * training.accumulation * plan.num_gpus
    plan.facts += [
        ("modality", f"{network.spec.name}: {network.spec.num_tokens} tokens of {network.spec.vocab_size} ids"),
        ("parameters", f"{counts.trainable / 1e6:.2f} M"),
        (
            "states",
            f"{gigabytes:.3f} GB of weights, gradients and optimizer; activations are not estimated",
        ),
        ("a step", f"{per_step} clips on {plan.num_gpus} devices"),
    ]
    try:
        length = training.length(num_clips or None)
        tokens_per_step = per_step * network.spec.num_tokens
        _, steps = _steps_of(length, clips=per_step, tokens=tokens_per_step, token_budget=tokens_per_step)
        epochs = f", {steps * per_step / num_clips:.3g} epochs of {num_clips:,} clips" if num_clips else ""
        plan.facts.append(("the run", f"{steps:,.0f} steps{epochs}"))
    except ValueError as error:
        plan.problems.append(str(error))
    _check_folder(plan, config)
    room, problem = check_room(
        local_folder(config.output_dir, training.scratch_dir), counts.trainable + counts.frozen, training
    )
    plan.facts.append(("checkpoints", room))
    plan.problems += [problem] if problem else []
    return plan


def _check_clips(name: str, dataset: str, source: ClipSourceConfig, stream: str) -> tuple[DatasetFacts, list[str]]:
    if not Path(source.root).is_dir():
        return DatasetFacts(name, 1.0), [f"{name}: clips wanted at {source.root}, which is no folder"]
    try:
        store = ClipStore(source.root, dataset, streams=[stream])
        store[0]
    except (ValueError, OSError) as error:
        return DatasetFacts(name, 1.0), [f"{name}: {error}"]
    num_clips = len(store) if source.max_clips is None else min(len(store), source.max_clips)
    return DatasetFacts(name, 1.0, 1, num_clips), []
