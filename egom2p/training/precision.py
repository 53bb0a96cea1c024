"""In which precision a model computes. Weights, moments, averages and summed gradients are float32 always."""

from typing import Literal

import torch

Dtype = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 on the CPU, where bf16 is slower."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return _DTYPES[name]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`; does nothing for float32."""
    is_half = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if is_half else torch.bfloat16, enabled=is_half)


def gradient_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler | None:
    """float16 loses small gradients unless the loss is scaled up; other precisions need none.

    The scale falls after steps whose gradients are not finite (they are skipped) and rises after many that are. It
    lives on the device; whether gradients are finite is agreed over the ranks that hold their parts.
    """
    return torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
