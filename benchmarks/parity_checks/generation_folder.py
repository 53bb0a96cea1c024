"""Folder `generation`: every decoding step from its stored state, whole generations at given positions, schedules.

V vocabulary.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import TokenClip
from egom2p.models.generate import Sampler
from egom2p.models.sampling import TargetPlan, keep_likely, step_temperatures, token_counts
from parity_checks.check import Check, Finding, Skipped, count, matched, read_json, read_tensors
from parity_checks.model_folder import ModelFolder

_TIE = 1e-4  # two best logits closer than this may change positions
_LOGITS_TOLERANCE = 2e-5  # guidance adds the errors of two passes
_MODEL = "swiglu_nobias"  # the variant that generated; another one only where it is missing


def generation_checks(folder: Path) -> Iterator[Finding]:
    """All cases, with the model of `model/` beside the folder."""
    variants = sorted(path.parent for path in folder.parent.glob("model/*/info.json"))
    variant = next((path for path in variants if path.name == _MODEL), variants[0])
    sampler = Sampler(ModelFolder(variant).model)
    for name, case in read_json(folder / "cases.json").items():
        if not isinstance(case, dict):
            continue  # remarks of the makers
        tensors = read_tensors(folder / f"{name}.safetensors")
        if not tensors:
            yield Skipped(name, "no tensors")
            continue
        plans = [_plan(case, number) for number in range(len(case["targets"]))]
        yield from _steps(name, case, tensors, plans, sampler)
        yield from _whole(name, case, tensors, plans, sampler)
    if (folder / "schedules.json").is_file():
        yield from _schedules(read_json(folder / "schedules.json"))
    yield from _filtering(read_tensors(folder / "filtering.safetensors"))


def _plan(case: Mapping, number: int) -> TargetPlan:
    return TargetPlan(
        target=case["targets"][number],
        scheme=case["schemes"][number],
        num_steps=case["steps"][number],
        token_schedule=case["token_schedules"][number],
        temperature=case["temps"][number],
        top_k=case["top_k"],
        top_p=case["top_p"] or 1.0,  # the published 0 keeps all
        guidance=case["cfg_scales"][number],
        grow_conditioning=case["cfg_grow_conditioning"],
    )


def _prompts(case: Mapping, tensors: Mapping[str, Tensor]) -> list[TokenClip]:
    return [
        TokenClip(str(clip), {name: tensors[f"input.{name}"][clip].flatten().numpy() for name in case["cond"]})
        for clip in range(case["batch"])
    ]


def _steps(
    name: str, case: Mapping, tensors: Mapping[str, Tensor], plans: list[TargetPlan], sampler: Sampler
) -> Iterator[Check]:
    errors, num_wrong, num_other = [0.0], 0, 0
    for step, wanted in enumerate(case["passes"]):
        plan = next(plan for plan in plans if plan.target == wanted["target"])
        prompts = _prompts(case, tensors)
        for clip, prompt in enumerate(prompts):
            for target in case["targets"]:
                ids = tensors[f"step{step}.state.{target}.tensor"][clip].flatten().numpy().astype(np.int32)
                is_known = ~tensors[f"step{step}.state.{target}.input_mask"][clip].numpy()
                if target == plan.target or is_known.any():
                    prompt.tokens[target] = np.where(is_known, ids, -1)
        guided = torch.stack(sampler.logits(prompts, plan, list(tensors[f"step{step}.positions"].numpy())))
        stored = tensors.get(f"step{step}.logits_cond")
        if stored is not None:
            base = tensors.get(f"step{step}.logits_uncond")
            stored = stored if base is None else base + (stored - base) * wanted["cfg"]
            errors.append(matched("", guided, stored).error)
        top = guided.topk(2, dim=-1)
        is_tie = top.values[..., 0] - top.values[..., 1] < _TIE
        num_wrong += int((~is_tie & (top.indices[..., 0] != tensors[f"step{step}.guided_argmax"])).sum())
        if _is_greedy(case) and f"step{step}.chosen" in tensors:
            # What this step wrote is what the whole generation has there: nothing is written twice.
            output = tensors[f"output.{plan.target}"].flatten(1).gather(1, tensors[f"step{step}.positions"])
            is_written = tensors[f"step{step}.chosen"] & ~is_tie
            num_other += int((is_written & (top.indices[..., 0] != output)).sum())
    yield Check(f"{name}: logits of each step", max(errors), _LOGITS_TOLERANCE)
    yield count(f"{name}: best ids that differ, ties aside", num_wrong)
    if _is_greedy(case) and "step0.chosen" in tensors:
        yield count(f"{name}: ids written step by step that differ", num_other)


def _whole(
    name: str, case: Mapping, tensors: Mapping[str, Tensor], plans: list[TargetPlan], sampler: Sampler
) -> Iterator[Finding]:
    """ROAR at the stored positions, and MaskGIT in one step, are functions of their input."""
    positions: dict[str, list[list[np.ndarray]]] = {}
    if set(case["schemes"]) == {"roar"}:
        for step, written in enumerate(case["passes"]):
            by_clip = positions.setdefault(written["target"], [[] for _ in range(case["batch"])])
            for clip in range(case["batch"]):
                by_clip[clip].append(tensors[f"step{step}.positions"][clip].numpy())
    elif max(case["steps"]) > 1:
        # Which position MaskGIT writes first is a tie at this temperature: compared step by step in `_steps`.
        if not (_is_greedy(case) and "step0.chosen" in tensors):
            yield Skipped(f"{name}: generated ids", "which position MaskGIT writes first is not determined")
        return
    if not _is_greedy(case):
        yield Skipped(f"{name}: generated ids", "drawn at random")
        return
    seeds = list(range(case["batch"]))
    made = sampler.generate(_prompts(case, tensors), plans, seeds, positions=positions or None)
    for target in case["targets"]:
        found = np.stack([clip.tokens[target] for clip in made])
        wanted = tensors[f"output.{target}"].flatten(1).numpy()
        yield count(f"{name}: generated ids of {target} that differ", int((found != wanted).sum()))


def _is_greedy(case: Mapping) -> bool:
    return all(temperature <= 0.01 for temperature in case["temps"]) or case["top_k"] == 1


def _schedules(published: Mapping) -> Iterator[Finding]:
    for key, values in published.items():
        if (found := re.fullmatch(r"(linear|cosine)_schedule", key)) is not None:
            # The published rounding can write a negative number of tokens in the last step.
            sizes = {size: counts for size, counts in values.items() if min(counts) > 0}
            wrong = 0
            for size, counts in sizes.items():
                num_steps, num_tokens = map(int, size.split(","))
                wrong += token_counts(found.group(1), num_steps=num_steps, num_tokens=num_tokens) != tuple(counts)
            yield count(f"{key}: schedules that differ", wrong)
        elif (
            found := re.fullmatch(
                r"(linear|onex|decreasing)_temp_schedule\((.*?),? ?(linear|cosine) (\d+)/(\d+).*\)", key
            )
        ) is not None:
            kind, numbers, schedule, num_steps, num_tokens = found.groups()
            values_of = [float(number) for number in re.findall(r"[\d.]+", numbers)]
            name = f"decreasing:{values_of[1]}" if kind == "decreasing" else kind
            if kind == "onex":
                power = float(re.search(r"power ([\d.]+)", key).group(1))
                name = f"onex:{values_of[1]}:{power}"
            counts = token_counts(schedule, num_steps=int(num_steps), num_tokens=int(num_tokens))
            ours = step_temperatures(name, temperature=values_of[0], counts=counts)
            yield matched(key, torch.tensor(ours), torch.tensor(values), 1e-6)
        else:
            yield Skipped(key, "no such schedule here")


def _filtering(tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    for name, wanted in tensors.items():
        if name == "logits":
            continue
        options: dict[str, float] = {}
        if (top_k := re.search(r"topk_(?:frac_)?([\d.]+)", name)) is not None:
            options["top_k"] = float(top_k.group(1))
        if (top_p := re.search(r"topp_([\d.]+)", name)) is not None:
            options["top_p"] = float(top_p.group(1))
        yield matched(f"filtering {name}", keep_likely(tensors["logits"], **options), wanted, 0.0)
