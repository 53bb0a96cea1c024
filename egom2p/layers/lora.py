"""Low-rank adapters (LoRA, DoRA) on linear layers, attached and merged through peft.

r rank, D_in, D_out widths of a linear layer. An adapted layer computes W x + alpha / r * B A x with A (r, D_in) and B
(D_out, r); B starts at 0, so attaching changes nothing.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from egom2p.config import Count, Positive, Share, strict

_ADAPTER = "default"
# peft's files name parameters as seen from its outermost wrapper.
_PREFIX = "base_model.model."


@strict
class LoraConfig:
    """Which linear layers get adapters, and how large they are.

    target_modules   ends of layer names, such as `q_proj` or `attn.qkv`; `all-linear`: every linear layer but the
                     output head of a language model
    use_rslora       scale by alpha / sqrt(rank) instead of alpha / rank
    use_dora         learn the length of the weight's rows apart from their direction
    also_train       names of base parameters that are trained in full beside the adapters, wildcards allowed
    """

    rank: Count = 16  # width of the adapters
    alpha: Positive = 32.0  # what they add is scaled by alpha / rank
    dropout: Share = 0.0  # of what goes into an adapter, in training
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    also_train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dropout == 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not self.target_modules:
            raise ValueError("target_modules is empty; name layers, or say all-linear")


def attach_lora(module: nn.Module, config: LoraConfig) -> nn.Module:
    """Put adapters into `module` itself, freeze everything else, and return it.

    Adapters are float32 whatever the base is; A is drawn from torch's default generator.
    ValueError when a name of `target_modules` or `also_train` fits nothing, or adapters are attached already.
    """
    peft = _peft()
    if next(_lora_layers(module), None) is not None:
        raise ValueError("the model has adapters already; merge them first")
    names = _target_names(module, config)
    trained = {name: _matching_parameters(module, name) for name in config.also_train}
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
    )
    module.requires_grad_(False)
    peft.inject_adapter_in_model(settings, module, adapter_name=_ADAPTER)
    for name, parameter in module.named_parameters():
        if _is_adapter(name):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    for parameters in trained.values():
        for parameter in parameters:
            parameter.requires_grad_(True)
    return module


def merge_lora(module: nn.Module) -> nn.Module:
    """Fold the adapters into the weights, in place: a module without adapters that computes the same."""
    for name, layer in list(_lora_layers(module)):
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config
    return module


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict of the merged module, under the names of the module before attaching; the module stays as it is."""
    peft, state = _peft(), module.state_dict()
    merged: dict[str, Tensor] = {}
    for name, layer in _lora_layers(module):
        # Folded in a copy made of the state dict alone: what it shows need not be what the layer itself holds.
        with torch.device("meta"):
            copy = nn.ModuleDict({"layer": nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)})
            settings = dataclasses.replace(module.peft_config[_ADAPTER], target_modules=["layer"])
            peft.inject_adapter_in_model(settings, copy, adapter_name=_ADAPTER)
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
        copy["layer"].load_state_dict(own, assign=True)
        copy["layer"].merge(safe_merge=True)
        merged |= {f"{name}.{key}": tensor for key, tensor in copy["layer"].get_base_layer().state_dict().items()}
    plain = {_base_name(name): tensor for name, tensor in state.items() if not _is_adapter(name)}
    return {name: merged.get(name, tensor) for name, tensor in plain.items()}


def lora_state(module: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Everything that is trained, under the names of peft's `adapter_model.safetensors`: adapters, `also_train`.

    state   in place of the module's own state dict: of a part of a sharded model only the whole shows whole tensors
    """
    state = module.state_dict() if state is None else state
    return {
        _PREFIX + _file_name(name): state[name]
        for name, parameter in module.named_parameters()
        if _is_adapter(name) or parameter.requires_grad
    }


def load_lora_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put what `lora_state` gave into a module with the same adapters; ValueError names what does not fit."""
    wanted = lora_state(module)
    for name in sorted(wanted.keys() | state.keys()):
        found_shape = tuple(state[name].shape) if name in state else "nothing"
        wanted_shape = tuple(wanted[name].shape) if name in wanted else "nothing"
        if found_shape != wanted_shape:
            raise ValueError(f"adapter: {name} should be {wanted_shape}, found {found_shape}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])


def adapter_settings(module: nn.Module) -> dict[str, Any]:
    """Content of peft's `adapter_config.json` (plain JSON values) for the adapters of a module."""
    settings = module.peft_config[_ADAPTER].to_dict()
    # peft keeps sets and enums.
    return json.loads(
        json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )


def has_lora(module: nn.Module) -> bool:
    """Whether some layer has an adapter."""
    return any(_is_adapter(name) for name, _ in module.named_parameters())


def _target_names(module: nn.Module, config: LoraConfig) -> list[str]:
    """Full names of the layers to adapt."""
    linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and name}
    if config.target_modules == "all-linear":
        head_of = getattr(module, "get_output_embeddings", None)
        head = head_of() if callable(head_of) else None
        names = [name for name, layer in linear.items() if layer is not head]
        if not names:
            raise ValueError("target_modules is all-linear, but the model has no linear layer")
        return names
    fitting = {end: [name for name in linear if f".{name}".endswith(f".{end}")] for end in config.target_modules}
    missing = [end for end, names in fitting.items() if not names]
    if missing:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ValueError(f"target_modules: no linear layer ends in {missing[0]!r}; layers end in {', '.join(kinds)}")
    return list(dict.fromkeys(name for names in fitting.values() for name in names))


def _matching_parameters(module: nn.Module, pattern: str) -> list[nn.Parameter]:
    found = [parameter for name, parameter in module.named_parameters() if fnmatch(name, pattern)]
    if not found:
        raise ValueError(f"also_train: no parameter is called {pattern!r}")
    return found


def _lora_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, layer) for name, layer in module.named_modules() if hasattr(layer, "lora_A"))


def _is_adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


def _base_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _file_name(name: str) -> str:
    if not _is_adapter(name):
        return _base_name(name)
    plain = name.replace(f".{_ADAPTER}.", ".")
    return plain.removesuffix(".weight") if plain.endswith("lora_magnitude_vector.weight") else plain


def _peft() -> ModuleType:
    """Imported here: it brings transformers along, and few runs need it."""
    try:
        import peft
    except ImportError:
        raise ImportError("adapters need peft: pip install 'egom2p[anytoany]'") from None
    return peft
