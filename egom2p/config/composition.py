"""From a YAML file and overrides to a validated config (Hydra composes, the schema receives), and back into a file.

A main file may lie anywhere; its `defaults` list reaches every file below the cfgs root by absolute name, e.g.
`/default/egom2p/models/size@model: tiny`.
"""

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_origin

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

import egom2p
from egom2p.config.schema import ConfigError, decides, empty_texts, from_plain, is_known_key, types_at, unknown_key

SchemaT = TypeVar("SchemaT")


def cfgs_root() -> Path:
    """Folder of the configs: beside the package in a checkout, inside it when installed."""
    package = Path(egom2p.__file__).resolve().parent
    inside = package / "cfgs"  # looked at first: beside an installed package any other may have a folder of this name
    return inside if inside.is_dir() else package.parent / "cfgs"


def load_config(schema: type[SchemaT], file: str | Path, overrides: Sequence[str] = ()) -> SchemaT:
    """Compose `file` with overrides such as `model.dim=64` and validate it.

    Raises ConfigError (a ValueError) with one readable message for anything that is wrong.
    """
    file = find_config_file(file)
    tree = compose(file, prepare_overrides(schema, overrides, file))
    return build(schema, tree, where=str(file))


def build(schema: type[SchemaT], tree: DictConfig, *, where: str) -> SchemaT:
    """A validated schema instance from a composed tree."""
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"`{error.full_key}` has no value; say {error.full_key}=... (config {where})") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {error}") from None
    built = from_plain(schema, {str(key): value for key, value in plain.items()}, where=where)
    if empty := list(empty_texts(built)):
        raise ConfigError(f"{where}: " + "\n  ".join(f"`{key}`: wanted a value, found ''" for key in empty))
    return built


def find_config_file(file: str | Path) -> Path:
    """The YAML itself: as given, else below the cfgs root, with or without `cfgs/`; the suffix may be left out.

    What is meant to be run lies in a folder `main` beside parts of it: that step of the path may be left out too.
    """
    given = Path(file)
    bases = (Path.cwd(), cfgs_root(), cfgs_root().parent)
    names = [given] if given.suffix in (".yaml", ".yml") else [given, Path(f"{given}.yaml")]
    tried = [base / name for base in bases for name in names]
    for path in (*tried, *(path.parent / "main" / path.name for path in tried)):
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            return path.resolve()
    if given.is_file():
        raise ConfigError(f"{given}: a config is a .yaml file")
    nearest = _nearest_file(given)
    looked = f", seen from {Path.cwd()} or from {cfgs_root()}" if not given.is_absolute() and not nearest else ""
    raise ConfigError(f"no config file {given}{looked}{nearest}")


def _nearest_file(given: Path) -> str:
    """`; did you mean ...?`: the file of this name that lies elsewhere (one folder deeper), or a like one."""
    root = cfgs_root()
    found = {str(Path(root.name, path.relative_to(root))): path.stem for path in sorted(root.rglob("*.yaml"))}
    named = [name for name, stem in found.items() if stem == given.stem] or list(found)
    wanted = str(given if given.suffix else given.with_suffix(".yaml"))
    nearest = difflib.get_close_matches(wanted, named, n=1, cutoff=0.0 if len(named) < len(found) else 0.75)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def compose(file: Path, overrides: Sequence[str]) -> DictConfig:
    """Hydra's composition of one file, without run directories, logging or a change of folder."""
    overrides = [*overrides, f"hydra.searchpath=[{quoted('file://' + str(cfgs_root()))}]"]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir=str(file.parent), version_base="1.3"):
            return hydra.compose(config_name=file.stem, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{file}: {_readable(error)}") from None
    except (YAMLError, UnicodeDecodeError, RecursionError) as error:
        # The file may be another one that it names; YAML's own words then say which, with line and column.
        raise ConfigError(f"{file}: not valid YAML ({' '.join(str(error).split())})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        # OmegaConf's word for a file that holds a number or the like, and no keys
        raise ConfigError(f"{file}: wanted keys and their values ({error})") from None
    finally:
        GlobalHydra.instance().clear()


def prepare_overrides(schema: type, overrides: Sequence[str], file: Path, *, is_sweep: bool = False) -> list[str]:
    """Check the keys of overrides against the schema, and let known keys be set though no YAML names them.

    Choices of whole files (`group@package=choice`) and `hydra.*` are passed on as they are. A key that takes text takes
    it as it is typed, whatever it means to Hydra (file names with brackets, commas, letters of any alphabet), except
    that of a sweep commas part the values.
    """
    prepared = []
    for override in overrides:
        ready = _prepare_override(schema, override, file, is_sweep)
        key, _, value = ready.removeprefix("++").partition("=")
        if ready.startswith("++") and not is_sweep and value.startswith("{") and _is_named_set(schema, key.split(".")):
            # Hydra merges a mapping into the one that is there. Where its keys are names that people give
            # (`checkpoints={mine: ...}`), what was typed is the whole of it.
            prepared.append(f"++{key}=null")
        prepared.append(ready)
    return prepared


def _is_named_set(schema: type, path: Sequence[str]) -> bool:
    """Whether the value of a key is a mapping of names to values of one kind, not a schema's own keys."""
    kinds = [get_origin(kind) or kind for kind in types_at(schema, path)]
    return any(isinstance(kind, type) and issubclass(kind, Mapping) for kind in kinds)


def _prepare_override(schema: type, override: str, file: Path, is_sweep: bool) -> str:
    sign = "++" if override.startswith("++") else override[:1] if override[:1] in "+~" else ""
    key, equals, value = override[len(sign) :].partition("=")
    if not equals and sign != "~":
        hint = f"; did you mean input={override}?" if Path(override).exists() and types_at(schema, ["input"]) else ""
        raise ConfigError(f"{override!r} is not of the form key=value{hint}")
    is_group = "/" in key or "@" in key or (file.parent / key).is_dir() or (cfgs_root() / key).is_dir()
    if is_group or key.split(".")[0] == "hydra":
        return override
    path = key.split(".")
    if not is_known_key(schema, path):
        raise ConfigError(unknown_key(schema, path))
    if not sign and not (is_sweep and "," in value):
        value = _as_typed(schema, path, value)
    return override if sign else f"++{key}={value}"


def _as_typed(schema: type, path: Sequence[str], value: str) -> str:
    """The value of an override in Hydra's grammar: quotes around what is text.

    What Hydra is to read stays as it is: quotes of one's own, `${...}`, null, a list or mapping where one is possible.
    """
    kinds = [get_origin(kind) or kind for kind in types_at(schema, path)]
    key = ".".join(path)
    if not {str, Path} & set(kinds):
        is_list = bool({list, tuple} & set(kinds)) and str in types_at(schema, [*path, "0"])
        is_word = value[:1] not in ("", "[", "{", "'", '"') and "${" not in value and value.lower() != "null"
        if is_list and is_word and "," not in value:
            raise ConfigError(f"`{key}` is a list, found {value!r}; say {key}=[{value}]")
        return value
    if not value.strip():
        raise ConfigError(f"`{key}` has no value; say {key}=...")
    is_quoted = value[0] in "'\"" and value[-1] == value[0] and len(value) > 1
    is_list = value[0] in "[{" and not set(kinds) <= {str, Path, type(None)}
    if is_quoted or is_list or "${" in value or value.lower() == "null" or {int, float, bool} & set(kinds):
        return value
    return quoted(os.path.expanduser(value) if value.startswith("~/") else value)


def _readable(error: Exception) -> str:
    """Hydra's own words, with the cause where Hydra only wraps it."""
    cause: Any = error.__cause__
    text = str(error).strip()
    return f"{text} ({cause})" if cause is not None and str(cause) not in text else text


def quoted(text: str) -> str:
    """Text as one value of Hydra's override grammar."""
    # There a backslash is one, unless it stands before a quote.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text) + "'"


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


def deciding(config: Any) -> Any:
    """As `to_plain`, without the fields declared `not_deciding`: outputs saved under anything else are stale.

    A field that nobody thought about decides, so a forgotten option makes too much anew, never too little.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        kept = [field.name for field in dataclasses.fields(config) if decides(field)]
        return {name: deciding(getattr(config, name)) for name in kept}
    if isinstance(config, Mapping):
        return {str(key): deciding(value) for key, value in config.items()}
    if isinstance(config, list | tuple | set | frozenset):
        return [deciding(value) for value in config]
    return to_plain(config)


def to_yaml(plain: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dict(plain)))


def save_config(config: Any, path: str | Path) -> None:
    """Write a config as .json, .yaml or .yml; `load_config` reads the YAML back."""
    path = Path(path)
    plain = to_plain(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(plain, indent=2) + "\n")
    elif path.suffix in (".yaml", ".yml"):
        path.write_text(to_yaml(plain), encoding="utf-8")
    else:
        raise ValueError(f"{path}: a config is saved as .json, .yaml or .yml, found suffix {path.suffix!r}")


def load_plain(path: str | Path) -> dict[str, Any]:
    """Values of one YAML file as they stand there, without composition or schema; for configs of other programs."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, OSError) as error:  # OSError: a number alone
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: a config is a mapping, found {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}
