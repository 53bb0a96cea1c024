"""What a device could compute at best: the denominator of model-FLOPs utilisation."""

import torch

# Dense bf16/fp16 tensor-core peaks of the makers' data sheets, FLOP/s. The first name a device's own name holds counts.
_HALF_PRECISION_PEAKS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A40": 150e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype, *, given_tflops: float | None = None) -> float | None:
    """Peak FLOP/s of one device in a precision; None where it is neither given nor known (CPUs, float32)."""
    if given_tflops is not None:
        return given_tflops * 1e12
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(device_name: str) -> float | None:
    """Peak in half precision of a device by the name its driver gives."""
    words = device_name.replace("-", " ")
    return next((peak for name, peak in _HALF_PRECISION_PEAKS.items() if name in words), None)
