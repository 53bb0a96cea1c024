"""Dry run of a tokenizer's training: clips, length and the size of what is trained, without a device."""

import os
from pathlib import Path

from egom2p.data.clips.clip_store import ClipStore
from egom2p.tokenizers.pretrained import build_network
from egom2p.training.planning.model_memory import count_parameters
from egom2p.training.planning.plan import Plan, tell_plan
from egom2p.training.planning.plan_checks import DatasetFacts
from egom2p.training.planning.step_memory_table import footprint
from egom2p.training.run_folder import has_checkpoint, local_folder
from egom2p.training.tasks.tokenizer_config import ClipSourceConfig, TokenizerTrainingConfig


def dry_run_tokenizer(config: TokenizerTrainingConfig) -> None:
    """Print the plan; ValueError that lists every problem when the training could not start."""
    tell_plan(plan_tokenizer(config))


def plan_tokenizer(config: TokenizerTrainingConfig) -> Plan:
    """What is known before the first clip is read. Activations of convolutions are not estimated."""
    plan = Plan(config.output_dir, num_gpus=config.plan.num_gpus or int(os.environ.get("WORLD_SIZE", "1")))
    training = config.training
    network = build_network(config.network)
    for prefix, source in (("", config.train), ("validation ", config.validation)):
        for dataset in source.datasets:
            facts, problem = _check_clips(prefix + dataset, dataset, source, network.stream)
            plan.datasets.append(facts)
            plan.problems += problem
    num_clips = sum(facts.num_clips for facts in plan.datasets[: len(config.train.datasets)])
    counts = count_parameters(network, training.optimizer, has_average=training.ema is not None)
    states = footprint(counts, ())
    per_step = training.batch_size * training.accumulation * plan.num_gpus
    plan.facts += [
        ("modality", f"{network.spec.name}: {network.spec.num_tokens} tokens of {network.spec.vocab_size} ids"),
        ("parameters", f"{counts.trainable / 1e6:.2f} M"),
        ("states", f"{states.total / 1e9:.3f} GB of weights, gradients and optimizer; activations are not estimated"),
        ("a step", f"{per_step} clips on {plan.num_gpus} devices"),
    ]
    try:
        length = training.length(num_clips or None)
        tokens_per_step = per_step * network.spec.num_tokens
        amount = {"steps": 1, "slots": tokens_per_step, "tokens": tokens_per_step, "clips": per_step}[length.unit]
        steps = -(-length.total // amount)
        epochs = f", {steps * per_step / num_clips:.3g} epochs of {num_clips:,} clips" if num_clips else ""
        plan.facts.append(("the run", f"{steps:,.0f} steps{epochs}"))
    except ValueError as error:
        plan.problems.append(str(error))
    folder = local_folder(config.output_dir, training.scratch_dir)
    if (folder / "final").is_dir():
        plan.notes.append(f"{folder / 'final'} exists: the run is finished, nothing would be trained")
    elif has_checkpoint(config.output_dir, training.scratch_dir):
        plan.notes.append(f"{folder} has checkpoints: the run would continue from the newest")
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
