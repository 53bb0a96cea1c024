"""Folder `misc` and the lists of names beside it: learning rates, positions, names and shapes of full-size networks."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from egom2p.contracts import ModalitySpec, TokenGrid
from egom2p.layers.blocks import sincos_positions
from egom2p.models.convert_model import model_config
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.weights import to_reference_state_dict
from egom2p.tokenizers.video.video_codec import VideoCodec, VideoCodecConfig
from egom2p.training.schedule import LearningRate, Length, WeightDecay
from egom2p.training.training_config import TrainingConfig
from parity_checks.check import Finding, Skipped, count, matched, near, read_json, read_tensors


def misc_checks(folder: Path) -> Iterator[Finding]:
    """Learning rates and positions."""
    arithmetic = read_json(folder / "arithmetic.json")
    args = arithmetic["args"]
    if "lr_b4_256gpus" in arithmetic:
        config = TrainingConfig(num_steps=1, blr=1e-4, batch_size=4)
        peak = config.learning_rate(config.length(), world_size=256).peak
        yield near("learning rate of 256 times 4 clips", peak, arithmetic["lr_b4_256gpus"], 1e-9)
    for name, wanted in read_tensors(folder / "schedules_and_posemb.safetensors").items():
        positions = re.fullmatch(r"posemb_(\d)d_([\dx]+)x(\d+)", name)
        if positions is not None and positions.group(1) != "2":
            grid = TokenGrid(tuple(int(size) for size in positions.group(2).split("x")))
            yield matched(name, sincos_positions(grid, int(positions.group(3))), wanted)
        elif name in ("cosine_warmup_steps", "cosine_warmup_epochs1_min"):
            total = len(wanted)
            if name == "cosine_warmup_steps":
                rate = LearningRate(Length("steps", total, args["w"]), args["base"])
            else:  # one epoch of warm-up from 1e-6, down to a tenth
                rate = LearningRate(Length("steps", total, args["n"]), args["base"], start=1e-6, end=args["base"] / 10)
            found = torch.tensor([rate.at(step, 1) for step in range(total)], dtype=torch.float64)
            yield matched(f"{name} (in units of the base rate)", found / args["base"], wanted / args["base"], 1e-9)
        elif name == "cosine_wd_constant":
            decay = WeightDecay(Length("steps", len(wanted)), start=wanted[0].item(), end=wanted[-1].item())
            found = torch.tensor([decay.at(step) for step in range(len(wanted))], dtype=torch.float64)
            yield matched(f"{name} (in units of the first value)", found / wanted[0], wanted / wanted[0], 1e-9)
        elif name == "inverse_sqrt":
            yield from _inverse_sqrt(wanted, args["w"], args["base"])
        else:
            yield Skipped(
                name, "token grids have one or three axes here" if "posemb_2d" in name else "no such table here"
            )


def _inverse_sqrt(wanted: torch.Tensor, warmup: int, base: float) -> Iterator[Finding]:
    """Warm-up and fall; the timescale is read off the first step after the peak, the cool-down off where it begins."""
    timescale = 1 / ((base / wanted[warmup + 1].item()) ** 2 - 1)
    begin = next((k for k in range(warmup + 1, len(wanted)) if wanted[k] == wanted[k - 1]), len(wanted))
    rate = LearningRate(
        Length("steps", len(wanted), warmup), base, shape="inverse_sqrt", timescale=timescale,
        cooldown=len(wanted) - begin,
    )  # fmt: skip
    found = torch.tensor([rate.at(step, 1) for step in range(begin)], dtype=torch.float64)
    yield matched(
        "inverse_sqrt before its cool-down (in units of the base rate)", found / base, wanted[:begin] / base, 1e-9
    )
    if begin < len(wanted):
        yield Skipped("inverse_sqrt, cool-down", "it repeats a value and reaches its end a step earlier than ours")


def name_checks(root: Path) -> Iterator[Finding]:
    """Names and shapes of the full-size networks."""
    file = root / "base_state_dict_keys.txt"
    if file.is_file():
        shapes = {name: shape for name, shape in _listed(file)}
        weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        found = sorted(
            name.split(".")[1] for name in shapes if re.fullmatch(r"encoder_embeddings\.\w+\.token_emb\.weight", name)
        )
        with torch.device("meta"):
            model = EgoM2P(_config_of(weights), tuple(_spec(name, shapes) for name in found))
            ours = {name: list(tensor.shape) for name, tensor in to_reference_state_dict(model).items()}
        differing = [name for name, shape in ours.items() if shapes.get(name) != shape]
        left = [name for name in shapes if name not in ours and not name.endswith(("pos_emb", "bias"))]
        yield count("full-size EgoM2P: names or shapes that differ", len(differing) + len(left))
    file = root / "cosmos_dv4x8x8_state_dict_keys.txt"
    if file.is_file():
        shapes = dict(_listed(file))
        config = VideoCodecConfig(
            modality="tok_video", quantity="rgb", folder="video", num_frames=16, height=256, width=256, rate_hz=8
        )
        codec = VideoCodec(config)
        ours = {name: list(tensor.shape) for name, tensor in codec.state_dict().items()}
        differing = [name for name, shape in ours.items() if shapes.get(name) != shape]
        left = [name for name in shapes if name not in ours and "sample.conv" not in name]
        yield count("full-size video codec: names or shapes that differ", len(differing) + len(left))


def _config_of(weights: dict[str, torch.Tensor]) -> ModelConfig:
    # Whether head and embedding are the same tensor is a question about values, which these have not.
    tied = {name: tensor for name, tensor in weights.items() if not re.match(r"decoder_embeddings\..*token_emb", name)}
    return model_config(tied, None)


def _spec(name: str, shapes: dict[str, list[int]]) -> ModalitySpec:
    vocab_size = shapes[f"encoder_embeddings.{name}.token_emb.weight"][0]
    # The shape of the grid plays no part in the names.
    positions = shapes[f"encoder_embeddings.{name}.pos_emb"][1]
    return ModalitySpec(name, "track", "generic", TokenGrid((positions,)), vocab_size, name)


def _listed(file: Path) -> Iterator[tuple[str, list[int]]]:
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            name, shape = line.split("\t")[:2]
            yield name, json.loads(shape)
