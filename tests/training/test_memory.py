"""The memory of a planned step against what torch holds: states to the byte, the rest within a few per cent."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from egom2p.contracts import MaskedClip, ModalitySpec, PackedBatch, TokenGrid
from egom2p.data.collate import collate
from egom2p.data.modality_info import default_specs
from egom2p.layers.blocks import recompute_in_backward, transformer_blocks
from egom2p.layers.lora import LoraConfig, attach_lora
from egom2p.layers.step_memory import LiveBytes, step_memory
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.losses import CHUNK_ELEMENTS
from egom2p.training.ema import Ema, EmaConfig
from egom2p.training.optim import OptimizerConfig, build_optimizer
from egom2p.training.planning.training_memory import (
    ClipRows,
    TrainingMemory,
    count_parameters,
    model_without_weights,
    one_segment,
    states,
)
from egom2p.training.step import apply_gradients

SMELL = ModalitySpec("tok_smell", "grid", "generic", TokenGrid((4, 8, 8)), 100, "smell")
NUM_CLIPS, NUM_INPUTS, NUM_TARGETS = 4, 96, 64


def config(**options) -> ModelConfig:
    return ModelConfig(dim=96, encoder_depth=3, decoder_depth=2, num_heads=4, **options)


def equal_clips(num_registers: int) -> PackedBatch:
    """Clips of one length, for which attention on CPUs needs no padding, as on GPUs."""
    clips = []
    for number in range(NUM_CLIPS):
        positions = np.random.default_rng(number).permutation(SMELL.num_tokens)
        inputs, targets = np.sort(positions[:NUM_INPUTS]), np.sort(positions[NUM_INPUTS : NUM_INPUTS + NUM_TARGETS])
        ids = np.arange(SMELL.num_tokens, dtype=np.int32) % SMELL.vocab_size
        sides = ({SMELL.name: values} for values in (ids[inputs], inputs, ids[targets], targets))
        clips.append(MaskedClip(str(number), *sides, {SMELL.name: np.full(NUM_TARGETS, -1, np.int32)}))
    return collate(clips, (SMELL,), num_registers, 0)


def memory_of(size: ModelConfig, *, is_half: bool = False, specs=(SMELL,), targets=None) -> TrainingMemory:
    rows = ClipRows(NUM_INPUTS, targets or {SMELL.name: NUM_TARGETS})
    return TrainingMemory(
        lambda size: model_without_weights(size, specs), size, rows, OptimizerConfig(), is_mixed=is_half
    )


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("is_half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "gelu", "use_bias": True}, {"qk_norm": True}, {"drop_path": 0.2}, {"num_registers": 4}],
    ids=str,
)
def test_against_a_step_that_is_taken(options, is_half, recompute):
    """Most bytes alive at any moment beside weights and gradients; with recomputed blocks an upper bound."""
    model = EgoM2P(config(**options), (SMELL,)).train()
    for block in transformer_blocks(model) if recompute else ():
        recompute_in_backward(block)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            total = model(equal_clips(model.config.num_registers)).sums.sum()
        total.backward()
    found = memory_of(model.config, is_half=is_half).footprint(NUM_CLIPS, recompute=recompute)
    beside = found.copies + found.activations + found.temporaries
    assert 0.97 * live.peak < beside < (1.12 if recompute else 1.03) * live.peak


def test_many_rows_of_a_large_vocabulary():
    """Several chunks of logits: the same as when all of them are taken without numbers."""
    wide = replace(SMELL, vocab_size=64_000)
    size = ModelConfig(dim=32, encoder_depth=1, decoder_depth=1, num_heads=2)
    num_clips = 2 * CHUNK_ELEMENTS // wide.vocab_size // NUM_TARGETS
    found = memory_of(size, specs=(wide,)).footprint(num_clips)

    def step(model: EgoM2P) -> torch.Tensor:
        return model(one_segment(model, num_clips * NUM_INPUTS, num_clips * NUM_TARGETS)).sums.sum()

    wanted = step_memory(model_without_weights(size, (wide,)).train(), step)
    assert found.copies + found.activations + found.temporaries == pytest.approx(wanted.peak, rel=0.02)


def test_texts_and_adapters_are_counted_too():
    text = ModalitySpec("tok_text", "sequence", "text", TokenGrid((16,)), 50, "text", pad_id=0, eos_id=1)
    specs = (SMELL, text)

    def with_adapters(size: ModelConfig) -> EgoM2P:
        model = model_without_weights(size, specs)
        attach_lora(model, LoraConfig(rank=2))
        return model

    rows = ClipRows(NUM_INPUTS, {SMELL.name: 40, text.name: 10})
    whole, adapted = (
        TrainingMemory(build, config(), rows, OptimizerConfig())
        for build in (lambda size: model_without_weights(size, specs), with_adapters)
    )
    assert adapted.counts.trainable < 0.1 * whole.counts.trainable
    kept, fewer = whole.footprint(NUM_CLIPS), adapted.footprint(NUM_CLIPS)
    assert fewer.gradients == adapted.counts.trainable * 4
    assert fewer.activations != kept.activations and fewer.total < kept.total


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("options", [{}, {"activation": "gelu", "use_bias": True, "num_registers": 2}], ids=str)
def test_states_to_the_byte(kind, options):
    model = EgoM2P(config(**options), (SMELL,)).train()
    optimizer = build_optimizer(model, OptimizerConfig(kind=kind))
    average = Ema(model, EmaConfig(decay=0.9))
    average.update(model, 1)
    model(equal_clips(model.config.num_registers)).sums.sum().backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    missing = sum(parameter.nbytes for parameter in model.parameters() if parameter.grad is None)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    apply_gradients(optimizer, learning_rate=1e-3, clip_grad_norm=1.0)
    moments = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    counts = count_parameters(
        model_without_weights(model.config, (SMELL,)), OptimizerConfig(kind=kind), has_average=True
    )
    found = states(counts)
    assert found.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert found.gradients == gradients + missing
    assert found.optimizer == moments
    assert found.average == sum(tensor.nbytes for tensor in average.tensors(model).values())


def test_shards_divide_the_states_and_nothing_else():
    memory = memory_of(config())
    whole, parts = (memory.footprint(NUM_CLIPS, num_shards=number) for number in (1, 8))
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name) / 8, abs=1)
    assert parts.activations == whole.activations
    # What lies outside of blocks is whole on every device for the time of a pass, with its gradient.
    assert parts.copies >= 2 * 4 * (memory.counts.trainable - memory.counts.in_blocks)


def test_a_published_fact():
    """Base with four published modalities: 6.3 GB of weights, gradients and moments (arithmetic of its publication)."""
    base = ModelConfig(dim=768, encoder_depth=12, decoder_depth=12, num_heads=12)
    counts = count_parameters(model_without_weights(base, default_specs()), OptimizerConfig())
    assert counts.trainable == pytest.approx(395.4e6, rel=0.003)
    found = states(counts)
    assert (found.weights + found.gradients + found.optimizer) / 1e9 == pytest.approx(6.3, abs=0.05)
