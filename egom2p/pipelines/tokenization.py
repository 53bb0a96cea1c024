"""Aligned clips and tokenizers -> shards of tokens, with a card per folder that says which tokenizer made them.

Shard n of the clips becomes shard n of the tokens, so work can stop at any shard and be shared by ranks (rank r of
torchrun takes every world-size-th shard). At most two batches of clips are in memory.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from egom2p.config import strict, to_plain
from egom2p.contracts import AlignedClip, Tokenizer, check_fingerprint
from egom2p.data.clip_store import META, ClipStore, stored_datasets, stored_streams
from egom2p.data.numbered_shards import check_finished, finished_keys, shard_path, write_shard
from egom2p.data.shards import CARD_NAME, encode_array, read_card
from egom2p.pipelines.progress import progress_bar, say
from egom2p.pipelines.tokenization_report import TokenizeReport, measure, summary
from egom2p.storage import load_json, save_json
from egom2p.tokenizers import load_tokenizer
from egom2p.tokenizers.pretrained import CARD_FILE

_SUFFIX = "npy"
_CLIPS_NAME = "clips.json"  # beside the tokens: the card of the clips they were made from


@strict
class TokenizeConfig:
    """Which clips, which tokenizers, where the tokens go."""

    clips: str
    tokenizers: dict[str, str]  # modality -> folder of its tokenizer, below tokenizers_root if that is given
    output: str
    tokenizers_root: str | None = None
    datasets: tuple[str, ...] | None = None  # data sets of the clip store; by default all
    modalities: tuple[str, ...] | None = None  # by default all that have a tokenizer
    batch_size: int = 16
    device: str = "auto"  # auto: a GPU if there is one
    bad_clips: Literal["error", "skip"] = "error"  # clips a tokenizer refuses: `skip` counts and lists them
    num_check_clips: int = 16  # clips per data set whose encode-decode error is measured; 0: none

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_check_clips < 0:
            raise ValueError(f"batch_size {self.batch_size}, num_check_clips {self.num_check_clips}: too small")


def tokenize(config: TokenizeConfig) -> list[TokenizeReport]:
    """Write the token shards that are missing; returns a report per data set.

    Raises ValueError before any work when a modality has no tokenizer, a data set or its streams are not there, a
    clip is missing in one of its tars, or the output holds tokens of another tokenizer or of clips made otherwise.
    """
    tokenizers = load_tokenizers(config)
    datasets = stored_datasets(config.clips) if config.datasets is None else config.datasets
    if not datasets:
        raise ValueError(f"{config.clips}: found no data sets of clips, wanted at least one")
    chosen = {dataset: _present(tokenizers, stored_streams(config.clips, dataset)) for dataset in datasets}
    _check_streams(config, tokenizers, chosen)
    for dataset, present in chosen.items():
        for name, tokenizer in present.items():
            folder = Path(config.output) / tokenizer.spec.folder / dataset
            found = read_card(folder).get("tokenizer_fingerprint")
            check_fingerprint(name, found=found, wanted=tokenizer.fingerprint, where=str(folder))
            _check_same_clips(folder, _clip_card(config, dataset))
        if present:
            _open_store(config, dataset, present).verify()
    return [_tokenize_dataset(config, dataset, tokenizers, present) for dataset, present in chosen.items() if present]


def load_tokenizers(config: TokenizeConfig) -> dict[str, Tokenizer]:
    """Modality -> tokenizer, on the configured device. Raises ValueError listing what there is."""
    wanted = tuple(config.tokenizers) if config.modalities is None else config.modalities
    without = [name for name in wanted if name not in config.tokenizers]
    if without or not wanted:
        raise ValueError(
            f"modalities {without} have no tokenizer; tokenizers are given for {sorted(config.tokenizers)}"
        )
    device = config.device
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    loaded = {}
    for name in wanted:
        folder = Path(config.tokenizers_root or "", config.tokenizers[name])
        if not (folder / CARD_FILE).is_file():
            root = Path(config.tokenizers_root or folder.parent)
            cards = [*root.glob(f"*/{CARD_FILE}"), *root.glob(f"*/*/{CARD_FILE}")]
            found = sorted(str(card.parent.relative_to(root)) for card in cards)
            raise ValueError(f"tokenizer of {name}: {folder} has no {CARD_FILE}; tokenizers in {root}: {found}")
        loaded[name] = load_tokenizer(folder, device=device)
        if loaded[name].spec.name != name:
            raise ValueError(f"{folder}: found the tokenizer of {loaded[name].spec.name}, wanted that of {name}")
    return loaded


def _present(tokenizers: Mapping[str, Tokenizer], streams: Sequence[str]) -> dict[str, Tokenizer]:
    return {name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer.stream in streams}


def _open_store(config: TokenizeConfig, dataset: str, tokenizers: Mapping[str, Tokenizer]) -> ClipStore:
    """Clips of a data set with the streams its tokenizers read."""
    streams = sorted({tokenizer.stream for tokenizer in tokenizers.values()})
    return ClipStore(config.clips, dataset, streams=streams)


def _check_streams(
    config: TokenizeConfig, tokenizers: Mapping[str, Tokenizer], chosen: Mapping[str, Mapping[str, Tokenizer]]
) -> None:
    nowhere = [name for name in tokenizers if not any(name in present for present in chosen.values())]
    empty = [dataset for dataset, present in chosen.items() if not present]
    if (nowhere and config.modalities is not None) or len(empty) == len(chosen):
        streams = {dataset: list(stored_streams(config.clips, dataset)) for dataset in chosen}
        wanted = {name: tokenizers[name].stream for name in nowhere}
        raise ValueError(f"{config.clips}: found streams {streams}, wanted those of the tokenizers {wanted}")


def _tokenize_dataset(
    config: TokenizeConfig, dataset: str, all_tokenizers: Mapping[str, Tokenizer], tokenizers: Mapping[str, Tokenizer]
) -> TokenizeReport:
    store = _open_store(config, dataset, tokenizers)
    folders = {tokenizer.spec.folder: _SUFFIX for tokenizer in tokenizers.values()}
    if len(folders) < len(tokenizers):
        raise ValueError(f"two tokenizers write to one folder: {[t.spec.folder for t in tokenizers.values()]}")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    mine = range(rank, len(store.shard_starts) - 1, world_size)
    missing = [shard for shard in mine if not _is_finished(config, dataset, store, shard, folders)]
    _write_cards(config, dataset, tokenizers)
    skipped: dict[str, str] = {}
    total = sum(store.shard_starts[shard + 1] - store.shard_starts[shard] for shard in missing)
    with progress_bar(f"tokens of {dataset}", total, is_shown=total > 0 and rank == 0) as advance:
        for shard in missing:
            clips = _batches(store, range(*store.shard_starts[shard : shard + 2]), config.batch_size)
            encoded = _encoded(clips, tokenizers, config, skipped, advance)
            write_shard(config.output, dataset, shard, folders, encoded)
    finished = [shard for shard in mine if shard_path(config.output, next(iter(folders)), dataset, shard).is_file()]
    if finished:
        usage, round_trip, keys = measure(config.output, store, tokenizers, num_check_clips=config.num_check_clips)
    else:  # more ranks than shards
        usage, round_trip, keys = {}, {}, set()
    own = [key for shard in mine for key in store.keys[store.shard_starts[shard] : store.shard_starts[shard + 1]]]
    report = TokenizeReport(
        dataset=dataset,
        num_clips=len(keys),
        modalities=usage,
        round_trip=round_trip,
        absent=tuple(sorted(set(all_tokenizers) - set(tokenizers))),
        untouched=tuple(sorted(set(stored_streams(config.clips, dataset)) - set(store.streams))),
        num_left_out=sum(key not in keys for key in own),
        skipped=skipped,
    )
    suffix = f"-rank{rank}" if rank else ""
    path = Path(config.output) / f"tokenize_report-{dataset}{suffix}.json"
    save_json(path, {"config": to_plain(config), "report": to_plain(report)})
    say(summary(report))
    return report


def _is_finished(config: TokenizeConfig, dataset: str, store: ClipStore, shard: int, folders: Mapping) -> bool:
    found = finished_keys(config.output, dataset, shard, folders)
    if found is None:
        return False
    wanted = store.keys[store.shard_starts[shard] : store.shard_starts[shard + 1]]
    if config.bad_clips == "skip":
        wanted = [key for key in wanted if key in set(found)]
    where = shard_path(config.output, next(iter(folders)), dataset, shard)
    check_finished(found, wanted, where=str(where))
    return True


def _write_cards(config: TokenizeConfig, dataset: str, tokenizers: Mapping[str, Tokenizer]) -> None:
    """A folder's card: the modality's spec with the tokenizer's fingerprint, which readers of the shards check."""
    for tokenizer in tokenizers.values():
        spec = tokenizer.spec.with_fingerprint(tokenizer.fingerprint)
        folder = Path(config.output) / spec.folder / dataset
        save_json(folder / CARD_NAME, spec.to_dict())
        if clip_card := _clip_card(config, dataset):
            save_json(folder / _CLIPS_NAME, clip_card)


def _clip_card(config: TokenizeConfig, dataset: str) -> dict[str, Any]:
    """What the clips are cut from, and how; empty where their store does not say."""
    return read_card(Path(config.clips) / META / dataset)


def _check_same_clips(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Clips made otherwise may have the same keys; their tokens must not pass for finished."""
    found = load_json(folder / _CLIPS_NAME) if (folder / _CLIPS_NAME).is_file() else {}
    if differing := sorted(key for key in found.keys() & wanted.keys() if found[key] != wanted[key]):
        key = differing[0]
        raise ValueError(
            f"{folder}: found tokens of clips with {key} {found[key]}, wanted {wanted[key]}; choose another output"
        )


def _batches(store: ClipStore, indices: range, batch_size: int) -> Iterator[list[AlignedClip]]:
    """Clips in batches; the next batch is read while one is encoded."""
    groups = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(_read, store, groups[0])
        for following in [*groups[1:], None]:
            clips = coming.result()
            if following is not None:
                coming = reader.submit(_read, store, following)
            yield clips


def _read(store: ClipStore, indices: range) -> list[AlignedClip]:
    return [store[index] for index in indices]


def _encoded(
    batches: Iterator[list[AlignedClip]],
    tokenizers: Mapping[str, Tokenizer],
    config: TokenizeConfig,
    skipped: dict[str, str],
    advance: Any,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and folder -> npy (L,) int32 of every clip; notes the ones left out in `skipped`."""
    for clips in batches:
        good = clips
        try:
            ids = _encode(tokenizers, clips)
        except ValueError:
            if config.bad_clips == "error":
                raise
            good = [clip for clip in clips if _is_encodable(tokenizers, clip, skipped)]
            ids = _encode(tokenizers, good) if good else {}
        for row, clip in enumerate(good):
            yield clip.key, {folder: encode_array(ids_BL[row], _SUFFIX) for folder, ids_BL in ids.items()}
        advance(len(clips))


def _encode(tokenizers: Mapping[str, Tokenizer], clips: list[AlignedClip]) -> dict[str, np.ndarray]:
    """Folder -> ids (B, L) int32."""
    return {tokenizer.spec.folder: tokenizer.encode(clips).astype(np.int32) for tokenizer in tokenizers.values()}


def _is_encodable(tokenizers: Mapping[str, Tokenizer], clip: AlignedClip, skipped: dict[str, str]) -> bool:
    try:
        _encode(tokenizers, [clip])
    except ValueError as error:
        skipped[clip.key] = str(error)
        return False
    return True
