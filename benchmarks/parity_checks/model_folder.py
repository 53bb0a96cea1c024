"""Folders `model/<variant>`: activations, logits, losses, gradients and training steps of EgoM2P.

N input rows, M target rows, K modalities.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import LossOutput, MaskedClip, ModalitySpec, PackedBatch, TokenGrid
from egom2p.data.collate import collate
from egom2p.models.convert_model import model_config
from egom2p.models.egom2p_model import EgoM2P
from egom2p.models.losses import combine_losses
from egom2p.models.weights import from_reference_state_dict, to_reference_state_dict
from parity_checks.check import Check, Finding, Skipped, count, matched, near, read_json, read_tensors
from parity_checks.model_corners import loss_with_padding_seen, see_earlier_modalities

LOSS_TYPES = ("mod", "token", "weighted_mod")
_NORM_TOLERANCE = 1e-4


class ModelFolder:
    """The model with the reference's weights, and the numbers of one variant. Sizes are read off weights and info."""

    def __init__(self, folder: Path, *, is_causal: bool = False) -> None:
        self.folder = folder
        self.info = read_json(folder / "info.json")
        weights, inputs = self.tensors("state_dict"), self.tensors("inputs")
        self.specs = tuple(_spec(name, self.info, inputs) for name in self.info["encoder_modality_order"])
        config = model_config(weights, self.info["config"]["heads"])
        self.model = EgoM2P(replace(config, causal_decoder=is_causal), self.specs)
        from_reference_state_dict(self.model, weights)
        self.model.eval()

    def tensors(self, name: str) -> dict[str, Tensor]:
        return read_tensors(self.folder / f"{name}.safetensors")

    def batch(self, name: str = "inputs") -> PackedBatch:
        return pack_reference(self.tensors(name), self.info, self.specs)

    def loss(self, batch: PackedBatch, loss_type: str) -> tuple[LossOutput, Tensor]:
        output = self.model(batch)
        return output, self.combined(output, loss_type)

    def combined(self, output: LossOutput, loss_type: str) -> Tensor:
        return combine_losses(
            output.sums,
            output.counts,
            loss_type=loss_type,
            vocab_sizes=self.model.vocab_sizes,
            reference_denominator=True,
        )


def pack_reference(tensors: Mapping[str, Tensor], info: Mapping, specs: tuple[ModalitySpec, ...]) -> PackedBatch:
    """The reference's masks (False = used) as a packed batch, cut to its numbers of slots in its modality order."""
    num_registers = info["config"].get("registers", 0)
    clips = []
    for number in range(len(tensors[f"{specs[0].name}.tensor"])):
        sides: list[tuple[dict, dict]] = []
        # Registers come on top of the encoder's budget.
        for side, budget in (("input", info["num_encoder_tokens"]), ("target", info["num_decoder_tokens"])):
            ids: dict[str, np.ndarray] = {}
            positions: dict[str, np.ndarray] = {}
            order = info["encoder_modality_order" if side == "input" else "decoder_modality_order"]
            for name in order:
                used = np.flatnonzero(~tensors[f"{name}.{side}_mask"][number].numpy())[:budget]
                ids[name] = tensors[f"{name}.tensor"][number].flatten().numpy()[used].astype(np.int32)
                positions[name] = used
                budget -= len(used)
            sides.append((ids, positions))
        queries = {name: np.full(len(ids), -1, np.int32) for name, ids in sides[1][0].items()}
        clips.append(MaskedClip(str(number), *sides[0], *sides[1], queries))
    return collate(clips, specs, num_registers)


def model_checks(folder: Path) -> Iterator[Finding]:
    """All comparisons of one variant."""
    fixture = ModelFolder(folder)
    yield from _activations(fixture)
    for file in sorted(folder.glob("inputs*.safetensors")):
        yield from _losses(fixture, file.stem)
    yield from _gradients_and_steps(ModelFolder(folder))
    yield from _names(fixture)
    if (folder / "outputs_causal.safetensors").is_file():
        yield from _causal(ModelFolder(folder, is_causal=True))
    known = {"state_dict", "outputs", "outputs_causal", "grads_first_step"}
    for file in sorted(folder.glob("*.safetensors")):
        if file.stem not in known and not file.stem.startswith("inputs"):
            yield Skipped(file.name, "no comparison for this file")
    yield from _unseparated(ModelFolder(folder))


def _spec(name: str, info: Mapping, inputs: Mapping[str, Tensor]) -> ModalitySpec:
    shape = tuple(inputs[f"{name}.tensor"].shape[1:])
    kind = "grid" if len(shape) == 3 else "track"
    return ModalitySpec(name, kind, "generic", TokenGrid(shape), info["vocab_sizes"][name], name)


@torch.no_grad()
def _activations(fixture: ModelFolder) -> Iterator[Check]:
    wanted, batch, model = fixture.tensors("outputs"), fixture.batch(), fixture.model
    num_registers = model.config.num_registers
    slots = _slots(wanted["encoder_mod_mask"], wanted["encoder_pos_in_modality"], fixture, num_registers)
    yield matched("encoder_out", model.encoder_output(batch), wanted["encoder_out"][slots])
    context_ND = model.encode(batch)
    yield matched("context", context_ND, wanted["context"][slots])
    slots = _slots(wanted["decoder_mod_mask"], wanted["decoder_pos_in_modality"], fixture)
    hidden_MD = model.decode(batch, context_ND)
    yield count("target ids that differ", (batch.target_ids.long() != wanted["target_ids"][slots]).sum().item())
    # A clip without inputs: the reference averages its padding, we give 0, as its generation does.
    has_inputs_M = torch.tensor(batch.input_lengths).repeat_interleave(torch.tensor(batch.target_lengths)) > 0
    yield matched("decoder_out", hidden_MD[has_inputs_M], wanted["decoder_out"][slots][has_inputs_M])
    for number, spec in enumerate(fixture.specs):
        stored = wanted.get(f"logits.{spec.name}")
        if stored is not None:
            found = model.logits(hidden_MD, number)[has_inputs_M]
            yield matched(f"logits.{spec.name}", found, stored[slots][has_inputs_M])


def _slots(mod_mask: Tensor, positions: Tensor, fixture: ModelFolder, num_registers: int = 0) -> tuple[Tensor, Tensor]:
    """Indices (clip, slot) of the used slots of the reference, in the order of our rows: clip, modality, position."""
    ids = fixture.info["modality_ids"]
    ranks = {ids[spec.name]: rank for rank, spec in enumerate(fixture.specs)}
    first_position = mod_mask.shape[1] - positions.shape[1]  # positions may be stored without those of the registers
    rows = []
    for clip, row in enumerate(mod_mask.tolist()):
        for slot, modality in enumerate(row):
            if slot < num_registers:
                rows.append((clip, -1, slot, slot))
            elif modality != -1:
                rows.append((clip, ranks[modality], int(positions[clip, slot - first_position]), slot))
    rows.sort()
    return torch.tensor([row[0] for row in rows]), torch.tensor([row[3] for row in rows])


@torch.no_grad()
def _losses(fixture: ModelFolder, inputs: str) -> Iterator[Finding]:
    suffix = inputs.removeprefix("inputs")
    key = next((key for key in fixture.info if re.fullmatch(rf"losses{re.escape(suffix)}(\(.*\))?", key)), None)
    if key is None:
        yield Skipped(f"{inputs}.safetensors", "info.json has no losses for it")
        return
    batch = fixture.batch(inputs)
    comparable = modalities_with_inputs(batch)
    for loss_type in LOSS_TYPES:
        if loss_type not in fixture.info[key]:
            continue
        stored = fixture.info[key][loss_type]
        output, loss = fixture.loss(batch, loss_type)
        if loss_type == "mod":
            means = (output.sums / torch.tensor([max(number, 1) for number in output.counts])).tolist()
            for name, mean in zip(output.names, means, strict=True):
                if name in comparable and name in stored["per_modality"]:
                    yield near(f"{key}.{name}", mean, stored["per_modality"][name])
        if len(comparable) == len(output.names):
            yield near(f"{key}.{loss_type}", loss.item(), stored["loss"])
        else:
            output = loss_with_padding_seen(fixture.model, batch)
            loss = fixture.combined(output, loss_type)
            yield near(
                f"{key}.{loss_type}, with the padding that a clip without inputs sees", loss.item(), stored["loss"]
            )


def modalities_with_inputs(batch: PackedBatch) -> list[str]:
    """Modalities all of whose targets have something to look at: there the reference does not average padding."""
    rows_BK = np.array(batch.segment_lengths).reshape(batch.num_clips, -1)
    is_blind_K = rows_BK[np.array(batch.input_lengths) == 0].sum(0) > 0
    return [name for name, is_blind in zip(batch.modalities, is_blind_K, strict=True) if not is_blind]


@torch.no_grad()
def _causal(fixture: ModelFolder) -> Iterator[Finding]:
    batch, outputs = fixture.batch(), fixture.tensors("outputs")
    slots = _slots(outputs["decoder_mod_mask"], outputs["decoder_pos_in_modality"], fixture)
    hidden_MD = fixture.model.decode(batch, fixture.model.encode(batch))
    yield matched("causal decoder_out", hidden_MD, fixture.tensors("outputs_causal")["decoder_out"][slots])
    key = next((key for key in fixture.info if key.startswith("losses_causal")), None)
    for loss_type in LOSS_TYPES if key else ():
        yield near(f"{key}.{loss_type}", fixture.loss(batch, loss_type)[1].item(), fixture.info[key][loss_type]["loss"])


@torch.no_grad()
def _unseparated(fixture: ModelFolder) -> Iterator[Finding]:
    """Losses with decoder attention across modalities: no part of the released model or of this library."""
    key = next((key for key in fixture.info if "sep_mask_false" in key), None)
    if key is None:
        return
    batch = fixture.batch()
    see_earlier_modalities(fixture.model, batch, fixture.info["decoder_modality_order"])
    for loss_type in LOSS_TYPES:
        yield near(f"{key}.{loss_type}", fixture.loss(batch, loss_type)[1].item(), fixture.info[key][loss_type]["loss"])


def _gradients_and_steps(fixture: ModelFolder) -> Iterator[Finding]:
    batch, model = fixture.batch(), fixture.model
    wanted = fixture.info.get("train_5_steps_mod_loss")
    if len(modalities_with_inputs(batch)) < len(batch.modalities):
        yield Skipped("gradients", "a clip without inputs has targets")
        return
    fixture.loss(batch, "mod")[1].backward()
    gradients = reference_gradients(model)
    for name, stored in fixture.tensors("grads_first_step").items():
        yield matched(name, gradients[name.removeprefix("grad.")], stored)
    if wanted is None:
        return
    errors = [
        abs(gradients[name].norm().item() - norm) / max(norm, 1e-2)
        for name, norm in wanted["first_step_grad_norms"].items()
    ]
    yield Check("gradient norms of all parameters", max(errors), _NORM_TOLERANCE)
    # The published optimizer: decay on everything with two axes or more.
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    yield count("size of the weight decay groups", sizes != [group["n_params"] for group in wanted["groups"]])
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    for step, (loss_wanted, norm_wanted) in enumerate(
        zip(wanted["loss"], wanted["grad_norm_before_clip"], strict=True)
    ):
        optimizer.zero_grad()
        loss = fixture.loss(batch, "mod")[1]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield near(f"loss of training step {step}", loss.item(), loss_wanted)
        yield near(f"gradient norm of training step {step}", norm.item(), norm_wanted, _NORM_TOLERANCE)
    yield near("loss after the steps", fixture.loss(batch, "mod")[1].item(), wanted["loss_after"])


def reference_gradients(model: EgoM2P) -> dict[str, Tensor]:
    """Gradients under the published names."""
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        gradients = {name: tensor.clone() for name, tensor in to_reference_state_dict(model).items()}
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return gradients


def _names(fixture: ModelFolder) -> Iterator[Check]:
    """Weights go back to the published names unchanged."""
    named, wanted = to_reference_state_dict(fixture.model), fixture.tensors("state_dict")
    is_wrong = [name not in wanted for name in named]
    for name, tensor in wanted.items():
        is_fixed = name.endswith("pos_emb") or (name.endswith(".bias") and name not in named)
        is_wrong.append(not is_fixed and not (name in named and torch.equal(named[name], tensor)))
    yield count("weights that change on the way back to published names", sum(is_wrong))
