"""Command line -> Hydra composition -> validated instance of a given schema. Knows no schema."""

from egom2p.config.command_line import run_main
from egom2p.config.composition import cfgs_root, deciding, load_config, load_plain, save_config, to_plain, to_yaml
from egom2p.config.schema import (
    ConfigError,
    Count,
    Natural,
    NotNegative,
    Positive,
    Range,
    Share,
    from_plain,
    not_deciding,
    strict,
)

__all__ = [
    "ConfigError",
    "Count",
    "Natural",
    "NotNegative",
    "Positive",
    "Range",
    "Share",
    "cfgs_root",
    "deciding",
    "from_plain",
    "load_config",
    "load_plain",
    "not_deciding",
    "run_main",
    "save_config",
    "strict",
    "to_plain",
    "to_yaml",
]
