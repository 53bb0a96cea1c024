"""Our way and the published way of computing the same things, side by side on one machine; what transfers are ratios.

    python benchmarks/training.py --json benchmarks/results/training_cpu.json
    python benchmarks/training.py --json FILE --rows dense --size base     (rows that begin so, other sizes)

Every row has two processes, `ours` and `reference_like` (the published design, plainly written), with the same weights
and the same clips; they take turns, step by step, so that a busy machine slows both alike. Ratios are of processor
time, which on one thread (the default) does not contain what others compute. A row is written as soon as it is
measured; complete ones are not run again. Losses of both sides are compared: it is the same work.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from environment import environment
from loader import published_mixture, write_random_tokens
from reference_like import ReferenceLike, dense_batch, plain_dense_clips, published_adamw, train_step

from egom2p.contracts import LossOutput, MaskedClip, ModalitySpec, PackedBatch, TokenClip
from egom2p.data.collate import collate
from egom2p.data.masking import MaskingConfig, UnifiedMasking
from egom2p.data.modality_info import build_specs
from egom2p.data.token_set import TokenSet
from egom2p.data.unified_datasets import DataConfig, DatasetConfig, TokenLoader
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.generate import Sampler
from egom2p.models.losses import combine_losses
from egom2p.models.sampling import SamplingConfig
from egom2p.training.distributed import ranks_of_launch
from egom2p.training.optim import OptimizerConfig, build_optimizer
from egom2p.training.step import StepSums, apply_gradients, forward_backward

SIDES = ("ours", "reference_like")
NAMES = ("tok_cam", "tok_depth", "tok_gaze", "tok_rgb")
_LR = 1e-4
_SUMMED = ("s", "processor_s", "clips", "tokens")
Work = Callable[[int], dict[str, float]]
"""Turn -> what one step said (loss, tokens, clips)."""


@dataclass(frozen=True)
class Size:
    """Model and tokens. shrink: the budgets of the rows are divided by it."""

    model: ModelConfig
    grid: tuple[int, int, int] = (5, 32, 32)
    vocab_size: int = 64000
    shrink: int = 1

    @property
    def specs(self) -> tuple[ModalitySpec, ...]:
        video = {"grid": list(self.grid), "vocab_size": self.vocab_size}
        return build_specs({name: video if name in ("tok_rgb", "tok_depth") else None for name in NAMES})


SIZES = {
    "tiny": Size(ModelConfig(dim=48, encoder_depth=1, decoder_depth=1, num_heads=2), (3, 4, 4), 64, shrink=64),
    # Full vocabularies and token grids; trunks that a core can step in seconds.
    "narrow": Size(ModelConfig(dim=192, encoder_depth=3, decoder_depth=3, num_heads=3)),
    "small": Size(ModelConfig(dim=384, encoder_depth=6, decoder_depth=6, num_heads=6)),
    "base": Size(ModelConfig(dim=768, encoder_depth=12, decoder_depth=12, num_heads=12)),
}


def training(
    size: Size,
    side: str,
    *,
    num_clips: int,
    budget: int,
    alphas: Sequence[float] = (10.0,),
    policy: str = "waterfill",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Work]:
    """Whole optimizer steps, each on clips of its own; dtype: of products, on both sides."""
    budget = budget // size.shrink
    clips = partial(_masked, size.specs, num_clips, budget, alphas, policy)
    model = _model(size)
    if side == "ours":
        with ranks_of_launch("cpu") as ranks:
            optimizer = build_optimizer(model, OptimizerConfig())
            yield partial(_our_step, _Task(model), optimizer, StepSums(ranks), clips, dtype)
    else:
        reference = ReferenceLike.of(model)
        del model
        options = {"num_inputs": budget, "num_targets": budget, "dtype": dtype}
        yield partial(_reference_step, reference, published_adamw(reference, _LR), options, clips)


def generation(size: Size, side: str, *, target: str, num_steps: int) -> Iterator[Work]:
    """Tokens of one target from the RGB tokens of one clip, with the published settings."""
    model = _model(size)
    spec = {spec.name: spec for spec in size.specs}["tok_rgb"]
    settings = {"num_steps": num_steps, "guidance": 2.0, "temperature": 0.01, "top_p": 0.8}
    if side == "ours":
        sampler, plan = Sampler(model.eval()), SamplingConfig(**settings).plan(target)
    else:
        reference = ReferenceLike.of(model)
        del model

    def work(turn: int) -> dict[str, float]:
        ids = np.random.default_rng(turn).integers(0, spec.vocab_size, spec.num_tokens)
        if side == "ours":
            prompt = TokenClip("clip", {"tok_rgb": ids.astype(np.int32)}, {})
            made = sampler.generate([prompt], [plan], [turn])[0].tokens[target]
        else:
            generator = torch.Generator().manual_seed(turn)
            made = reference.generate({"tok_rgb": torch.from_numpy(ids)[None]}, target, generator=generator, **settings)
        return {"tokens": made.size if side == "ours" else made.numel(), "clips": 1}

    yield work


def loading(size: Size, side: str, *, num_batches: int) -> Iterator[Work]:
    """Batches of 4 clips of the published mixture from tars of npz, in the process that trains."""
    budget, specs = 2048 // size.shrink, size.specs
    with tempfile.TemporaryDirectory() as folder:
        shards = write_random_tokens(Path(folder), specs, 64)
        dataset = DatasetConfig(
            shards=shards, alphas=published_mixture(NAMES), max_input_tokens=budget, max_target_tokens=budget,
            policy="clamp",
        )  # fmt: skip
        if side == "ours":
            config = DataConfig(datasets={"random": dataset}, modalities=_declared(size))
            batches = TokenLoader(config, specs, batch_size=4, seed=0).batches()
        else:
            batches = plain_dense_clips(TokenSet(shards, specs), specs, dataset, batch_size=4, seed=0)

        def work(turn: int) -> dict[str, float]:
            taken = sum(1 for _ in islice(batches, num_batches))
            return {"clips": 4 * taken}

        yield work


_RELEASED = {"alphas": (0.01, 0.1, 1.0, 10.0), "policy": "clamp"}
# Name -> what runs, and how many turns of each side count after one that warms up.
ROWS: dict[str, tuple[Callable[[Size, str], Iterator[Work]], int]] = {
    "dense 512, 2 clips": (partial(training, num_clips=2, budget=512), 3),
    "dense 2048, 1 clip": (partial(training, num_clips=1, budget=2048), 2),
    "published mixture 2048, 1 clip": (partial(training, num_clips=1, budget=2048, **_RELEASED), 16),
    "bf16: dense 2048, 1 clip": (partial(training, num_clips=1, budget=2048, dtype=torch.bfloat16), 2),
    "bf16: published mixture 2048, 1 clip": (
        partial(training, num_clips=1, budget=2048, dtype=torch.bfloat16, **_RELEASED),
        16,
    ),
    "rgb to cam": (partial(generation, target="tok_cam", num_steps=3), 2),
    "rgb to depth": (partial(generation, target="tok_depth", num_steps=3), 1),
    "loader": (partial(loading, num_batches=16), 3),
}


def measure(name: str, size: str, threads: int, known: dict | None = None, seconds: float = math.inf) -> dict:
    """One row: both sides in turns, each in a process of its own.

    known     the row as far as it was measured before; goes on behind its last turn
    seconds   no turn begins later
    """
    begin = time.monotonic()
    make, num_turns = ROWS[name]
    context = multiprocessing.get_context("spawn")
    processes, lines = {}, {}
    for side in SIDES:
        lines[side], theirs = context.Pipe()
        processes[side] = context.Process(target=_serve, args=(theirs, make, size, side, threads), daemon=True)
        processes[side].start()
        theirs.close()
    steps: dict[str, list[dict]] = {side: list(known[side]["steps"]) if known else [] for side in SIDES}
    losses: list[float | None] = []
    for turn in (0, *range(len(steps["ours"]) + 1, num_turns + 1)):
        if turn > 1 and time.monotonic() - begin > seconds:
            break
        for side in SIDES if turn % 2 else SIDES[::-1]:
            lines[side].send(turn)
            said = _received(lines[side], side)
            losses.append(said.get("loss"))
            if turn > 0:
                steps[side].append(said)
    row: dict = {"turns": len(steps["ours"]), "of_turns": num_turns}
    for side in SIDES:
        lines[side].send(None)
        row[side] = {f"total_{unit}": sum(said[unit] for said in steps[side]) for unit in _SUMMED
                     if unit in steps[side][0]}  # fmt: skip
        row[side]["median_processor_s"] = statistics.median(said["processor_s"] for said in steps[side])
        row[side]["peak_gb"] = _received(lines[side], side)
        row[side]["steps"] = steps[side]
        processes[side].join()
    ours, theirs = (row[side] for side in SIDES)
    for key in ("total_processor_s", "median_processor_s", "total_s"):
        row[f"ratio_of_{key}"] = theirs[key] / ours[key]
    if losses[0] is not None:
        # Of the first step: later ones differ by what rounding does to AdamW's first, sign-like updates.
        row["loss_difference"] = abs(losses[0] - losses[1]) / losses[0]
    return row


def _serve(line: Connection, make: Callable, size: str, side: str, threads: int) -> None:
    torch.set_num_threads(threads)
    random.seed(0)
    for work in make(SIZES[size], side):
        while (turn := line.recv()) is not None:
            begin, used = time.perf_counter(), time.process_time()
            said = work(turn)
            line.send({"s": time.perf_counter() - begin, "processor_s": time.process_time() - used, **said})
    line.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 * 1.073741824)  # kB -> GB


def _received(line: Connection, side: str) -> object:
    try:
        return line.recv()
    except EOFError:
        raise RuntimeError(f"the process of {side} ended; its error stands above") from None


def _model(size: Size) -> EgoM2P:
    torch.manual_seed(0)
    return EgoM2P(size.model, size.specs)


def _masked(
    specs: Sequence[ModalitySpec], num_clips: int, budget: int, alphas: Sequence[float], policy: str, turn: int
) -> list[MaskedClip]:
    """The clips of one step: random tokens, masked as the mixture says; a function of the turn."""
    rng = np.random.default_rng([1, turn])
    config = MaskingConfig(
        alphas=published_mixture(NAMES, alphas), max_input_tokens=budget, max_target_tokens=budget, policy=policy
    )
    masking = UnifiedMasking(specs, config)
    ids = [{spec.name: rng.integers(0, spec.vocab_size, spec.num_tokens).astype(np.int32) for spec in specs}
           for _ in range(num_clips)]  # fmt: skip
    return [masking(TokenClip(str(number), tokens, {}), rng) for number, tokens in enumerate(ids)]


@dataclass(frozen=True)
class _Task:
    """What a step asks of a task, with the published denominators."""

    model: EgoM2P

    def loss(self, model: EgoM2P, batch: PackedBatch) -> LossOutput:
        return model(batch)

    def combine(self, sums: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        return combine_losses(sums, counts, vocab_sizes=self.model.vocab_sizes, reference_denominator=True)


def _our_step(
    task: _Task, optimizer: torch.optim.Optimizer, sums: StepSums, clips: Callable, dtype: torch.dtype, turn: int
) -> dict:
    batch = collate(clips(turn), task.model.specs)
    with ranks_of_launch("cpu") as ranks:
        step = forward_backward(task, task.model, [batch], batch.head_counts, ranks=ranks, dtype=dtype)
    sums.add(step)
    sums.add_norm(*apply_gradients(optimizer, learning_rate=_LR, clip_grad_norm=1.0))
    return {"loss": step.loss.item(), "tokens": batch.num_tokens, "clips": batch.num_clips}


def _reference_step(
    model: ReferenceLike, optimizer: torch.optim.Optimizer, options: dict, clips: Callable, turn: int
) -> dict:
    batch = dense_batch(clips(turn), model.specs)
    loss = train_step(model, optimizer, batch, **options)["loss"]
    tokens = sum(int((~part[mask]).sum()) for part in batch.values() for mask in ("input_mask", "target_mask"))
    return {"loss": loss, "tokens": tokens, "clips": len(batch["tok_rgb"]["tensor"])}


def _declared(size: Size) -> dict:
    video = {"grid": list(size.grid), "vocab_size": size.vocab_size}
    return {name: video if name in ("tok_rgb", "tok_depth") else None for name in NAMES}


def main(words: list[str] | None = None) -> None:
    """`words` replaces the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rows", default="", help="only rows whose names begin so")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of a row; the same command goes on there")
    parser.add_argument("--again", action="store_true", help="also rows that are complete")
    arguments = parser.parse_args(words)
    found = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
    for name in (name for name in ROWS if name.startswith(arguments.rows)):
        known = None if arguments.again else found.get(arguments.size, {}).get(name)
        if known and known["turns"] == ROWS[name][1]:
            continue
        row = measure(name, arguments.size, arguments.threads, known, arguments.seconds)
        where = {**environment(), "threads": arguments.threads, "load": round(os.getloadavg()[0], 1)}
        found.setdefault(arguments.size, {})[name] = {**_rounded(row), **where}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        part = arguments.json.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        part.replace(arguments.json)
        ours, theirs = (row[side] for side in SIDES)
        print(
            f"{name:<32} reference_like {theirs['total_processor_s']:.2f} s, {theirs['peak_gb']:.1f} GB; ours "
            f"{ours['total_processor_s']:.2f} s, {ours['peak_gb']:.1f} GB: {row['ratio_of_total_processor_s']:.2f} "
            "times faster",
            flush=True,
        )


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
