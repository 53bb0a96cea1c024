"""Checks of a planned run that collect every problem instead of ending at the first. No device is touched."""

import contextlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from egom2p.contracts import ModalitySpec
from egom2p.data.modality_info import PUBLISHED_MODALITIES, build_specs
from egom2p.data.shards.shard_files import CARD_NAME, expand_files, read_card, read_index, split_folders
from egom2p.data.shards.shard_set import check_same_keys
from egom2p.data.token_set import TokenSet
from egom2p.data.unified_datasets import DataConfig, DatasetConfig, data_specs
from egom2p.storage import is_remote
from egom2p.tokenizers.pretrained import CARD_FILE, card_spec
from egom2p.training.tasks.pretrain_config import differing_fields
from egom2p.training.training_config import TrainingConfig

_SHOWN = 1  # files named of a longer list


@dataclass(frozen=True)
class DatasetFacts:
    """What a data set has on disk; numbers are 0 where it is missing. `is_estimate`: not every shard was read."""

    name: str
    weight: float
    num_shards: int = 0
    num_clips: int = 0
    is_estimate: bool = False


def check_room(folder: Path, num_parameters: int, training: TrainingConfig) -> tuple[str, str | None]:
    """Words on the checkpoints of a run and the room for them, and the problem where not even two have room.

    A checkpoint holds the weights twice (to load, to go on) and two moments of each, in float32; one more is there
    while the oldest is not removed yet.
    """
    size = 4 * num_parameters * (4 + (training.ema is not None))
    kept = training.keep_last + (training.keep_best is not None) + 1
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    said = f"{size / 1e9:.3g} GB each, up to {kept} at a time; {free / 1e9:.3g} GB are free at {there}"
    if free >= 2 * size:
        return said, None
    return said, f"{folder}: a checkpoint takes {size / 1e9:.3g} GB, two must have room, {free / 1e9:.3g} GB are free"


def check_dataset(
    name: str, config: DatasetConfig, specs: Sequence[ModalitySpec], *, verify_shards: int
) -> tuple[DatasetFacts, list[str]]:
    """Facts and problems of one data set: files there, the same in all folders, keys aligned, cards, first clip."""
    facts = DatasetFacts(name, config.weight)
    if not config.shards.endswith(".tar"):
        return _check_plain_files(facts, config, specs)
    try:
        files = {folder: expand_files(pattern) for folder, pattern in split_folders(config.shards).items()}
    except ValueError as error:
        return facts, [f"{name}: {error}"]
    problems = [line for folder in files for line in _missing(name, files[folder])]
    if not problems:
        problems = _unequal(name, files)
    if problems:
        return facts, problems
    first = next(iter(files))
    num_shards = len(files[first])
    num_chosen = min(verify_shards, num_shards)
    chosen = [number * num_shards // num_chosen for number in range(num_chosen)]
    num_read = 0
    for shard in chosen:
        try:
            num_read += _compare_keys({folder: paths[shard] for folder, paths in files.items()})
        except ValueError as error:
            problems.append(f"{name}: {error}")
    try:
        tokens = TokenSet(_only_first(config.shards, files), specs, folder_names=config.folder_names)
        tokens[0]
    except (ValueError, OSError) as error:
        problems.append(f"{name}: {error}")
    num_clips = round(num_read * num_shards / num_chosen)
    return DatasetFacts(name, config.weight, num_shards, num_clips, num_chosen < num_shards), problems


def _check_plain_files(
    facts: DatasetFacts, config: DatasetConfig, specs: Sequence[ModalitySpec]
) -> tuple[DatasetFacts, list[str]]:
    try:
        tokens = TokenSet(config.shards, specs, folder_names=config.folder_names)
        tokens[0]
    except (ValueError, OSError) as error:
        return facts, [f"{facts.name}: {error}"]
    return DatasetFacts(facts.name, facts.weight, 1, tokens.verify()), []


def check_tokenizers(folders: Mapping[str, Path] | None, specs: Sequence[ModalitySpec]) -> list[str]:
    """Tokenizers that are missing, belong to nothing, or made other tokens than the data holds."""
    if folders is None:
        return []
    names = {spec.name for spec in specs}
    problems = [f"tokenizers: {name} of the data has none" for name in sorted(names - set(folders))]
    problems += [f"tokenizers: {name} is no modality of the data" for name in sorted(set(folders) - names)]
    for spec in specs:
        folder = folders.get(spec.name)
        if folder is None:
            continue
        if not _has_card(folder):
            problems.append(f"tokenizers: {spec.name} wanted at {folder}, which has no {CARD_FILE}")
            continue
        try:
            made = card_spec(folder)
        except ValueError as error:
            problems.append(f"tokenizers: {error}")
            continue
        problems += [
            f"tokenizers: {folder} makes {field} {found}, {spec.name} of the data has {wanted}"
            for field, found, wanted in differing_fields(made, spec)
        ]
        known, found = spec.tokenizer_fingerprint, made.tokenizer_fingerprint
        if known is not None and known != found:
            problems.append(f"tokenizers: {spec.name} of the data was made by {known}, {folder} is {found}")
    return problems


def planned_specs(data: DataConfig, folders: Mapping[str, Path] | None) -> tuple[tuple[ModalitySpec, ...], str]:
    """Modalities of a mixture, and where they are known from: its cards, or what is published under its folders.

    Empty where data is missing and has other folders than the published ones.
    """
    try:
        return data_specs(data), "the data"
    except (ValueError, OSError):
        pass  # reported, with every path, by the check of each data set
    with contextlib.suppress(ValueError):  # of a card: reported by the check of tokenizers
        made = [card_spec(folder) for folder in (folders or {}).values() if _has_card(folder)]
        if folders and len(made) == len(folders):
            return build_specs({spec.name: spec.to_dict() for spec in made}), "the tokenizers"
    wanted = {folder for dataset in data.datasets.values() for folder in _folders_of(dataset)}
    published = {name: None for name, fields in PUBLISHED_MODALITIES.items() if fields["folder"] in wanted}
    if len(published) < len(wanted):
        return (), "nothing"
    return build_specs(published), "the published modalities (the data is not here)"


def modalities_of(config: DatasetConfig, specs: Sequence[ModalitySpec]) -> tuple[ModalitySpec, ...]:
    """Modalities that the clips of a data set have, by the folders its pattern lists."""
    listed, named = _folders_of(config), config.folder_names or {}
    return tuple(spec for spec in specs if named.get(spec.name, spec.folder) in listed)


def _folders_of(config: DatasetConfig) -> tuple[str, ...]:
    try:
        return tuple(split_folders(config.shards))
    except ValueError:
        return ()


def _has_card(folder: Path) -> bool:
    return (folder / CARD_FILE).is_file()


def _missing(name: str, paths: Iterable[str]) -> list[str]:
    """One line for the files of a folder that are not there; files in an object store are tried by reading them."""
    paths = list(paths)
    lacking = [path for path in paths if not is_remote(path) and not Path(path).is_file()]
    if not lacking:
        return []
    more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
    return [f"{name}: {len(lacking)} of {len(paths)} files wanted but not there: {', '.join(lacking[:_SHOWN])}{more}"]


def _unequal(name: str, files: Mapping[str, Sequence[str]]) -> list[str]:
    (first, wanted), *others = ((folder, [Path(path).name for path in paths]) for folder, paths in files.items())
    problems = [
        f"{name}: folder {folder} has {len(found)} shards, folder {first} has {len(wanted)}"
        for folder, found in others
        if found != wanted
    ]
    for folder, paths in files.items():
        directory = paths[0].rpartition("/")[0]
        if not read_card(directory):
            problems.append(f"{name}: folder {folder} has no card: wanted {directory}/{CARD_NAME}")
    return problems


def _compare_keys(paths: Mapping[str, str]) -> int:
    """Clips of one shard, whose keys are the same in every folder."""
    (first, reference), *others = paths.items()
    wanted = [member.key for member in read_index(reference)]
    for folder, path in others:
        found = [member.key for member in read_index(path)]
        check_same_keys(found, wanted, where=path, folder=folder, reference=reference)
    return len(wanted)


def _only_first(pattern: str, files: Mapping[str, Sequence[str]]) -> str:
    """The pattern of the first shard alone, in all folders."""
    name = Path(next(iter(files.values()))[0]).name
    return f"{pattern.rpartition('/')[0]}/{name}"
