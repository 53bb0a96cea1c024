"""The data and alphas files of a published trio -> the `data` section of ours, no key forgotten silently."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egom2p.config import load_plain

_LOADER = ("use_wds", "wds_n_repeats", "wds_shuffle_buffer_tar", "wds_shuffle_buffer_repeat", "shuffle_buffer_load")
_PIXELS = ("main_augment_domain", "aligned_captions", "tok_train_aug", "max_samples", "pre_shuffle")


class Leftovers:
    """Keys without counterpart, each with the reason."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, key: str, reason: str) -> None:
        self.lines.append(f"{key}: {reason}")


class Source:
    """Keys of one published mapping, crossed out as they are used."""

    def __init__(self, values: Mapping[str, Any], where: str, leftovers: Leftovers) -> None:
        self._left = dict(values)
        self.where = where
        self.leftovers = leftovers

    def take(self, key: str, default: Any = None) -> Any:
        """Value of a key, else the published program's default."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def drop(self, key: str, reason: str) -> None:
        """A key that is not needed here."""
        if key in self._left and self._left.pop(key) is not None:
            self.leftovers.add(f"{self.where}.{key}", reason)

    def only(self, key: str, value: Any, reason: str) -> None:
        """A key of which one value has a counterpart; with another one it is named."""
        found = self._left.pop(key, None)
        if found is not None and found != value:
            self.leftovers.add(f"{self.where}.{key}", f"{found} has no counterpart; {reason}")

    def name_the_rest(self) -> None:
        """Name every key that nothing has asked for, unless it is null."""
        for key, value in self._left.items():
            if value is not None:
                self.leftovers.add(f"{self.where}.{key}", "unknown")
        self._left.clear()


def converted_data(
    root: Path, file: str, budgets: Mapping[str, Any], fixed: Mapping[str, Any], leftovers: Leftovers
) -> dict[str, Any]:
    """`budgets` and `fixed` are the token budgets of training and of validation that the main file gives."""
    source = Source(load_plain(root / file), "data", leftovers)
    train = Source(source.take("train", {}), "data.train", leftovers)
    described = train.take("datasets", {})
    if not described:
        raise ValueError(f"{root / file}: train.datasets is empty")
    weights = train.take("weights") or [1.0] * len(described)
    if len(weights) != len(described):
        raise ValueError(f"{root / file}: {len(weights)} weights for {len(described)} data sets")
    datasets = {
        name: {**_dataset(root, name, values, budgets, leftovers), "weight": weight}
        for (name, values), weight in zip(described.items(), weights, strict=True)
    }
    held_out = Source(source.take("val", {}), "data.val", leftovers)
    validation = {}
    for name, values in held_out.take("datasets", {}).items():
        if name not in datasets:
            leftovers.add(f"data.val.{name}", "no training set of that name says how it is masked")
            continue
        known = {key: value for key, value in datasets[name].items() if not key.startswith("min_")}
        own = Source(values, f"data.val.{name}", leftovers)
        validation[name] = {**known, "weight": 1.0, **fixed, "shards": own.take("data_path", known["shards"])}
        _drop_loader_keys(own)
        own.name_the_rest()
    for part in (train, held_out, source):
        part.name_the_rest()
    return {"datasets": datasets, "validation": validation}


def _dataset(
    root: Path, name: str, values: Mapping[str, Any], budgets: Mapping[str, Any], leftovers: Leftovers
) -> dict[str, Any]:
    source = Source(values, f"data.{name}", leftovers)
    source.only("type", "multimodal", "only token shards are read")
    in_domains = source.take("in_domains", "").split("-")
    out_domains = source.take("out_domains", "").split("-")
    own = {side: source.take(f"num_{side}_tokens") for side in ("input", "target")}
    given = {
        **{f"max_{side}_tokens": number for side, number in own.items() if number is not None},
        **{f"min_{side}_tokens": source.take(f"min_{side}_tokens") for side in own},
    }
    merged = {**budgets, **{key: number for key, number in given.items() if number is not None}}
    alphas_file = source.take("alphas_config")
    if alphas_file:
        alphas = _alphas_file(root / alphas_file, leftovers)
        for key in ("input_alphas", "target_alphas"):
            source.drop(key, "the alphas file is used instead, as published")
        if set(in_domains) - set(out_domains):
            leftovers.add(
                f"data.{name}.out_domains",
                f"kept; the published program ignored it beside an alphas file, targets were {', '.join(in_domains)}",
            )
    else:
        sides = {
            "input": _alphas_of(source.take("input_alphas", 1.0), in_domains),
            "target": _alphas_of(source.take("target_alphas", 1.0), out_domains),
        }
        alphas = {
            "alphas_mixture": {
                modality: {f"{side}_alphas": [by_name.get(modality, 0.0)] for side, by_name in sides.items()}
                for modality in dict.fromkeys([*in_domains, *out_domains])
            }
        }
    names = source.take("modality_name_map")
    shards = source.take("data_path")
    if shards is None:
        raise ValueError(f"data set {name} of the data file has no data_path")
    _drop_loader_keys(source)
    source.name_the_rest()
    return {
        "shards": shards,
        "in_domains": in_domains,
        "out_domains": out_domains,
        "alphas": alphas,
        "policy": "clamp",
        **{key: number for key, number in merged.items() if number is not None},
        **({"folder_names": {modality: folder for folder, modality in names.items()}} if names else {}),
    }


def _alphas_file(file: Path, leftovers: Leftovers) -> dict[str, Any]:
    source = Source(load_plain(file), f"alphas {file.stem}", leftovers)
    mixture = {}
    for modality, values in source.take("alphas_mixture", {}).items():
        one = Source(values, f"alphas {file.stem}.{modality}", leftovers)
        mixture[modality] = {key: one.take(key) for key in ("input_alphas", "target_alphas")}
        one.name_the_rest()
    if not mixture:
        raise ValueError(f"{file}: alphas_mixture is empty")
    alphas = {"alphas_mixture": mixture}
    weights = source.take("sampling_weights")
    source.name_the_rest()
    return alphas if weights is None else {**alphas, "sampling_weights": weights}


def _alphas_of(value: float | str, domains: list[str]) -> dict[str, float]:
    """One value for all, or one per modality separated by hyphens."""
    numbers = [float(number) for number in str(value).split("-")]
    if len(numbers) == 1:
        numbers *= len(domains)
    if len(numbers) != len(domains):
        raise ValueError(f"{len(numbers)} alphas ({value}) for the modalities {', '.join(domains)}")
    return dict(zip(domains, numbers, strict=True))


def _drop_loader_keys(source: Source) -> None:
    for key in _LOADER:
        source.drop(key, "the loader computes its order and needs no buffers")
    for key in _PIXELS:
        source.drop(key, "acts on pixels or captions, shards hold tokens")
