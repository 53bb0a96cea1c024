"""Depth by a model of transformers that lies on this machine; nothing is downloaded. F frames, H, W pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def load_depth_model(path: str | Path, *, scale: str, device: str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """A function from pictures (F, H, W, 3) uint8 to what the model predicts (F, H, W) float32, at the pictures' size.

    scale    what the caller takes it for, `metric` or another word. ValueError where the model's config says otherwise
             (Depth Anything's does; others do not say it)
    """
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"{path}: no folder with a model of transformers; none is downloaded here")
    try:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    except ImportError:
        raise ValueError(f"{path}: is run by transformers: pip install 'egom2p[anytoany]'") from None
    processor = AutoImageProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    model = AutoModelForDepthEstimation.from_pretrained(
        path, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    model = model.to(device).eval()
    kind = getattr(model.config, "depth_estimation_type", None)
    if kind not in (None, scale):
        raise ValueError(f"{path}: its config says that its depth is {kind}, found scale={scale}")

    @torch.inference_mode()
    def depth_of(pictures: np.ndarray) -> np.ndarray:
        inputs = processor(images=list(pictures), return_tensors="pt").to(device)
        found = model(**inputs).predicted_depth[:, None].float()
        size = pictures.shape[1:3]
        return (
            torch.nn.functional.interpolate(found, size=size, mode="bilinear", align_corners=False)[:, 0].cpu().numpy()
        )

    return depth_of
