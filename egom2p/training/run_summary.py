"""What the log of a run begins with: what trains how, and what changed since an earlier part of the run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from egom2p.training.distributed import Ranks
from egom2p.training.training_config import TrainingConfig


def opening(model: nn.Module, config: TrainingConfig, ranks: Ranks, dtype: torch.dtype) -> str:
    """Sizes of the model and of a step, devices, precision."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = (config.batch_size if config.batching == "clips" else config.batch_tokens) * config.accumulation
    where = f"{ranks.world_size} x {ranks.device.type}, {str(dtype).removeprefix('torch.')}"
    return f"{num_parameters / 1e6:.2f} M parameters, {size * ranks.world_size} {config.batching} a step, {where}"


def changed_settings(old: Any, new: Any, name: str = "") -> list[str]:
    """Lines `key: old -> new` for every value in which two nested settings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        changes = [changed_settings(old.get(key), new.get(key), f"{name}.{key}" if name else key) for key in keys]
        return [line for lines in changes for line in lines]
    return [] if old == new else [f"{name}: {old} -> {new}"]
