"""Generations of one clip on the stand-in: one line of JSON for every case named, or all.

    python generation_steps.py [CASE ...]

Run by test_null_gpu.py under its environment; by hand: `python tests/null_gpu/run.py generation_steps.py "rgb to cam"`.
"""

import json
import sys
import time

import numpy as np
import torch
from loader import random_tokens
from null_gpu import Counts, Traffic, waits

from egom2p.contracts import ModalitySpec, TokenClip, TokenGrid
from egom2p.data.modality_info import build_specs
from egom2p.jobs.workers import choose_dtype
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.generate import Sampler
from egom2p.models.sampling import SamplingConfig

PUBLISHED = {"num_steps": 3, "temperature": 0.01, "top_p": 0.8, "guidance": 2.0}
TINY = {"size": "tiny"}
CASES = {
    "rgb to cam": {"target": "tok_cam", **PUBLISHED},
    "rgb to depth": {"target": "tok_depth", **PUBLISHED},
    "rgb to cam, no graph": {"target": "tok_cam", "graphs": False, **PUBLISHED},
    "rgb to depth, no graph": {"target": "tok_depth", "graphs": False, **PUBLISHED},
    "rgb to cam, fp32": {"target": "tok_cam", "dtype": "fp32", **PUBLISHED},
    "roar": {**TINY, "target": "tok_depth", **PUBLISHED},
    "roar, no graph": {**TINY, "target": "tok_depth", "graphs": False, **PUBLISHED},
    "hot": {**TINY, "target": "tok_depth", "num_steps": 3, "temperature": 1.0},
    "maskgit": {**TINY, "target": "tok_depth", "scheme": "maskgit", "num_steps": 4, "temperature": 1.0, "top_k": 50},
    "maskgit, rewriting": {
        **TINY,
        "target": "tok_depth",
        "scheme": "maskgit",
        "num_steps": 4,
        "rewrite_fraction": 0.3,
        "guidance": 2.0,
    },
    "autoregressive": {**TINY, "target": "tok_cam", "scheme": "autoregressive", "guidance": 2.0},
    "frames": {**TINY, "target": "tok_depth", "scheme": "frames", "num_steps": 2, "temperature": 1.0},
    "inpainting": {**TINY, "target": "tok_depth", "is_partial": True, **PUBLISHED},
    "two conditions": {
        **TINY,
        "target": "tok_cam",
        "given": ("tok_rgb", "tok_gaze"),
        "num_steps": 3,
        "guidance_weights": {"tok_rgb": 2.0, "tok_gaze": -0.5},
    },
    "four clips": {**TINY, "target": "tok_depth", "num_clips": 4, **PUBLISHED},
    "pixels": {**TINY, "target": "tok_depth", "given": ("tok_rgb", "rgb_patches"), **PUBLISHED},
    "words": {**TINY, "target": "tok_words", "temperature": 1.0, "guidance": 2.0, "max_new_tokens": 8},
    "fp32": {**TINY, "target": "tok_depth", "dtype": "fp32", **PUBLISHED},
    "second device": {**TINY, "target": "tok_depth", "device": "cuda:1", **PUBLISHED},
    "second device, words": {**TINY, "target": "tok_words", "device": "cuda:1", "max_new_tokens": 8},
}
WORDS = ModalitySpec("tok_words", "sequence", "text", TokenGrid((16,)), 900, "words", pad_id=2, eos_id=1)
PIXELS = ModalitySpec("rgb_patches", "patches", "rgb", TokenGrid((8, 8, 8)), 0, "rgb_patches", patch_shape=(2, 8, 8, 3))
SIZES = {"base": {"dim": 768, "encoder_depth": 12, "decoder_depth": 12, "num_heads": 12}}
SIZES["tiny"] = {"dim": 192, "encoder_depth": 2, "decoder_depth": 2, "num_heads": 3}


def run(
    case: str,
    *,
    target: str,
    size: str = "base",
    given: tuple[str, ...] = ("tok_rgb",),
    num_clips: int = 1,
    is_partial: bool = False,
    dtype: str = "auto",
    graphs: bool = True,
    device: str = "cuda:0",
    **sampling: object,
) -> dict:
    """What the first, the second and a later generation of one shape did, and what the later one took."""
    video = {"grid": [5, 8, 8], "vocab_size": 4000} if size == "tiny" else None
    specs = build_specs({"tok_rgb": video, "tok_depth": video, "tok_gaze": None, "tok_cam": None})
    specs = (*specs, WORDS) if target == WORDS.name else specs
    specs = (PIXELS, *specs) if PIXELS.name in given else specs
    model = EgoM2P(ModelConfig(**SIZES[size]), specs).to(device, choose_dtype(dtype, torch.device(device)))
    model.eval()
    current = set()  # whose streams, events and graphs are taken
    model.decoder[0].register_forward_pre_hook(lambda *_: current.add(torch.cuda.current_device()))
    prompts = [made_prompt(specs, number, given, target if is_partial else None) for number in range(num_clips)]
    sampler = Sampler(model, graphs=graphs)
    plan = SamplingConfig(**sampling).plan(target)

    def work() -> None:
        sampler.generate(prompts, [plan], list(range(num_clips)))

    counts = Counts()
    firsts, times = [], []
    for _ in range(5):
        counts.take()
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
        firsts.append(counts.take())
    torch.cuda.reset_peak_memory_stats()
    with waits() as where:
        work()
    sampler = Sampler(model, graphs=False)  # a spy sees nothing of a graph
    with Traffic() as traffic:
        work()
    return {
        "case": case,
        "first": firsts[0],
        "second": firsts[1],
        "later": firsts[-1],
        "host_ms": round(1e3 * min(times[2:]), 1),
        "gigabytes": round(traffic.gigabytes, 2),
        "weights_gb": round(sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / 1e9, 3),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "where": dict(where),
        "current": [f"cuda:{number}" for number in current],
        "most": [(name, round(size / 1e9, 2), traffic.calls[name]) for name, size in traffic.bytes.most_common(30)],
    }


def made_prompt(specs: tuple[ModalitySpec, ...], number: int, given: tuple[str, ...], partial: str | None) -> TokenClip:
    rng = np.random.default_rng(number)
    tokens = {}
    for spec in specs:
        if spec.name in (*given, partial):
            found = random_tokens(spec, rng)
            tokens[spec.name] = found if spec is PIXELS else found.reshape(-1)
    if partial is not None:
        tokens[partial][len(tokens[partial]) // 3 :] = -1
    return TokenClip(f"clip {number}", tokens, {spec.name: spec.tokenizer_fingerprint for spec in specs})


def main() -> None:
    EgoM2P._initialize = lambda self: None  # kernels do nothing anyway
    torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN has no stand-in
    for case in sys.argv[1:] or CASES:
        print(json.dumps(run(case, **CASES[case])), flush=True)


if __name__ == "__main__":
    main()
