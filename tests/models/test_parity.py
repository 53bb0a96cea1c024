"""The model is the published one: same activations, logits, losses, gradients and training steps from the same weights.

x matches y to e: max|x - y| <= e * max(1, max|y|).
"""

import json

import numpy as np
import pytest
import torch
from packing import pack_reference
from safetensors.torch import load_file

from egom2p.contracts import ModalitySpec, TokenGrid
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.losses import combine_losses
from egom2p.models.weights import from_reference_state_dict, to_reference_state_dict

VARIANTS = ("swiglu_nobias", "gelu_bias", "swiglu_qknorm_nobias", "swiglu_nobias_registers")
LOSS_TYPES = ("mod", "token", "weighted_mod")


class Fixture:
    """One variant: the model with the reference's weights, and the folder of numbers."""

    def __init__(self, folder, **options):
        self.folder = folder
        self.info = json.loads((folder / "info.json").read_text())
        config = self.info["config"]
        self.specs = tuple(
            ModalitySpec(
                name,
                "grid" if name in ("tok_depth", "tok_rgb") else "track",
                "generic",
                TokenGrid(tuple(config["grid"]) if name in ("tok_depth", "tok_rgb") else (30,)),
                self.info["vocab_sizes"][name],
                name,
            )
            for name in self.info["encoder_modality_order"]
        )
        self.model = EgoM2P(
            ModelConfig(
                dim=config["dim"],
                num_heads=config["heads"],
                encoder_depth=config["enc"],
                decoder_depth=config["dec"],
                mlp_ratio=config["mlp_ratio"],
                activation="gelu" if config["kind"].startswith("gelu") else "swiglu",
                use_bias=not config["kind"].endswith("nobias"),
                qk_norm="qknorm" in config["kind"],
                num_registers=config.get("registers", 0),
                **options,
            ),
            self.specs,
        )
        from_reference_state_dict(self.model, self.tensors("state_dict"))
        self.model.eval()

    def tensors(self, name):
        return load_file(self.folder / f"{name}.safetensors")

    def batch(self, name="inputs"):
        return pack_reference(self.tensors(name), self.info, self.specs)

    def loss(self, batch, loss_type):
        output = self.model(batch)
        return output, combine_losses(
            output.sums,
            output.counts,
            loss_type=loss_type,
            vocab_sizes=self.model.vocab_sizes,
            reference_denominator=True,
        )


@pytest.fixture(params=VARIANTS)
def fixture(request, parity_dir):
    return Fixture(parity_dir / "model" / request.param)


def assert_matches(found, wanted, tolerance=1e-5):
    error = (found - wanted).abs().max().item()
    assert error <= tolerance * max(1.0, wanted.abs().max().item()), error


def rows_of_slots(slots, mod_mask, num_registers=0):
    """The reference's valid slots (True = belongs to a modality), clip by clip, registers included."""
    is_used = mod_mask != -1
    is_used[:, :num_registers] = num_registers > 0
    return slots[is_used]


def test_encoder_and_context(fixture):
    wanted, batch = fixture.tensors("outputs"), fixture.batch()
    num_registers = fixture.model.config.num_registers
    for name, found in (("encoder_out", fixture.model.encoder_output(batch)), ("context", fixture.model.encode(batch))):
        assert_matches(found, rows_of_slots(wanted[name], wanted["encoder_mod_mask"], num_registers))


def test_decoder_and_logits(fixture):
    wanted, batch = fixture.tensors("outputs"), fixture.batch()
    hidden_MD = fixture.model.decode(batch, fixture.model.encode(batch))
    is_used = wanted["decoder_mod_mask"] != -1
    assert torch.equal(batch.target_ids.long(), wanted["target_ids"][is_used])
    assert_matches(hidden_MD, wanted["decoder_out"][is_used])
    for number, spec in enumerate(fixture.specs):
        assert_matches(fixture.model.logits(hidden_MD, number), wanted[f"logits.{spec.name}"][is_used])


@pytest.mark.parametrize(
    "inputs, key",
    [
        ("inputs", "losses"),
        ("inputs_missing_gaze", "losses_missing_gaze"),
        ("inputs_truncated", "losses_truncated(order as given)"),
    ],
)
def test_losses(fixture, inputs, key):
    batch = fixture.batch(inputs)
    output, _ = fixture.loss(batch, "mod")
    comparable = modalities_with_inputs(batch)
    means = [total.item() / max(count, 1) for total, count in zip(output.sums, output.counts, strict=True)]
    for name, mean in zip(output.names, means, strict=True):
        if name in comparable:
            assert mean == pytest.approx(fixture.info[key]["mod"]["per_modality"][name], rel=1e-5)
    if len(comparable) == len(output.names):
        for loss_type in LOSS_TYPES:
            _, loss = fixture.loss(batch, loss_type)
            assert loss.item() == pytest.approx(fixture.info[key][loss_type]["loss"], rel=1e-5)


def modalities_with_inputs(batch):
    """Modalities all of whose targets have something to look at.

    One fixture has a clip without inputs: the reference then averages its padding, we give 0, as its generation does.
    """
    rows_BK = np.array(batch.segment_lengths).reshape(batch.num_clips, -1)
    has_rows_K = rows_BK[np.array(batch.input_lengths) == 0].sum(0) > 0
    return [name for name, has_rows in zip(batch.modalities, has_rows_K, strict=True) if not has_rows]


def test_causal_variant(parity_dir):
    fixture = Fixture(parity_dir / "model" / "swiglu_nobias", causal_decoder=True)
    batch, is_used = fixture.batch(), fixture.tensors("outputs")["decoder_mod_mask"] != -1
    hidden_MD = fixture.model.decode(batch, fixture.model.encode(batch))
    assert_matches(hidden_MD, fixture.tensors("outputs_causal")["decoder_out"][is_used])
    for loss_type in LOSS_TYPES:
        wanted = fixture.info["losses_causal_mask(order as given)"][loss_type]["loss"]
        assert fixture.loss(batch, loss_type)[1].item() == pytest.approx(wanted, rel=1e-5)


def reference_gradients(model):
    """Gradients under the published names."""
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        gradients = {name: tensor.clone() for name, tensor in to_reference_state_dict(model).items()}
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return gradients


def test_first_gradients(fixture):
    fixture.loss(fixture.batch(), "mod")[1].backward()
    gradients = reference_gradients(fixture.model)
    for name, wanted in fixture.tensors("grads_first_step").items():
        assert_matches(gradients[name.removeprefix("grad.")], wanted)
    for name, wanted in fixture.info["train_5_steps_mod_loss"]["first_step_grad_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(wanted, rel=1e-4, abs=1e-6), name


def test_five_training_steps(fixture):
    wanted, model, batch = fixture.info["train_5_steps_mod_loss"], fixture.model, fixture.batch()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    assert [sum(p.numel() for p in group["params"]) for group in groups] == [g["n_params"] for g in wanted["groups"]]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    for wanted_loss, wanted_norm in zip(wanted["loss"], wanted["grad_norm_before_clip"], strict=True):
        optimizer.zero_grad()
        loss = fixture.loss(batch, "mod")[1]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert loss.item() == pytest.approx(wanted_loss, rel=1e-5)
        assert norm.item() == pytest.approx(wanted_norm, rel=1e-4)
    assert fixture.loss(batch, "mod")[1].item() == pytest.approx(wanted["loss_after"], rel=1e-5)


def test_reference_names_round_trip(fixture):
    named = to_reference_state_dict(fixture.model)
    wanted = fixture.tensors("state_dict")
    for name, tensor in wanted.items():
        is_fixed = name.endswith("pos_emb") or (name.endswith(".bias") and name not in named)
        assert is_fixed or torch.equal(named[name], tensor), name
    assert set(named) <= set(wanted)
