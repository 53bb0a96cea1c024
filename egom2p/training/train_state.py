"""What training changes: a model on its device, spread over ranks as configured, with what goes with it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from egom2p.training.distributed import Ranks
from egom2p.training.ema import Ema
from egom2p.training.optim import build_optimizer
from egom2p.training.parallel import check_parallel, prepare_blocks, shard
from egom2p.training.task import kept_state
from egom2p.training.training_config import TrainingConfig


@dataclass(frozen=True)
class TrainState:
    """What changes from step to step: weights (whole, or sharded over ranks) and what goes with them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """`model/<name>`, `optimizer/<name>/<moment>` and `ema/<name>`, in their own memory."""
        for name, tensor in kept_state(self.model).items():
            yield f"model/{name}", tensor
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state.get(parameter, {}).items():
                yield f"optimizer/{name}/{key}", tensor
        if self.ema is not None:
            for name, tensor in self.ema.tensors(self.model).items():
                yield f"ema/{name}", tensor


def make_train_state(model: nn.Module, config: TrainingConfig, *, ranks: Ranks, dtype: torch.dtype) -> TrainState:
    """Move the model to its device, recompute or compile its blocks, shard it: all in place. No weights are read."""
    check_parallel(config.parallel, ranks.world_size)
    model.to(ranks.device)
    model.train()
    prepare_blocks(model, recompute=config.activation_checkpointing, compile_blocks=config.compile == "blocks")
    if config.parallel.kind == "fsdp" and ranks.world_size > 1:
        shard(model, config.parallel, ranks=ranks, dtype=dtype)
    return TrainState(
        model,
        build_optimizer(model, config.optimizer),
        ema=None if config.ema is None else Ema(model, config.ema),
        scaler=gradient_scaler(ranks.device, dtype),
    )


def run_summary(model: nn.Module, config: TrainingConfig, ranks: Ranks, dtype: torch.dtype) -> str:
    """Sizes of the model and of a step, devices, precision."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = (config.batch_size if config.batching == "clips" else config.batch_tokens) * config.accumulation
    where = f"{ranks.world_size} x {ranks.device.type}, {str(dtype).removeprefix('torch.')}"
    return f"{num_parameters / 1e6:.2f} M parameters, {size * ranks.world_size} {config.batching} a step, {where}"


def gradient_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler | None:
    """float16 loses small gradients unless the loss is scaled up; other precisions need none.

    The scale falls after steps whose gradients are not finite (they are skipped) and rises after many that are. It
    lives on the device; whether gradients are finite is agreed over the ranks that hold their parts.
    """
    return torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
