"""Folders `model/<variant>` and `generation`, computed by benchmarks/reference_like: what our speed is held against
computes the published numbers too. Slot by slot: it has the reference's own slots, padding included.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from reference_like import DenseBatch, ReferenceLike, published_adamw
from torch import Tensor

from parity_checks.check import Check, count, matched, near, read_json, read_tensors
from parity_checks.model_folder import LOSS_TYPES, ModelFolder

_NORM_TOLERANCE = 1e-4
_LOGITS_TOLERANCE = 2e-5
_TIE = 1e-4


class _Folder:
    def __init__(self, folder: Path) -> None:
        fixture = ModelFolder(folder)
        self.folder, self.info, self.specs, self.config = folder, fixture.info, fixture.specs, fixture.model.config
        self.sizes = {"num_inputs": self.info["num_encoder_tokens"], "num_targets": self.info["num_decoder_tokens"]}
        self.order = self.info["decoder_modality_order"]

    def model(self, *, separated: bool = True, **changes: object) -> ReferenceLike:
        model = ReferenceLike(replace(self.config, **changes), self.specs, separated=separated)
        model.load(read_tensors(self.folder / "state_dict.safetensors"))
        return model

    def batch(self, name: str = "inputs") -> DenseBatch:
        batch: dict[str, dict[str, Tensor]] = {}
        for key, tensor in read_tensors(self.folder / f"{name}.safetensors").items():
            modality, part = key.rsplit(".", 1)
            batch.setdefault(modality, {})[part] = tensor
        return batch

    def losses(self, model: ReferenceLike, key: str, inputs: str = "inputs") -> Iterator[Check]:
        found = next((name for name in self.info if re.fullmatch(rf"{re.escape(key)}(\(.*\))?", name)), None)
        for loss_type in LOSS_TYPES if found else ():
            stored = self.info[found][loss_type]
            loss, terms = model(self.batch(inputs), order=self.order, loss_type=loss_type, **self.sizes)
            yield near(f"{key}.{loss_type}", loss.item(), stored["loss"])
            for name, term in terms.items():
                yield near(f"{key}.{loss_type}.{name}", term.item(), stored["per_modality"][name], smallest=1.0)


def reference_like_checks(folder: Path) -> Iterator[Check]:
    """All comparisons of one variant, and with the variant that generated those of `generation` beside it."""
    fixture = _Folder(folder)
    with torch.no_grad():
        yield from _slots(fixture)
        for file in sorted(folder.glob("inputs*.safetensors")):
            yield from fixture.losses(fixture.model(), f"losses{file.stem.removeprefix('inputs')}", file.stem)
        yield from fixture.losses(fixture.model(separated=False), "losses_sep_mask_false")
        if (folder / "outputs_causal.safetensors").is_file():
            yield from _causal(fixture)
    yield from _training(fixture)
    if folder.name == "swiglu_nobias":
        yield from _generation(fixture.model(), folder.parents[1] / "generation")


def _slots(fixture: _Folder) -> Iterator[Check]:
    model, wanted = fixture.model(), read_tensors(fixture.folder / "outputs.safetensors")
    inputs = model.encoder_slots(fixture.batch(), fixture.sizes["num_inputs"])
    targets = model.decoder_slots(fixture.batch(), fixture.sizes["num_targets"], fixture.order)
    yield matched("encoder_emb", inputs.positions, wanted["encoder_emb"])
    yield matched("encoder_tokens", inputs.tokens, wanted["encoder_tokens"])
    yield matched("decoder_emb", targets.positions, wanted["decoder_emb"])
    yield count("masks that differ", int((targets.may_not_attend != wanted["decoder_attention_mask"]).sum()))
    yield count("target ids that differ", int((targets.ids != wanted["target_ids"]).sum()))
    yield matched("encoder_out", model.encode(inputs), wanted["encoder_out"])
    context_BND = model.context(inputs)
    yield matched("context", context_BND, wanted["context"])
    hidden_BMD = model.decode(targets, context_BND, inputs.may_not_attend)
    yield matched("decoder_out", hidden_BMD, wanted["decoder_out"])
    for name in model.names:
        yield matched(f"logits.{name}", model.logits(hidden_BMD, name), wanted[f"logits.{name}"])


def _causal(fixture: _Folder) -> Iterator[Check]:
    model, wanted = fixture.model(causal_decoder=True), read_tensors(fixture.folder / "outputs_causal.safetensors")
    inputs = model.encoder_slots(fixture.batch(), fixture.sizes["num_inputs"])
    targets = model.decoder_slots(fixture.batch(), fixture.sizes["num_targets"], fixture.order)
    hidden_BMD = model.decode(targets, model.context(inputs), inputs.may_not_attend)
    is_used_BM = ~targets.is_ignored
    yield matched("causal decoder_out", hidden_BMD[is_used_BM], wanted["decoder_out"][is_used_BM])
    yield from fixture.losses(model, "losses_causal_mask")


def _training(fixture: _Folder) -> Iterator[Check]:
    model, wanted = fixture.model(), fixture.info["train_5_steps_mod_loss"]
    optimizer, batch = published_adamw(model, lr=1e-3), fixture.batch()
    for step, (loss_wanted, norm_wanted) in enumerate(
        zip(wanted["loss"], wanted["grad_norm_before_clip"], strict=True)
    ):
        optimizer.zero_grad()
        loss, _ = model(batch, order=fixture.order, **fixture.sizes)
        loss.backward()
        if step == 0:
            gradients = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)}
            for name, stored in read_tensors(fixture.folder / "grads_first_step.safetensors").items():
                yield matched(name, gradients[name.removeprefix("grad.")], stored)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield near(f"loss of training step {step}", loss.item(), loss_wanted)
        yield near(f"gradient norm of training step {step}", norm.item(), norm_wanted, _NORM_TOLERANCE)


@torch.no_grad()
def _generation(model: ReferenceLike, folder: Path) -> Iterator[Check]:
    """Logits of each step from its stored state; whole ROAR generations at the stored positions."""
    cases = read_json(folder / "cases.json") if (folder / "cases.json").is_file() else {}
    for name, case in cases.items():
        tensors = read_tensors(folder / f"{name}.safetensors") if isinstance(case, dict) else {}
        if not tensors:
            continue
        errors, num_wrong = [0.0], 0
        for step, wanted in enumerate(case["passes"]):
            target = wanted["target"]
            state = {
                key: {"tensor": tensors[f"step{step}.state.{key}.tensor"],
                      "input_mask": tensors[f"step{step}.state.{key}.input_mask"]}
                for key in case["targets"] if f"step{step}.state.{key}.tensor" in tensors
            }  # fmt: skip
            for key in case["cond"]:
                ids = tensors[f"input.{key}"].flatten(1)
                state[key] = {"tensor": ids, "input_mask": torch.zeros_like(ids, dtype=torch.bool)}
            positions = tensors[f"step{step}.positions"]
            shown = {key: state[key] for key in {*wanted["cond_domains"], target}}
            logits = model.step_logits(shown, target, positions)
            if wanted["guided"]:
                base = model.step_logits({target: state[target]}, target, positions)
                if f"step{step}.logits_uncond" in tensors:
                    errors.append(matched("", base, tensors[f"step{step}.logits_uncond"]).error)
            if f"step{step}.logits_cond" in tensors:
                errors.append(matched("", logits, tensors[f"step{step}.logits_cond"]).error)
            guided = base + (logits - base) * wanted["cfg"] if wanted["guided"] else logits
            top = guided.topk(2, dim=-1)
            is_tie = top.values[..., 0] - top.values[..., 1] < _TIE
            num_wrong += int((~is_tie & (top.indices[..., 0] != tensors[f"step{step}.guided_argmax"])).sum())
        yield Check(f"{name}: logits of each step", max(errors), _LOGITS_TOLERANCE)
        yield count(f"{name}: best ids that differ, ties aside", num_wrong)
        if len(case["targets"]) == 1 and case["schemes"] == ["roar"] and max(case["temps"]) <= 0.01:
            made = model.generate(
                {key: tensors[f"input.{key}"].flatten(1) for key in case["cond"]},
                case["targets"][0],
                num_steps=case["steps"][0],
                guidance=case["cfg_scales"][0],
                temperature=case["temps"][0],
                positions=[tensors[f"step{step}.positions"] for step in range(case["steps"][0])],
            )
            differs = made != tensors[f"output.{case['targets'][0]}"].flatten(1)
            yield count(f"{name}: generated ids that differ", int(differs.sum()))
