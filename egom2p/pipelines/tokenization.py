"""Aligned clips and tokenizers -> shards of tokens, with a card per folder that says which tokenizer made them.

Shard n of the clips becomes shard n of the tokens, so the work is shared by ranks (rank r of torchrun takes every
world-size-th shard). It can stop at any clip: what is finished stands in a ledger. Clips are read ahead by threads
while the device encodes; what waits is bounded in bytes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from egom2p.config import Count, Natural, NotNegative, Positive, strict, to_plain
from egom2p.contracts import Tokenizer, check_fingerprint
from egom2p.data.clips.clip_store import META, ClipStore, stored_datasets, stored_streams
from egom2p.data.shards.shard_files import CARD_NAME, CLIPS_NAME, read_card
from egom2p.jobs.progress import progress_bar, say, time_shares
from egom2p.jobs.stages import PlaceConfig, run_stage
from egom2p.jobs.workers import choose_device, tick
from egom2p.pipelines.clip_encoding import ClipEncoder
from egom2p.pipelines.shard_job import ShardJob
from egom2p.pipelines.token_shards import TokenShards
from egom2p.pipelines.tokenization_report import TokenizeReport, merged_report, summary, suspicions
from egom2p.storage import RemoteConfig, configure_remote, is_remote
from egom2p.storage.atomic import with_pretrained
from egom2p.storage.remote import joined, list_names, read_bytes
from egom2p.tokenizers import load_tokenizer
from egom2p.tokenizers.pretrained import CARD_FILE


@strict
class TokenizeConfig:
    """Which clips, which tokenizers, where the tokens go."""

    clips: str  # store of aligned clips: a folder, or s3://bucket/prefix
    tokenizers: dict[str, str]  # modality -> folder of its tokenizer, below tokenizers_root if given, or id on the Hub
    output: str  # a folder, or s3://bucket/prefix
    tokenizers_root: str | None = None
    datasets: tuple[str, ...] | None = None  # data sets of the clip store; by default all
    mirrored: bool = False  # every clip as its mirror image: twice the data for a model, into an output of its own
    modalities: tuple[str, ...] | None = None  # by default all that have a tokenizer
    layout: Literal["tars", "files"] = "tars"  # of the tokens: shards, or one small file per clip
    batch_size: Count = 16
    device: str = "auto"  # auto: a GPU if there is one
    dtype: Literal["fp32", "bf16"] = "fp32"  # bf16: faster on GPUs; some ids differ from those of fp32
    compile: bool = False  # the encoders through torch.compile: minutes of start for a higher rate
    num_workers: Natural = 2  # threads that read and convert clips ahead of the device; 0: none
    memory_gb: Positive = 2.0  # of clips that wait to be encoded, at most (one batch always may)
    bad_clips: Literal["error", "skip"] = "error"  # unreadable or refused by a tokenizer: `skip` counts and lists them
    num_check_clips: Natural = 16  # clips per data set, evenly spread, whose encode-decode error is measured; 0: none
    clips_per_shard: Count = 1000  # only where the clips are plain files; tars keep their shards
    work_dir: str | None = None  # of unfinished shards; by default below output, or outputs/ if that is a bucket
    place: PlaceConfig = PlaceConfig()  # this machine and ranks of torchrun, a Slurm array, or Ray
    remote: RemoteConfig = RemoteConfig()  # waiting for and asking of S3
    report_every_s: NotNegative = 60.0  # a line of progress, for logs


def tokenize(config: TokenizeConfig) -> list[TokenizeReport]:
    """Write the token shards that are missing; returns a report per data set.

    Raises ValueError before any work when a modality has no tokenizer, a data set or its streams are not there, a
    clip is missing in one of its tars, or the output holds tokens of another tokenizer or of clips made otherwise.
    """
    configure_remote(config.remote)
    tokenizers = load_tokenizers(config)
    datasets = stored_datasets(config.clips) if config.datasets is None else config.datasets
    if not datasets:
        raise ValueError(f"{config.clips}: found no data sets of clips, wanted at least one")
    chosen = {dataset: _present(tokenizers, stored_streams(config.clips, dataset)) for dataset in datasets}
    _check_streams(config, tokenizers, chosen)
    for dataset, present in chosen.items():
        folders = [tokenizer.spec.folder for tokenizer in present.values()]
        if len(set(folders)) < len(folders):
            raise ValueError(f"two tokenizers write to one folder: {folders}")
        for name, tokenizer in present.items():
            folder = joined(config.output, tokenizer.spec.folder, dataset)
            found = read_card(folder).get("tokenizer_fingerprint")
            check_fingerprint(name, found=found, wanted=tokenizer.fingerprint, where=folder)
            _check_same_clips(folder, _clip_card(config, dataset))
        if present and not is_remote(config.clips):  # the headers of all tars: seconds on a disk, hours in a bucket
            _open_store(config, dataset, present).verify()
    encoder = _encoder(config, tokenizers)
    return [_tokenize_dataset(config, dataset, encoder, present) for dataset, present in chosen.items() if present]


def _encoder(config: TokenizeConfig, tokenizers: Mapping[str, Tokenizer]) -> ClipEncoder:
    return ClipEncoder(
        tokenizers,
        device=choose_device(config.device, only_cuda=True),
        dtype=config.dtype,
        batch_size=config.batch_size,
        is_compiled=config.compile,
    )


def load_tokenizers(config: TokenizeConfig) -> dict[str, Tokenizer]:
    """Modality -> tokenizer, on the configured device. Raises ValueError listing what there is."""
    wanted = tuple(config.tokenizers) if config.modalities is None else config.modalities
    without = [name for name in wanted if name not in config.tokenizers]
    if without or not wanted:
        raise ValueError(
            f"modalities {without} have no tokenizer; tokenizers are given for {sorted(config.tokenizers)}"
        )
    loaded = {}
    for name in wanted:
        folder = with_pretrained(Path(config.tokenizers_root or "", config.tokenizers[name]))
        if (config.tokenizers_root is not None or folder.is_dir()) and not (folder / CARD_FILE).is_file():
            root = with_pretrained(config.tokenizers_root or folder.parent)
            cards = [*root.glob(f"*/{CARD_FILE}"), *root.glob(f"*/*/{CARD_FILE}")]
            found = sorted(str(card.parent.relative_to(root)) for card in cards)
            raise ValueError(f"tokenizer of {name}: {folder} has no {CARD_FILE}; tokenizers in {root}: {found}")
        loaded[name] = load_tokenizer(folder, device=choose_device(config.device, only_cuda=True))
        if loaded[name].spec.name != name:
            raise ValueError(f"{folder}: found the tokenizer of {loaded[name].spec.name}, wanted that of {name}")
    return loaded


def _present(tokenizers: Mapping[str, Tokenizer], streams: Sequence[str]) -> dict[str, Tokenizer]:
    return {name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer.stream in streams}


def _open_store(config: TokenizeConfig, dataset: str, tokenizers: Mapping[str, Tokenizer]) -> ClipStore:
    """Clips of a data set with the streams its tokenizers read."""
    streams = sorted({tokenizer.stream for tokenizer in tokenizers.values()})
    return ClipStore(config.clips, dataset, streams=streams, is_mirrored=config.mirrored)


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
    config: TokenizeConfig, dataset: str, encoder: ClipEncoder, tokenizers: Mapping[str, Tokenizer]
) -> TokenizeReport:
    job = _job(config, dataset, encoder, tokenizers)
    _write_cards(config, dataset, tokenizers, job.shards)
    if config.place.run_on == "ray":
        missing = [(dataset, number) for number in job.missing(range(job.num_shards))]
        stage = {"prepare": _Desk.open, "arguments": (config,)}
        with progress_bar(f"shards of {dataset}", len(missing)) as advance:
            times = list(run_stage(missing, _make_shard, config.place, on_tick=advance, **stage))
    else:
        job.run(config.place.mine(range(job.num_shards)), is_shown=config.place.share()[0] == 0)
        times = job.spent_s
    report = merged_report(
        job.shards,
        tokenizers,
        num_shards=job.num_shards,
        absent=tuple(sorted(set(encoder.tokenizers) - set(tokenizers))),
        untouched=tuple(sorted(set(stored_streams(config.clips, dataset)) - set(job.store.streams))),
        clips_per_s=job.clips_per_s,
        waiting_share=job.times.waiting_share if job.clips_per_s else None,
        time_shares=time_shares(times),
    )
    if report.is_complete:  # of several ranks, the one that finishes last sees all shards
        content = json.dumps({"config": to_plain(config), "report": to_plain(report)}, indent=2) + "\n"
        job.shards.save(joined(config.output, f"tokenize_report-{dataset}.json"), content.encode())
    say(summary(report))
    for name, tokenizer in tokenizers.items():
        for line in suspicions(name, tokenizer, report.round_trip.get(name, {})):
            say(f"  look: {line}")
    return report


def _job(config: TokenizeConfig, dataset: str, encoder: ClipEncoder, tokenizers: Mapping[str, Tokenizer]) -> ShardJob:
    shards = TokenShards(
        config.output,
        dataset,
        {tokenizer.spec.folder: tokenizer.spec.num_codes for tokenizer in tokenizers.values()},
        layout=config.layout,
        work_dir=config.work_dir,
    )
    return ShardJob(config, _open_store(config, dataset, tokenizers), shards, encoder, tokenizers)


class _Desk:
    """What one process on Ray works with: the tokenizers on its device, and the data sets it has opened."""

    config: TokenizeConfig
    encoder: ClipEncoder
    jobs: dict[str, ShardJob]

    @classmethod
    def open(cls, config: TokenizeConfig) -> None:
        configure_remote(config.remote)
        cls.config, cls.encoder, cls.jobs = config, _encoder(config, load_tokenizers(config)), {}


def _make_shard(item: tuple[str, int]) -> dict[str, float]:
    """Make one shard of a data set, unless it is there; activity -> seconds."""
    dataset, number = item
    if dataset not in _Desk.jobs:
        present = _present(_Desk.encoder.tokenizers, stored_streams(_Desk.config.clips, dataset))
        _Desk.jobs[dataset] = _job(_Desk.config, dataset, _Desk.encoder, present)
    job = _Desk.jobs[dataset]
    job.shards.forget()
    job.run([number])
    tick()
    return job.spent_s.pop() if job.spent_s else {}


def _write_cards(
    config: TokenizeConfig, dataset: str, tokenizers: Mapping[str, Tokenizer], shards: TokenShards
) -> None:
    """A folder's card: the modality's spec with the tokenizer's fingerprint, which readers of the shards check."""
    for tokenizer in tokenizers.values():
        spec = tokenizer.spec.with_fingerprint(tokenizer.fingerprint)
        folder = shards.location(spec.folder)
        shards.save(joined(folder, CARD_NAME), (json.dumps(spec.to_dict(), indent=2) + "\n").encode())
        card = json.dumps(_clip_card(config, dataset), indent=2) + "\n"
        shards.save(joined(folder, CLIPS_NAME), card.encode())


def _clip_card(config: TokenizeConfig, dataset: str) -> dict[str, Any]:
    """What the clips are cut from, and how, where their store says so, and whether they are mirrored."""
    return read_card(joined(config.clips, META, dataset)) | {"mirrored": config.mirrored}


def _check_same_clips(folder: str, wanted: Mapping[str, Any]) -> None:
    """Clips made otherwise may have the same keys; their tokens must not pass for finished."""
    found = json.loads(read_bytes(joined(folder, CLIPS_NAME))) if CLIPS_NAME in list_names(folder)[1] else {}
    if differing := sorted(key for key in found.keys() & wanted.keys() if found[key] != wanted[key]):
        key = differing[0]
        raise ValueError(
            f"{folder}: found tokens of clips with {key} {found[key]}, wanted {wanted[key]}; choose another output"
        )
