"""Configs as plain values and files."""

import dataclasses
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError


def to_plain(config: Any) -> Any:
    """Nested dict, list, str, numbers, bool and None of a config (tuples become lists, paths become text)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple | set | frozenset):
        return [to_plain(value) for value in config]
    if isinstance(config, Enum):
        return config.value
    return str(config) if isinstance(config, Path) else config


def save_config(config: Any, path: str | Path) -> None:
    """Write a config as .json, .yaml or .yml; `load_config` reads the YAML back."""
    path = Path(path)
    plain = to_plain(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(plain, indent=2) + "\n")
    elif path.suffix in (".yaml", ".yml"):
        OmegaConf.save(OmegaConf.create(plain), path)
    else:
        raise ValueError(f"{path}: a config is saved as .json, .yaml or .yml, found suffix {path.suffix!r}")


def load_plain(path: str | Path) -> dict[str, Any]:
    """Values of one YAML file as they stand there, without composition or schema; for configs of other programs."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: a config is a mapping, found {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}
