"""The reference's generations, step by step, from the reference's weights."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from egom2p.contracts import ModalitySpec, TokenClip, TokenGrid
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.generate import Sampler
from egom2p.models.generation_plans import TargetPlan
from egom2p.models.weights import from_reference_state_dict

_TIE = 1e-4
_ROAR = (
    "roar_rgb2cam_cfg2_argmax",
    "roar_rgb2cam_cfg2_temp0.01_topp0.8",
    "roar_rgb2cam_cfg2_topk1",
    "roar_rgb2depth_nocfg_10steps_argmax",
    "multi_cond_rgb_gaze2cam_roar",
    "chain_rgb2depth2cam_roar_grow",
)
_MASKGIT = (
    "maskgit_rgb2gaze_1step_argmax",
    "maskgit_rgb2gaze_cfg2_cosine8_temp0.01",
    "maskgit_cam2gaze_cfg1_linear5_argmax",
)


@cache
def _sampler(parity_dir: Path) -> Sampler:
    folder = parity_dir / "model" / "swiglu_nobias"
    config = json.loads((folder / "info.json").read_text())["config"]
    grid, track = TokenGrid(tuple(config["grid"])), TokenGrid((30,))
    vocab = config["vid_vocab"]
    specs = (
        ModalitySpec("tok_cam", "track", "camera", track, 256, "cam"),
        ModalitySpec("tok_depth", "grid", "depth", grid, vocab, "depth"),
        ModalitySpec("tok_gaze", "track", "gaze", track, 256, "gaze"),
        ModalitySpec("tok_rgb", "grid", "rgb", grid, vocab, "rgb"),
    )
    size = ModelConfig(
        dim=config["dim"],
        encoder_depth=config["enc"],
        decoder_depth=config["dec"],
        num_heads=config["heads"],
        mlp_ratio=config["mlp_ratio"],
        activation="swiglu",
        use_bias=False,
    )
    model = EgoM2P(size, specs)
    from_reference_state_dict(model, load_file(folder / "state_dict.safetensors"))
    return Sampler(model.eval())


def _case(parity_dir: Path, name: str) -> tuple[dict, dict[str, torch.Tensor], list[TargetPlan]]:
    case = json.loads((parity_dir / "generation" / "cases.json").read_text())[name]
    tensors = load_file(parity_dir / "generation" / f"{name}.safetensors")
    plans = [
        TargetPlan(
            target=target,
            scheme=case["schemes"][number],
            num_steps=case["steps"][number],
            token_schedule=case["token_schedules"][number],
            temperature=case["temps"][number],
            top_k=case["top_k"],
            top_p=case["top_p"],
            guidance=case["cfg_scales"][number],
            grow_conditioning=case["cfg_grow_conditioning"],
        )
        for number, target in enumerate(case["targets"])
    ]
    return case, tensors, plans


def _prompts(case: dict, tensors: dict[str, torch.Tensor]) -> list[TokenClip]:
    return [
        TokenClip(str(clip), {name: tensors[f"input.{name}"][clip].numpy() for name in case["cond"]})
        for clip in range(case["batch"])
    ]


@pytest.mark.parametrize("name", _ROAR)
def test_roar_at_given_places_writes_the_same_tokens(parity_dir, name):
    case, tensors, plans = _case(parity_dir, name)
    places: dict[str, list[list[np.ndarray]]] = {}
    for step, written in enumerate(case["passes"]):
        for clip in range(case["batch"]):
            by_clip = places.setdefault(written["target"], [[] for _ in range(case["batch"])])
            by_clip[clip].append(tensors[f"step{step}.positions"][clip].numpy())
    made = _sampler(parity_dir).generate(_prompts(case, tensors), plans, [0, 1], places=places)
    for target in case["targets"]:
        found = np.stack([clip.tokens[target] for clip in made])
        np.testing.assert_array_equal(found, tensors[f"output.{target}"].numpy())


@pytest.mark.parametrize("name", (*_ROAR, *_MASKGIT))
def test_every_step_from_the_stored_state_has_the_same_logits(parity_dir, name):
    case, tensors, plans = _case(parity_dir, name)
    sampler = _sampler(parity_dir)
    for step, wanted in enumerate(case["passes"]):
        plan = next(plan for plan in plans if plan.target == wanted["target"])
        prompts = _prompts(case, tensors)
        for clip, prompt in enumerate(prompts):
            for target in case["targets"]:
                ids = tensors[f"step{step}.state.{target}.tensor"][clip].numpy().astype(np.int32)
                is_known = ~tensors[f"step{step}.state.{target}.input_mask"][clip].numpy()
                if target == plan.target or is_known.any():
                    prompt.tokens[target] = np.where(is_known, ids, -1)
        places = tensors[f"step{step}.positions"].numpy()
        guided = torch.stack(sampler.logits(prompts, plan, list(places)))
        stored = tensors[f"step{step}.logits_cond"]
        if f"step{step}.logits_uncond" in tensors:
            base = tensors[f"step{step}.logits_uncond"]
            stored = base + (stored - base) * wanted["cfg"]
        scale = max(1.0, float(stored.abs().max()))
        assert float((guided - stored).abs().max()) <= 2e-5 * scale
        top = guided.topk(2, dim=-1)
        is_tie = top.values[..., 0] - top.values[..., 1] < _TIE
        is_equal = top.indices[..., 0] == tensors[f"step{step}.guided_argmax"]
        assert bool((is_equal | is_tie).all())


def test_one_step_of_maskgit_writes_the_same_tokens(parity_dir):
    case, tensors, plans = _case(parity_dir, _MASKGIT[0])
    made = _sampler(parity_dir).generate(_prompts(case, tensors), plans, [0, 1])
    found = np.stack([clip.tokens["tok_gaze"] for clip in made])
    np.testing.assert_array_equal(found, tensors["output.tok_gaze"].numpy())
