"""Scaling on paper: step time against GPUs, network, loader and data, and what the released recipe would cost.

    python benchmarks/scaling.py                 the tables of docs/PERFORMANCE.md
    python benchmarks/scaling.py --json benchmarks/results/scaling_cpu.json    and what two CPU processes say to it

A step of one GPU is the estimate of docs/PERFORMANCE.md (a line through its four batch sizes; not measured on a GPU).
Around it: gradients are summed over ranks while the backward pass still runs, except the input token table, whose
gradient is the last to be ready and a quarter of all bytes; ranks wait for the one that drew the most work; a loader
that is slower than the GPU sets the pace. Left out: checkpoints, evaluation, failures.
"""

import argparse
import functools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from environment import environment
from loader import published_mixture

from egom2p.data.masking import MaskingConfig, UnifiedMasking
from egom2p.data.modality_info import default_specs
from egom2p.data.shards.shard_set import encode_array

# Milliseconds of a step of the base model at full budgets by clips of a GPU: docs/PERFORMANCE.md, "A training step".
STEP_MS = {4: 47.0, 8: 89.0, 16: 171.0, 32: 336.0}
HOST_MS = 17.0  # launching a step of few clips; the GPU cannot be faster
MIXTURE_FLOPS = 0.39  # of the released mixture's clips against full budgets, nothing padded (1,730 of 4,438 GFLOP)
LARGEST_BATCH = 32  # what fits into 48 GB; larger ones are accumulated
BACKWARD_SHARE = 0.6  # of a step, in which gradients become ready and can travel
PARAMETERS, TAIL_PARAMETERS = 395.4e6, 98.7e6  # all; the input token table
RELEASED_CLIPS = 120_048 * 1024  # steps x clips of a step
RELEASED_GPU_HOURS = 3840.0  # published: 15 h on 256 GH200
CORPUS_CLIPS = 515_000


@dataclass(frozen=True)
class Network:
    """GB/s that one GPU sends to its node's GPUs and to other nodes at the same time as it receives as much.

    Figures of data sheets times 0.8: collectives reach 75 to 90 % of the wire.
    """

    name: str
    gpus_per_node: int
    inside_gb_per_s: float
    between_gb_per_s: float
    hop_us: float = 8.0


NETWORKS = (
    Network("NVLink, 400 Gb/s a GPU", 8, 360.0, 40.0),
    Network("4 x GH200, 200 Gb/s a GPU", 4, 360.0, 20.0),
    Network("8 GPUs share 100 Gb/s", 8, 360.0, 1.25),
)


@dataclass(frozen=True)
class Step:
    """Milliseconds of one optimizer step and what set them."""

    num_gpus: int
    clips: int
    compute_ms: float
    exposed_ms: float
    loader_ms: float

    @property
    def ms(self) -> float:
        return max(self.compute_ms + self.exposed_ms, self.loader_ms)

    @property
    def clips_per_s(self) -> float:
        return 1e3 * self.clips / self.ms


def compute_ms(clips: int, *, share: float = 1.0) -> float:
    """One GPU's part of a step: micro-batches of at most as many rows as LARGEST_BATCH full clips, one by one.

    share   work of a clip against one of full budgets
    """
    slope, fixed = np.polyfit(list(STEP_MS), list(STEP_MS.values()), 1)
    largest = int(LARGEST_BATCH / share)
    whole, rest = divmod(clips, largest)
    parts = [largest] * whole + [rest] * (rest > 0)
    return float(sum(max(HOST_MS, fixed + slope * share * part) for part in parts))


@functools.cache
def slowest_rank(num_gpus: int, clips_per_gpu: int, num_steps: int = 20) -> float:
    """Work of the rank that drew most against the mean, over steps of the released mixture of four modalities."""
    config = MaskingConfig(
        alphas=published_mixture([spec.name for spec in default_specs()]),
        max_input_tokens=2048,
        max_target_tokens=2048,
        policy="clamp",
    )
    masking, rng = UnifiedMasking(default_specs(), config), np.random.default_rng(0)
    names = [spec.name for spec in default_specs()]
    # Sums of few clips, again and again from the same 8,192 draws.
    pool = np.array([clip_gflop(*masking.sizes(names, rng)[:2]) for _ in range(8192)])
    work = rng.choice(pool, (num_steps, num_gpus, clips_per_gpu)).sum(-1)
    return float(work.max(-1).mean() / work.mean())


def clip_gflop(num_inputs: int, num_targets: int) -> float:
    """Forward pass of the base model (12 + 12 blocks of width 768, heads of 64,000)."""
    linear = 24 * (7.078e6 + 1.18e6) * num_inputs + (24 * 8.258e6 + 2 * 768 * 64000) * num_targets
    pairs = num_inputs**2 + num_targets**2 / 2 + num_inputs * num_targets  # two video modalities share the targets
    return (linear + 4 * 768 * 12 * pairs) / 1e9


def all_reduce_ms(num_bytes: float, num_gpus: int, network: Network) -> float:
    """Rings inside of the nodes, then each GPU's part of the sum between nodes."""
    inside = min(num_gpus, network.gpus_per_node)
    nodes = -(-num_gpus // network.gpus_per_node)
    seconds = ring_s(num_bytes, inside, network.inside_gb_per_s * 1e9, network.hop_us * 1e-6)
    seconds += ring_s(num_bytes / inside, nodes, network.between_gb_per_s * 1e9, network.hop_us * 1e-6)
    return 1e3 * seconds


def ring_s(num_bytes: float, num_ranks: int, bytes_per_s: float, hop_s: float) -> float:
    """A sum over a ring: 2 (n - 1) hops, each with an n-th of the bytes."""
    return 2 * (num_ranks - 1) * (num_bytes / num_ranks / bytes_per_s + hop_s)


def step(
    num_gpus: int,
    clips_per_gpu: int,
    network: Network,
    *,
    share: float = 1.0,
    workers: int = 8,
    clips_per_worker_s: float = 2500.0,
) -> Step:
    busy_ms = compute_ms(clips_per_gpu, share=share)
    tail_ms = all_reduce_ms(4 * TAIL_PARAMETERS, num_gpus, network)
    rest_ms = all_reduce_ms(4 * (PARAMETERS - TAIL_PARAMETERS), num_gpus, network)
    # Accumulated micro-batches exchange nothing but in the last one.
    last = min(clips_per_gpu, int(LARGEST_BATCH / share))
    window_ms = BACKWARD_SHARE * compute_ms(last, share=share)
    exposed_ms = tail_ms + max(0.0, rest_ms - window_ms) if num_gpus > 1 else 0.0
    loader_ms = 1e3 * clips_per_gpu / (workers * clips_per_worker_s)
    return Step(num_gpus, num_gpus * clips_per_gpu, busy_ms, exposed_ms, loader_ms)


def bytes_of_clip() -> int:
    """On disk, as the loader benchmark writes it: npz of random ids, which do not compress."""
    rng = np.random.default_rng(0)
    specs = default_specs()
    arrays = (rng.integers(0, spec.vocab_size, spec.grid.shape).astype(np.int32) for spec in specs)
    return sum(len(encode_array(array, "npz")) for array in arrays)


def tables(clips_per_worker_s: float, dollars_per_gpu_hour: float) -> str:
    """Markdown."""
    lines = ["| released recipe, 1,024 clips a step | GPUs | clips a GPU | step, ms | not hidden, ms | clips/s | "
             "GPU-hours | hours | cost |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for kind in ("full budgets", "mixture, by tokens", "mixture, by clips"):
        for network in NETWORKS:
            for num_gpus in (8, 64, 256):
                clips = 1024 // num_gpus
                share = 1.0 if kind == "full budgets" else MIXTURE_FLOPS
                if kind == "mixture, by clips":
                    share *= slowest_rank(num_gpus, clips)
                found = step(num_gpus, clips, network, share=share, clips_per_worker_s=clips_per_worker_s)
                hours = RELEASED_CLIPS / found.clips_per_s / 3600
                lines.append(
                    f"| {kind}; {network.name} | {num_gpus} | {clips} | {found.ms:.0f} | {found.exposed_ms:.1f} | "
                    f"{found.clips_per_s:,.0f} | {num_gpus * hours:,.0f} | {hours:.1f} | "
                    f"${num_gpus * hours * dollars_per_gpu_hour:,.0f} |"
                )
    size = bytes_of_clip()
    lines += [
        "",
        "| data | clips | tokens on disk, TB | passes of the recipe | read by 256 GPUs at 95 clips/s each, GB/s |",
        "|---|---|---|---|---|",
    ]
    for times in (1, 10):
        clips = times * CORPUS_CLIPS
        lines.append(
            f"| {'as released' if times == 1 else 'ten times'} | {clips:,} | {clips * size / 1e12:.3f} | "
            f"{RELEASED_CLIPS / clips:.0f} | {256 * 95 * size / 1e9:.2f} |"
        )
    return "\n".join(lines)


def check(turns: int = 30, megabytes: Sequence[int] = (1, 4, 16, 64), width: int = 192) -> dict:
    """Two processes of this machine over gloo: a ring fitted to the smallest and largest sum predicts the others, and
    what the exchange of gradients adds to a step of a small model (nothing is hidden: the cores are the same)."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = context.Pipe()
        ranks = [
            context.Process(
                target=_rank,
                args=(rank, f"file://{folder}/meeting", theirs if rank == 0 else None, turns, tuple(megabytes), width),
            )
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        theirs.close()
        found = ours.recv()
        for process in ranks:
            process.join()
    sums = found["sum_s"]
    first, last = megabytes[0], megabytes[-1]
    # Two ranks: 2 (n - 1) / n = 1, so a ring is seconds = 2 hops + bytes / rate.
    rate = (last - first) * 1e6 / (sums[last] - sums[first])
    hop_s = max(0.0, (sums[first] - first * 1e6 / rate) / 2)
    predicted = {size: ring_s(size * 1e6, 2, rate, hop_s) for size in megabytes}
    step_s = found["alone_s"] + ring_s(found["gradient_bytes"], 2, rate, hop_s)
    return {
        "gb_per_s": rate / 1e9,
        "hop_us": 1e6 * hop_s,
        "sum_ms": {f"{size} MB": [1e3 * sums[size], 1e3 * predicted[size]] for size in megabytes},
        "gradient_mb": found["gradient_bytes"] / 1e6,
        "step_without_exchange_ms": 1e3 * found["alone_s"],
        "step_ms": [1e3 * found["together_s"], 1e3 * step_s],
    }


def _rank(rank: int, meeting: str, line: Connection | None, turns: int, megabytes: Sequence[int], width: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    sums = {}
    for size in megabytes:
        values = torch.ones(size * 250_000)
        sums[size] = _best_s(lambda values=values: dist.all_reduce(values), turns)
    layers = [torch.nn.Linear(width, width) for _ in range(24)]
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers))
    rows = torch.randn(512, width)

    def backward() -> None:
        model(rows).square().mean().backward()

    def alone() -> None:
        with model.no_sync():
            backward()

    # In turns, and the fastest of each: what a busy machine adds says nothing about either.
    times: dict[Callable, list[float]] = {alone: [], backward: []}
    for _ in range(turns + 1):
        for work, found in times.items():
            found.append(_best_s(work, 1, warm_up=0))
            model.zero_grad()
    if line is not None:
        line.send({
            "sum_s": sums,
            "alone_s": min(times[alone][1:]),
            "together_s": min(times[backward][1:]),
            "gradient_bytes": sum(4 * parameter.numel() for parameter in model.parameters()),
        })  # fmt: skip
    dist.destroy_process_group()


def _best_s(work: Callable[[], object], turns: int, warm_up: int = 1) -> float:
    found = []
    for _ in range(warm_up + turns):
        dist.barrier()
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return min(found[warm_up:])


def main(words: list[str] | None = None) -> None:
    """`words` replaces the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="check the model on two processes and write what was found")
    parser.add_argument("--dollars", type=float, default=3.0, help="per GPU and hour, an assumption")
    arguments = parser.parse_args(words)
    loader = json.loads((Path(__file__).parent / "results" / "loader_cpu.json").read_text())
    rate = loader["rows"][0]["loader_npz_tars_clips_per_s"]
    print(tables(rate, arguments.dollars))
    if arguments.json is not None:
        found = {**environment(), **check()}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
