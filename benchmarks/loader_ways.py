"""Ways from token shards to packed batches, side by side in one run; and an index of ten million clips.

    python benchmarks/loader_ways.py [--num-clips 1024] [--energon PYTHON] [--index-clips 10000000] [--json FILE]

Shards of random ids at the published sizes (5x32x32 and 30, npz) are read and masked at 2048 + 2048 tokens: by our
loader from its index and streaming, by plain webdataset (four tars at once, np.load, a shuffle buffer) and, with the
python of an environment that has it, by Megatron-Energon (one tar with four parts a clip; tokens alone, without
masking, and so do ours for comparison). Each way in a process of its own: clips per second of its processor time (all
threads), memory it takes, seconds to its first batch, seconds to a batch far in. The same from a bucket (moto's
server, `pip install 'moto[server]'`, and with 20 ms a request, as object stores have). The index: seconds and memory
of eight processes that open the same ten million clips (synthetic headers) at once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from zlib import crc32

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

FOLDERS = ("rgb", "depth", "gaze", "cam")
BATCH, SECONDS, DELAY_S = 32, 1.0, 0.02
CLIPS_PER_SHARD = 64  # so that streaming does not hold all shards in memory after one pass
FAR = 100_000  # clips before the batch that is sought
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}


def memory_mb() -> float:
    """Memory that this process has for itself."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measured(open_batches: Callable[[int], Iterator[int]], *, can_seek: bool = True) -> dict[str, float]:
    """open_batches: first clip -> clips of each batch."""
    before_mb, started = memory_mb(), time.perf_counter()
    batches = open_batches(0)
    next(batches)
    first_s = time.perf_counter() - started
    for _ in range(4):
        next(batches)
    cpu, wall, clips = time.process_time(), time.perf_counter(), 0
    while time.process_time() - cpu < SECONDS and time.perf_counter() - wall < 5 * SECONDS:
        clips += next(batches)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    row = {
        "clips_per_s_of_a_core": round(clips / cpu),
        "clips_per_s_of_wall_clock": round(clips / wall),
        "first_batch_s": round(first_s, 3),
        "memory_mb": round(memory_mb() - before_mb, 1),
    }
    if can_seek:
        started = time.perf_counter()
        next(open_batches(FAR))
        row["seek_s"] = round(time.perf_counter() - started, 3)
    return row


def masking():
    from loader import published_mixture

    from egom2p.data.masking import UnifiedMasking
    from egom2p.data.modality_info import default_specs
    from egom2p.data.unified_datasets import DatasetConfig

    specs = default_specs()
    alphas = published_mixture([spec.name for spec in specs])
    config = DatasetConfig(shards="", alphas=alphas, max_input_tokens=2048, max_target_tokens=2048)
    return specs, config, UnifiedMasking(specs, config)


def ours(root: str, num_shards: int, **settings) -> dict[str, float]:
    from dataclasses import replace

    from egom2p.data.unified_datasets import DataConfig, TokenLoader

    specs, config, _ = masking()
    shards = f"{root}/[{','.join(FOLDERS)}]/random/shard-{{000000..{num_shards - 1:06d}}}.tar"
    config = DataConfig(datasets={"random": replace(config, shards=shards)}, shards_per_block=2, **settings)

    def batches(first: int) -> Iterator[int]:
        loader = TokenLoader(config, specs, batch_size=BATCH, seed=0)
        return (batch.num_clips for batch in loader.batches(first // BATCH * BATCH))

    return measured(batches)


def webdataset_plain(root: str, num_shards: int, is_masked: bool = True) -> dict[str, float]:
    """Four tars in parallel, as published pipelines read modality-wise shards."""
    import webdataset

    from egom2p.contracts import TokenClip
    from egom2p.data.clip_order import clip_rng
    from egom2p.data.collate import collate

    specs, _, mask = masking()

    def array(content: bytes) -> np.ndarray:
        import io

        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return arrays["arr_0"].reshape(-1)

    def clips() -> Iterator[dict]:
        while True:
            urls = [f"{root}/{{}}/random/shard-{number:06d}.tar" for number in range(num_shards)]
            parts = [
                iter(webdataset.WebDataset([url.format(spec.folder) for url in urls], shardshuffle=False))
                for spec in specs
            ]
            for samples in zip(*parts, strict=True):
                yield {spec.name: sample["npz"] for spec, sample in zip(specs, samples, strict=True)}

    def batches(_: int) -> Iterator[int]:
        shuffled = webdataset.filters.shuffle(1000)(clips())
        number = 0
        while True:
            masked = []
            for sample in islice(shuffled, BATCH):
                tokens = {name: array(content).astype(np.int32) for name, content in sample.items()}
                if is_masked:
                    masked.append(mask(TokenClip("clip", tokens), clip_rng(0, "masking", number)))
                number += 1
            yield collate(masked, specs).num_clips if is_masked else BATCH

    return measured(batches, can_seek=False)


def ours_tokens(root: str, num_shards: int) -> dict[str, float]:
    from egom2p.data.clip_order import ClipOrder
    from egom2p.data.modality_info import default_specs
    from egom2p.data.token_set import TokenSet

    def batches(first: int) -> Iterator[int]:
        tokens = TokenSet(f"{root}/[{','.join(FOLDERS)}]/random/shard-*.tar", default_specs())
        order = ClipOrder(tokens.shard_starts, seed=0, name="x", shards_per_block=2)
        while True:
            found = [tokens[order.locate(index)].tokens for index in range(first, first + BATCH)]
            assert all(len(clip) == len(FOLDERS) for clip in found)
            first += BATCH
            yield BATCH

    return measured(batches)


def energon_tokens(root: str) -> dict[str, float]:
    """Crude samples with their npz read; its own shuffle buffer and savable loader, no worker processes."""
    import io

    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        basic_sample_keys,
        get_savable_loader,
        get_train_dataset,
        stateless,
    )

    @stateless
    def cook(sample: dict) -> dict:
        arrays = {}
        for folder in FOLDERS:
            value = sample[f"{folder}.npz"]
            with np.load(io.BytesIO(value), allow_pickle=False) if isinstance(value, bytes) else value as found:
                arrays[folder] = found["arr_0"]
        return {**basic_sample_keys(sample), **arrays}

    class Tokens(DefaultTaskEncoder):
        cookers = [Cooker(cook)]
        decoder = None

        def encode_sample(self, sample: dict) -> dict:
            return sample

        def batch(self, samples: list) -> list:
            return samples

    def batches(_: int) -> Iterator[int]:
        workers = WorkerConfig(rank=0, world_size=1, num_workers=0)
        dataset = get_train_dataset(
            root, worker_config=workers, batch_size=BATCH, shuffle_buffer_size=1000, max_samples_per_sequence=100,
            task_encoder=Tokens(),
        )  # fmt: skip
        return (len(batch) for batch in get_savable_loader(dataset))

    return measured(batches, can_seek=False)


def for_energon(root: Path, target: Path, num_shards: int) -> None:
    """The same clips as one tar with four parts a clip."""
    import io
    import tarfile

    target.mkdir()
    for number in range(num_shards):
        tars = [tarfile.open(root / folder / "random" / f"shard-{number:06d}.tar") for folder in FOLDERS]
        with tarfile.open(target / f"shard-{number:06d}.tar", "w") as joined:
            for entries in zip(*tars, strict=True):
                for folder, tar, entry in zip(FOLDERS, tars, entries, strict=True):
                    content = tar.extractfile(entry).read()
                    part = tarfile.TarInfo(entry.name.replace(".npz", f".{folder}.npz"))
                    part.size = len(content)
                    joined.addfile(part, io.BytesIO(content))


def with_delay(root: str, num_shards: int, delay_s: float, **settings) -> dict[str, float]:
    """Ours from a bucket; what every request takes longer than on this machine."""
    from egom2p.storage import remote

    read, requests = remote._read_range, []

    def counted(*arguments):
        time.sleep(delay_s)
        requests.append(1)
        return read(*arguments)

    remote._read_range = counted
    started = time.perf_counter()
    row = ours(root, num_shards, **settings)
    row["requests_per_s"] = round(len(requests) / (time.perf_counter() - started), 1)
    return row


def write_index(root: Path, num_clips: int, clips_per_shard: int = 1000) -> None:
    """Folders of tars that are holes, with the index that their headers would have given."""
    from egom2p.data.shards import shard_index
    from egom2p.data.shards.shard_files import Member

    directories = [root / folder / "synthetic" for folder in FOLDERS]
    for alike, size in ((directories[:2], 20_736), (directories[2:], 376)):
        stride = 512 + -(-size // 512) * 512
        keys = [f"kitchen_00000_{clip:06d}" for clip in range(clips_per_shard)]
        members = [Member(key, "npz", 512 + stride * row, size) for row, key in enumerate(keys)]
        first = shard_index.pack_shard("", stride * clips_per_shard + 1024, "", members)
        parts = {directory: [] for directory in alike}
        for number in range(num_clips // clips_per_shard):
            packed = first.keys.replace(b"kitchen_00000", b"kitchen_%05d" % number)
            row = first.row._replace(
                name=f"shard-{number:06d}.tar", keys_digest=f"{number:032x}", keys_crc=crc32(packed)
            )
            for directory in alike:
                directory.mkdir(parents=True, exist_ok=True)
                with (directory / row.name).open("wb") as tar:
                    tar.truncate(row.size)
                    version = str(os.fstat(tar.fileno()).st_mtime_ns)
                parts[directory].append(first._replace(row=row._replace(version=version), keys=packed))
        for directory in alike:
            (directory / ".index").mkdir()
            (directory / ".index" / "shards").write_bytes(shard_index.packed_file(parts[directory]))


def open_index(root: str) -> None:
    """One of the processes: open, touch all that training touches, tell, stay until all have."""
    from egom2p.data.shards.shard_set import ShardSet

    before_mb, started, cpu = memory_mb(), time.perf_counter(), time.process_time()
    shards = ShardSet(f"{root}/[{','.join(FOLDERS)}]/synthetic/shard-*.tar")
    shards.verify()
    opened_s = time.perf_counter() - started
    cpu_s = time.process_time() - cpu
    for shard in range(shards.num_shards):
        for folder in FOLDERS:
            shards._index[folder].member(shard, 0)  # checks all members of the shard
        shards._index[FOLDERS[0]].key(shard, 0)
    print(json.dumps({"opened_s": opened_s, "cpu_s": cpu_s, "clips": len(shards)}), flush=True)
    sys.stdin.readline()
    rollup = Path("/proc/self/smaps").read_text().split("\n")
    pss, inside = 0, False
    for line in rollup:
        if "-" in line.split(" ")[0]:
            inside = line.endswith("/.index/shards")
        elif inside and line.startswith("Pss:"):
            pss += int(line.split()[1])
    print(json.dumps({"mapped_mb": pss / 1024, "own_mb": memory_mb() - before_mb}), flush=True)
    sys.stdin.readline()


def index_row(num_clips: int, num_processes: int = 8) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_index(Path(folder), num_clips)
        made_s = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(folder).rglob("shards"))
        command = [sys.executable, __file__, "--inner", json.dumps(["open_index", folder, {}])]
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(num_processes)
        ]
        opened = [json.loads(process.stdout.readline()) for process in processes]
        held = []
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
            held.append(json.loads(process.stdout.readline()))
        for process in processes:
            process.communicate("\n")
        mapped, own = sum(row["mapped_mb"] for row in held), sum(row["own_mb"] for row in held)
        return {
            "way": "index of synthetic headers",
            "clips": opened[0]["clips"],
            "processes": num_processes,
            "file_bytes_per_clip": round(size / num_clips, 2),
            "open_s_median": round(float(np.median([row["opened_s"] for row in opened])), 2),
            "open_s_of_processor": round(float(np.median([row["cpu_s"] for row in opened])), 2),
            "open_s_slowest": round(max(row["opened_s"] for row in opened), 2),
            "shared_bytes_per_clip": round(mapped * 2**20 / num_clips, 2),
            "all_processes_gb": round((mapped + own) / 1024, 3),
            "own_mb_per_process": round(own / num_processes, 1),
            "synthesised_s": round(made_s, 1),
        }


INNER = {
    "ours": ours, "webdataset_plain": webdataset_plain, "ours_tokens": ours_tokens, "energon_tokens": energon_tokens,
    "with_delay": with_delay, "open_index": lambda root, **_: open_index(root),
}  # fmt: skip


def run(way: str, root: str, *, python: str = sys.executable, environment: dict | None = None, **settings) -> dict:
    command = [python, __file__, "--inner", json.dumps([way, root, settings])]
    outcome = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if outcome.returncode:
        return {"failed": outcome.stderr.strip()[-300:]}
    return json.loads(outcome.stdout.strip().splitlines()[-1])


def rows_of(root: Path, num_shards: int, energon: str | None) -> Iterator[dict]:
    place, count = str(root), {"num_shards": num_shards}
    yield {"way": "ours, indexed", **run("ours", place, **count)}
    yield {"way": "ours, streaming", **run("ours", place, **count, access="streaming")}
    yield {"way": "plain webdataset", **run("webdataset_plain", place, **count)}
    yield {"way": "plain webdataset, tokens alone", **run("webdataset_plain", place, **count, is_masked=False)}
    yield {"way": "ours, indexed, tokens alone", **run("ours_tokens", place, **count)}
    if energon:
        for_energon(root, root / "joined", num_shards)
        tool = [str(Path(energon).parent / "energon"), "prepare", str(root / "joined"), "--non-interactive"]
        options = ["--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--no-progress"]
        subprocess.run([*tool, *options], check=True, capture_output=True)
        yield {"way": "Megatron-Energon, tokens alone", **run("energon_tokens", str(root / "joined"), python=energon)}
    yield from bucket_rows(root, num_shards)


def bucket_rows(root: Path, num_shards: int) -> Iterator[dict]:
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", "5917"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    environment = {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:5917"}
    try:
        os.environ.update(environment)
        import boto3
        from botocore.exceptions import EndpointConnectionError

        client = boto3.client("s3")
        for _ in range(60):
            try:
                client.create_bucket(Bucket="clips")
                break
            except EndpointConnectionError:
                time.sleep(0.5)
        for folder in FOLDERS:
            for file in sorted((root / folder / "random").glob("*.tar")):
                client.upload_file(str(file), "clips", f"{folder}/random/{file.name}")
        run("ours", "s3://clips", num_shards=num_shards)  # makes the index
        for delay_s in (0.0, DELAY_S):
            for access in ("indexed", "streaming"):
                row = run("with_delay", "s3://clips", num_shards=num_shards, delay_s=delay_s, access=access)
                yield {"way": f"ours, {access}, bucket, {1000 * delay_s:.0f} ms more a request", **row}
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-clips", type=int, default=1024)
    parser.add_argument("--energon", default=None, help="python of an environment with megatron-energon")
    parser.add_argument("--index-clips", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path, default=None, help="write the table here too")
    parser.add_argument("--inner", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        way, root, settings = json.loads(arguments.inner)
        row = INNER[way](root, **settings)
        if row:
            print(json.dumps(row))
        return
    from environment import environment
    from loader import write_random_tokens

    from egom2p.data.modality_info import default_specs

    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_random_tokens(Path(folder), default_specs(), arguments.num_clips, clips_per_shard=CLIPS_PER_SHARD)
        for row in rows_of(Path(folder), -(-arguments.num_clips // CLIPS_PER_SHARD), arguments.energon):
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    if arguments.index_clips:
        rows.append(index_row(arguments.index_clips))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if arguments.json:
        about = {**environment(), "load_of_the_machine": round(os.getloadavg()[0], 1)}
        arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
