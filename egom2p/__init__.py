"""EgoM2P: masked multimodal pretraining and any-to-any generation for egocentric data.

What most scripts begin with can be had from here; it is imported when it is first asked for:

    model = egom2p.load_model()
    clip = model.generate("walk.mp4", targets=["depth", "cam"], seed=0)
    clip.depth_m, clip.world_from_cam
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FRONT_DOOR = {
    "load_model": "egom2p.generation.loaded_model",
    "pretrained_checkpoint": "egom2p.generation.checkpoints",
    "read_prompts": "egom2p.generation.generation_inputs",
    "Request": "egom2p.generation.request",
    "generate_clips": "egom2p.generation.clip_generation",
    "load_tokenizer": "egom2p.tokenizers.pretrained",
    "load_config": "egom2p.config",
}


def __getattr__(name: str) -> Any:
    if name not in _FRONT_DOOR:
        raise AttributeError(f"module 'egom2p' has no attribute {name!r}; its front door has {sorted(_FRONT_DOOR)}")
    return getattr(import_module(_FRONT_DOOR[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FRONT_DOOR])
