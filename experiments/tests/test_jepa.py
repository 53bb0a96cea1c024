"""Predicting features: the teacher is a slow copy that sees everything, without gradient; weight 0 changes nothing."""

import numpy as np
import pytest
import torch
from packing import TINY_SPECS, pack, random_clips

from egom2p.contracts import ModalitySpec, TokenGrid
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.losses import combine_losses
from experiments.jepa.jepa import Jepa, JepaConfig, with_targets_shown

SIZE = {"dim": 24, "encoder_depth": 2, "decoder_depth": 1, "num_heads": 2, "mlp_ratio": 2.0, "activation": "swiglu",
        "use_bias": False, "qk_norm": False, "input_embedding_std": 0.5}  # fmt: skip


def build(config: JepaConfig, *, num_registers: int = 0, drop_path: float = 0.0) -> Jepa:
    torch.manual_seed(0)
    return Jepa(EgoM2P(ModelConfig(**SIZE, num_registers=num_registers, drop_path=drop_path), TINY_SPECS), config)


def train_loss(jepa: Jepa, batch) -> torch.Tensor:
    output = jepa(batch)
    return jepa.combine(output.sums, output.counts, average=combine_losses)


@pytest.mark.parametrize("num_registers", [0, 2])
def test_the_teacher_sees_inputs_and_targets_together(rng, num_registers):
    clips = random_clips(rng, TINY_SPECS, 5)
    clips[2] = ({}, clips[2][1])  # one without inputs, one without targets
    clips[3] = (clips[3][0], {})
    batch = pack(clips, TINY_SPECS, num_registers=num_registers)
    jepa = build(JepaConfig(weight=1.0), num_registers=num_registers)
    found_MD = jepa.teacher_features(batch)
    # Packed anew as inputs, clip by clip, and the targets' rows looked up by modality and position.
    wanted = []
    for inputs, targets in clips:
        whole = {}
        for spec in TINY_SPECS:
            parts = [side[spec.name][:2] for side in (inputs, targets) if spec.name in side]
            ids, positions = (
                np.concatenate([part[i] for part in parts]) if parts else np.zeros(0, int) for i in (0, 1)
            )
            whole[spec.name] = (ids[np.argsort(positions)], np.sort(positions))
        alone = pack([(whole, {})], TINY_SPECS, num_registers=num_registers)
        states_ND = torch.nn.functional.layer_norm(jepa.model.encoder_output(alone), (SIZE["dim"],))
        for modality, spec in enumerate(TINY_SPECS):
            for position in targets.get(spec.name, ((), ()))[1]:
                row = (alone.input_modality == modality) & (alone.input_position == position)
                wanted.append(states_ND[row][0])
    torch.testing.assert_close(found_MD, torch.stack(wanted), atol=1e-5, rtol=0)
    torch.testing.assert_close(found_MD.var(-1, correction=0), torch.ones(len(found_MD)), atol=1e-3, rtol=0)
    shown, rows_M = with_targets_shown(batch)
    assert shown.input_ids[rows_M].tolist() == batch.target_ids.tolist()
    assert sum(shown.input_lengths) == len(shown.input_ids) == int(shown.input_offsets[-1])


@pytest.mark.parametrize("distance", ["smooth_l1", "cosine"])
def test_no_gradient_reaches_the_teacher_and_all_of_the_encoder_learns(rng, distance):
    jepa = build(JepaConfig(weight=1.0, token_weight=0.0, distance=distance)).train()
    train_loss(jepa, pack(random_clips(rng, TINY_SPECS, 4), TINY_SPECS)).backward()
    assert all(weights.grad is None and not weights.requires_grad for weights in jepa.teacher.parameters())
    for part in (jepa.model.encoder, jepa.model.decoder, jepa.predictor):
        assert all(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in part.parameters())


def test_the_teacher_moves_by_the_decay():
    jepa = build(JepaConfig(weight=1.0, decay=0.75))
    before = {name: weights.clone() for name, weights in jepa.teacher.named_parameters()}
    with torch.no_grad():
        for weights in jepa.model.parameters():
            weights.add_(1.0)
    jepa.move_teacher()
    jepa.move_teacher()
    for name, weights in jepa.teacher.named_parameters():
        torch.testing.assert_close(weights, before[name] + 1 - 0.75**2, atol=1e-6, rtol=0, msg=name)


def test_the_teacher_draws_no_stochastic_depth(rng):
    jepa = build(JepaConfig(weight=1.0), drop_path=0.9).train()
    batch = pack(random_clips(rng, TINY_SPECS, 8), TINY_SPECS)
    assert jepa.model.training and torch.equal(jepa.teacher_features(batch), jepa.teacher_features(batch))


def test_weight_zero_is_the_model_alone_to_the_bit(rng):
    batch = pack(random_clips(rng, TINY_SPECS, 4), TINY_SPECS)
    jepa = build(JepaConfig(weight=0.0)).train()
    found, wanted = jepa(batch), jepa.model(batch)
    assert torch.equal(found.sums, wanted.sums) and found.counts == wanted.counts and found.names == wanted.names
    loss = combine_losses(wanted.sums, wanted.counts)
    assert torch.equal(jepa.combine(found.sums, found.counts, average=combine_losses), loss)
    assert not any(weights.requires_grad for weights in jepa.predictor.parameters())


def test_both_terms_are_weighted_and_evaluation_is_the_model(rng):
    batch = pack(random_clips(rng, TINY_SPECS, 4), TINY_SPECS)
    jepa = build(JepaConfig(weight=0.5, token_weight=2.0)).train()
    output = jepa(batch)
    assert output.names == ("tok_motion", "tok_smell", "features/tok_motion", "features/tok_smell")
    assert output.counts == batch.head_counts * 2
    means = output.sums / torch.tensor(output.counts)
    torch.testing.assert_close(train_loss(jepa, batch), 2.0 * means[:2].mean() + 0.5 * means[2:].mean())
    jepa.eval()
    assert torch.equal(jepa(batch).sums, jepa.model(batch).sums)


def test_perfect_features_cost_nothing(rng):
    """The distance is 0 where the decoder says what the teacher sees, up to the scale of each row for `cosine`."""
    batch = pack(random_clips(rng, TINY_SPECS, 3), TINY_SPECS)
    for distance, scale in (("smooth_l1", 1.0), ("cosine", 3.0)):
        jepa = build(JepaConfig(weight=1.0, distance=distance))
        jepa.predictor = torch.nn.Identity()
        sums = jepa._feature_losses(batch, scale * jepa.teacher_features(batch))
        assert sums.abs().max() < 1e-4
        assert jepa._feature_losses(batch, -jepa.teacher_features(batch)).min() > 0.1


def test_what_cannot_be_is_refused():
    for values, message in (
        ({"weight": -1.0}, "weights are not negative"),
        ({"weight": 0.0, "token_weight": 0.0}, "one is positive"),
        ({"weight": 1.0, "decay": 1.0}, r"decay must be in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            JepaConfig(**values)
    words = ModalitySpec("tok_words", "sequence", "text", TokenGrid((6,)), 9, "words", pad_id=0, eos_id=1)
    with pytest.raises(ValueError, match="grids and tracks; .'tok_words'. are texts"):
        Jepa(EgoM2P(ModelConfig(**SIZE), (*TINY_SPECS, words)), JepaConfig(weight=1.0))
