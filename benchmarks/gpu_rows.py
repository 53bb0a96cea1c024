"""What gpu.py measures, row by row: training, parts of a step, memory, generation, tokenizers, checkpoints, any-to-any.

B clips, N rows, D width, V vocabulary.
"""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from loader import published_mixture, write_random_tokens
from reference_like import ReferenceLike, plain_dense_clips, published_adamw, train_step

from egom2p.contracts import TokenClip
from egom2p.data.masking_config import MaskingConfig
from egom2p.data.modality_info import build_specs
from egom2p.data.token_set import TokenSet
from egom2p.data.unified_datasets import DataConfig, DatasetConfig
from egom2p.jobs.workers import Dtype, choose_dtype
from egom2p.layers.attention import AttentionLayout, attend
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.generate import Sampler
from egom2p.models.losses import modality_cross_entropy
from egom2p.models.sampling import SamplingConfig
from egom2p.storage import save_tensors
from egom2p.training.checkpoint import make_train_state
from egom2p.training.distributed import ranks_of_launch
from egom2p.training.optim import OptimizerConfig
from egom2p.training.step import apply_gradients, autocast, forward_backward
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import PretrainTask
from egom2p.training.training_config import TrainingConfig

_NAMES = ("tok_rgb", "tok_depth", "tok_gaze", "tok_cam")


@dataclass
class Bench:
    """Device, sizes and what several rows share.

    is_tiny   sizes for a test on a CPU; else the published ones
    """

    device: torch.device
    is_tiny: bool
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp()))
    limit_tflops: float | None = None

    @cached_property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @cached_property
    def modalities(self) -> dict:
        video = {"grid": [3, 4, 4], "vocab_size": 64} if self.is_tiny else None
        return dict(zip(_NAMES, (video, video, None, None), strict=True))

    @cached_property
    def shards(self) -> str:
        return write_random_tokens(self.folder / "tokens", build_specs(self.modalities), 8 if self.is_tiny else 64)

    @property
    def budget(self) -> int:
        return 32 if self.is_tiny else 2048

    def model_config(self, **changes: object) -> ModelConfig:
        base = {"dim": 768, "encoder_depth": 12, "decoder_depth": 12, "num_heads": 12}
        tiny = {"dim": 48, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2}
        return ModelConfig(**{**(tiny if self.is_tiny else base), **changes})

    def model(self, **changes: object) -> EgoM2P:
        with torch.device(self.device):
            return EgoM2P(self.model_config(**changes), build_specs(self.modalities))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], *, repeats: int = 10, rounds: int = 3) -> float:
        """Median over rounds of the seconds of one call, after three that warm up."""
        repeats, warm_up = (1, 1) if self.is_tiny else (repeats, 3)
        for _ in range(warm_up):
            work()
        found = []
        for _ in range(rounds):
            self.wait()
            begin = time.perf_counter()
            for _ in range(repeats):
                work()
            self.wait()
            found.append((time.perf_counter() - begin) / repeats)
        return statistics.median(found)

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else 0.0


def limit(bench: Bench) -> dict:
    """What this very card does in a large product, and in copying: all else is held against it."""
    size = 64 if bench.is_tiny else 8192
    square = torch.randn(size, size, device=bench.device, dtype=bench.dtype)
    seconds = bench.seconds(lambda: square @ square)
    rows = torch.empty(2**12 if bench.is_tiny else 2**30, device=bench.device, dtype=torch.uint8)
    other = torch.empty_like(rows)
    copying = bench.seconds(lambda: other.copy_(rows))
    return {"product_tflops": 2 * size**3 / seconds / 1e12, "copy_gb_per_s": 2 * len(rows) / copying / 1e9}


def tests(bench: Bench) -> dict:
    """The tests that need a GPU; of several thousand others only those that share their files."""
    root = Path(__file__).resolve().parents[1]
    files = ["tests/layers/test_attention.py", "tests/models/test_losses.py", "tests/training/test_gpu_step.py"]
    files.append("tests/models/test_sampling_generate.py")
    present = [name for name in files if (root / name).is_file()]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *present]
    command += ["--collect-only"] if bench.is_tiny else []
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"passed": done.returncode == 0, "last_line": done.stdout.strip().splitlines()[-1], "failed": failed}


def training(
    bench: Bench,
    *,
    batch_size: int = 32,
    alphas: tuple[float, ...] = (10.0,),
    policy: str = "waterfill",
    optimizer: str = "adamw",
    model: dict | None = None,
    **options: object,
) -> dict:
    """Steps of the real task, optimizer included, over batches that are collated and pinned before."""
    if bench.is_tiny:
        batch_size = 2
        options = {**options, **({"batch_tokens": 256} if "batch_tokens" in options else {})}
    dataset = DatasetConfig(
        shards=bench.shards,
        alphas=published_mixture(_NAMES, list(alphas)),
        max_input_tokens=bench.budget,
        max_target_tokens=bench.budget,
        policy=policy,
    )
    config = PretrainConfig(
        output_dir=str(bench.folder / "run"),
        model=bench.model_config(**(model or {})),
        data=DataConfig(datasets={"random": dataset}, in_memory=True, modalities=bench.modalities),
        training=TrainingConfig(
            num_steps=1,
            lr=1e-4,
            batch_size=batch_size,
            device=bench.device.type,
            optimizer=OptimizerConfig(kind=optimizer),
            **options,
        ),
    )
    torch._dynamo.reset()
    bench.forget_peak()
    with ranks_of_launch(bench.device.type) as ranks:
        begin = time.perf_counter()
        task = PretrainTask(config, ranks)
        dtype = choose_dtype(config.training.dtype, ranks.device)
        state = make_train_state(task.model, config.training, ranks=ranks, dtype=dtype)
        batches = list(islice(task.batches(0), 2 if bench.is_tiny else 6))
        turn = iter(range(10**9))

        def step() -> None:
            batch = batches[next(turn) % len(batches)]
            counts = task.counts(batch)
            forward_backward(task, task.model, [batch], counts, ranks=ranks, dtype=dtype, scaler=state.scaler)
            apply_gradients(state.optimizer, learning_rate=1e-4, clip_grad_norm=1.0, scaler=state.scaler)

        step()
        bench.wait()
        first_s = time.perf_counter() - begin
        host = time.process_time()
        seconds = bench.seconds(step, repeats=len(batches))
        host = time.process_time() - host
        sizes = [task.size(batch) for batch in batches]
        steps = 3 * (1 if bench.is_tiny else len(batches)) + (1 if bench.is_tiny else 3)
        flops = statistics.mean(size.flops for size in sizes) / seconds
        clips, tokens = (statistics.mean(getattr(size, name) for size in sizes) for name in ("clips", "tokens"))
    return {
        "ms": 1e3 * seconds,
        "host_ms": 1e3 * host / steps,
        "clips_per_s": clips / seconds,
        "tokens_per_s": tokens / seconds,
        "tflops": flops / 1e12,
        "share_of_limit": flops / 1e12 / bench.limit_tflops if bench.limit_tflops else None,
        "peak_gb": bench.peak_gb(),
        "first_step_s": first_s,
    }


def reference_training(
    bench: Bench, *, batch_size: int = 4, alphas: tuple[float, ...] = (10.0,), policy: str = "waterfill"
) -> dict:
    """Steps of the published design (benchmarks/reference_like), with its copies and waits."""
    masking = MaskingConfig(
        alphas=published_mixture(_NAMES, list(alphas)),
        max_input_tokens=bench.budget,
        max_target_tokens=bench.budget,
        policy=policy,
    )
    model = bench.model()
    reference = ReferenceLike.of(model).to(bench.device)
    tokens = TokenSet(bench.shards, model.specs)
    batches = list(islice(plain_dense_clips(tokens, model.specs, masking, batch_size=batch_size, seed=0), 4))
    del model
    optimizer, turn = published_adamw(reference, 1e-4), iter(range(10**9))
    sizes = {"num_inputs": bench.budget, "num_targets": bench.budget}

    def step() -> None:
        batch = batches[next(turn) % len(batches)]
        moved = {name: {key: value.to(bench.device) for key, value in part.items()} for name, part in batch.items()}
        train_step(reference, optimizer, moved, dtype=bench.dtype, **sizes)

    bench.forget_peak()
    seconds = bench.seconds(step, repeats=len(batches))
    used = [sum(int((~part[mask]).sum()) for part in batch.values() for mask in ("input_mask", "target_mask"))
            for batch in batches]  # fmt: skip
    return {"ms": 1e3 * seconds, "clips_per_s": batch_size / seconds, "tokens_per_s": statistics.mean(used) / seconds,
            "peak_gb": bench.peak_gb()}  # fmt: skip


def attention(bench: Bench, *, num_heads: int = 12, is_ragged: bool = False, kernel: str | None = None) -> dict:
    """Self-attention of 32 clips of 2048 rows, forward and forward with backward, through one kernel or as chosen."""
    if kernel is not None and bench.device.type == "cpu":
        return {"skipped": "a kernel of GPUs"}
    length, num_clips = (16, 2) if bench.is_tiny else (2048, 32)
    lengths = (length,) * num_clips
    if is_ragged:  # two modalities of a clip
        lengths = tuple(part for clip in range(num_clips) for part in (length // 2 - clip % 8, length // 2 + clip % 8))
    offsets = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=bench.device)
    layout = AttentionLayout.within(offsets, lengths)
    width = (32 if bench.is_tiny else 768) // num_heads
    rows = [
        torch.randn(sum(lengths), num_heads, width, device=bench.device, dtype=bench.dtype, requires_grad=True)
        for _ in "qkv"
    ]
    from torch.nn.attention import SDPBackend, sdpa_kernel

    only = contextlib.nullcontext() if kernel is None else sdpa_kernel(getattr(SDPBackend, kernel))
    with only:
        forward = bench.seconds(lambda: attend(*rows, layout).detach())
        both = bench.seconds(lambda: attend(*rows, layout).sum().backward())
    flops = 4 * num_heads * width * sum(length * length for length in lengths)
    return {"forward_ms": 1e3 * forward, "both_ms": 1e3 * both, "forward_tflops": flops / forward / 1e12,
            "both_tflops": 3.5 * flops / both / 1e12}  # fmt: skip


def head(bench: Bench, *, kind: str = "compiled") -> dict:
    """The loss of 16,384 rows over 64,000 ids with its gradients: our chunks, or torch's own fused loss."""
    num_rows, width, vocab_size = (16, 32, 64) if bench.is_tiny else (16384, 768, 64000)
    hidden = torch.randn(num_rows, width, device=bench.device, requires_grad=True)
    table = (torch.randn(vocab_size, width, device=bench.device) * 0.02).requires_grad_()
    targets = torch.randint(vocab_size, (num_rows,), device=bench.device)

    def ours() -> None:
        with autocast(bench.device, bench.dtype):
            sums = modality_cross_entropy(
                hidden,
                table,
                targets,
                counts=(num_rows,),
                vocab_sizes=(vocab_size,),
                is_compiled=kind == "compiled",
            )
        sums.sum().backward()

    def torchs() -> None:
        F.linear_cross_entropy(hidden.to(bench.dtype), table.to(bench.dtype), targets, reduction="sum").backward()

    if kind == "torch" and not hasattr(F, "linear_cross_entropy"):
        return {"skipped": "this torch has no linear_cross_entropy"}
    bench.forget_peak()
    seconds = bench.seconds(torchs if kind == "torch" else ours)
    flops = 6 * num_rows * width * vocab_size
    return {"ms": 1e3 * seconds, "tflops": flops / seconds / 1e12, "peak_gb": bench.peak_gb()}


def generation(
    bench: Bench, *, target: str, num_clips: int = 1, graphs: bool = True, dtype: Dtype = "auto", **sampling: object
) -> dict:
    """Tokens of one target from RGB, by default with the published settings (ROAR with guidance, nearly greedy)."""
    model = bench.model().eval().to(choose_dtype(dtype, bench.device))
    spec = {spec.name: spec for spec in model.specs}["tok_rgb"]
    rng = np.random.default_rng(0)
    prompts = [
        TokenClip(
            f"clip {number}",
            {"tok_rgb": rng.integers(0, spec.vocab_size, spec.num_tokens).astype(np.int32)},
            {"tok_rgb": spec.tokenizer_fingerprint},
        )
        for number in range(2 if bench.is_tiny and num_clips > 1 else num_clips)
    ]
    published = {"num_steps": 3, "temperature": 0.01, "top_p": 0.8, "guidance": 2.0}
    plan = SamplingConfig(**{**published, **sampling}).plan(target)
    sampler = Sampler(model, graphs=graphs)

    def work() -> None:
        sampler.generate(prompts, [plan], list(range(len(prompts))))

    bench.forget_peak()
    begin = time.perf_counter()
    work()
    first_s = time.perf_counter() - begin
    work()  # the second of a shape makes its graph
    begin, repeats = time.process_time(), 5
    seconds = bench.seconds(work, repeats=repeats)
    num_calls = 4 if bench.is_tiny else 3 + 3 * repeats
    host_s = (time.process_time() - begin) / num_calls
    return {
        "ms": 1e3 * seconds,
        "clips_per_s": len(prompts) / seconds,
        "host_ms": 1e3 * host_s,
        "first_s": first_s,
        "weights_gb": sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / 1e9,
        "peak_gb": bench.peak_gb(),
    }


def reference_generation(bench: Bench, *, target: str, num_steps: int = 3) -> dict:
    """The same by benchmarks/reference_like, in float32 as published."""
    reference = ReferenceLike.of(bench.model()).to(bench.device)
    rgb = {spec.name: spec for spec in reference.specs}["tok_rgb"]
    ids = torch.randint(rgb.vocab_size, (1, rgb.num_tokens), device=bench.device)

    def work() -> None:
        reference.generate({"tok_rgb": ids}, target, num_steps=num_steps, guidance=2.0, temperature=1.0, top_p=0.9)

    bench.forget_peak()
    return {"ms": 1e3 * bench.seconds(work, repeats=3), "peak_gb": bench.peak_gb()}


def tokenizers(bench: Bench) -> dict:
    """Clips per second of encoding, alone and in the whole pipeline, and of decoding."""
    from tokenization import made_clip, measure, write_tokenizers

    from egom2p.data.clips.clip_store import write_clips
    from egom2p.pipelines.tokenization import TokenizeConfig, load_tokenizers

    size, pixels, count = ("quickstart", 64, 4) if bench.is_tiny else ("published", 256, 32)
    root = bench.folder / "tokenizers"
    write_clips(root / "clips", "made", (made_clip(number, pixels) for number in range(count)))
    config = TokenizeConfig(
        clips=str(root / "clips"),
        output=str(root / "tokens"),
        tokenizers=write_tokenizers(root / "made", size),
        tokenizers_root=str(root / "made"),
        batch_size=2 if bench.is_tiny else 8,
        device=bench.device.type,
        dtype="fp32" if bench.device.type == "cpu" else "bf16",
    )
    found = {f"{name}_clips_per_s": value for name, value in measure(config, 2).items() if isinstance(value, float)}
    for name, tokenizer in load_tokenizers(replace(config, output=str(root / "decoded"))).items():
        network = tokenizer.network.to(bench.device).eval()
        shape = network.spec.grid.shape if network.spec.kind == "grid" else (network.spec.num_tokens,)
        ids = np.zeros((2, *shape), np.int32).reshape(2, -1)
        with torch.no_grad():
            found[f"decode_{name}_clips_per_s"] = 2 / bench.seconds(lambda n=network, i=ids: n.decode_ids(i), repeats=2)
    return found


def checkpoint(bench: Bench) -> dict:
    """Seconds for which writing weights and moments of the model keeps training waiting."""
    model = bench.model()
    state = {name: value.detach() for name, value in model.state_dict().items()}
    tensors = {f"{part}/{name}": value for part in ("model", "first", "second") for name, value in state.items()}
    bench.wait()
    begin = time.perf_counter()
    host = {name: value.cpu() for name, value in tensors.items()}
    copied = time.perf_counter()
    save_tensors(bench.folder / "state.safetensors", host)
    size = sum(value.nbytes for value in host.values()) / 1e9
    return {"copy_s": copied - begin, "write_s": time.perf_counter() - copied, "gb": size}


def anytoany(bench: Bench, *, shape: str) -> dict:
    """LoRA steps of the any-to-any model on packed rows, random weights: tokens per second, share of one product."""
    from anytoany_parts.setting import Setting
    from anytoany_parts.training import utilisation

    dtype = "bfloat16" if bench.device.type == "cuda" else "float32"
    setting = Setting("tiny" if bench.is_tiny else shape, bench.device, dtype, 1 if bench.is_tiny else 3)
    bench.forget_peak()
    return {**utilisation(setting, peak_flops=None), "peak_gb": bench.peak_gb()}
