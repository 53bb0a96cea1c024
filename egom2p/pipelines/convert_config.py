"""A published trio of YAML files (main, data, alphas: flat keys of a command line) -> one YAML of ours.

    python -m egom2p.pipelines.convert_config main=theirs.yaml output=ours.yaml world_size=256

Every key that has no counterpart is named with the reason, on the console and in the header of the new file.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egom2p.config import Count, from_plain, load_config, load_plain, run_main, strict, to_plain, to_yaml
from egom2p.models.egom2p_model import ModelConfig
from egom2p.pipelines.convert_data_config import Leftovers, Source, converted_data
from egom2p.storage import atomic_file
from egom2p.training.tasks.pretrain_config import PretrainConfig

_MODEL = re.compile(r"(?:\w+?_)?(tiny|small|base|large|xlarge)_(\d+)e_(\d+)d_(gelu|swiglu)(\w*)")
_DTYPES = {"bfloat16": "bf16", "bf16": "bf16", "float32": "fp32", "fp32": "fp32"}
_NOT_NEEDED = {
    "this program decides it": (
        "device", "pin_mem", "find_unused_params", "dist_url", "rlimit", "print_all", "show_user_warnings", "dist_eval",
        "compute_grad_norm", "start_epoch", "fixed_eval", "config_path", "momentum",
    ),
    "modalities know their own sizes": ("patch_size", "input_size", "text_tokenizer_path", "tokenizer_path"),
    "S3 takes boto3's environment variables": (
        "s3_endpoint", "s3_data_endpoint", "s3_multipart_chunksize_mb", "s3_multipart_threshold_mb", "s3_max_io_queue",
        "s3_save_dir", "s3_path",
    ),
    "name the new run by output_dir": ("run_name",),
    "no counterpart": (
        "skip_grad", "skip_nan_grad", "frozen_model_blr", "frozen_model_epochs", "frozen_model_tokens",
        "frozen_embedding_domain", "cooldown_epochs", "cooldown_steps", "cooldown_tokens", "use_act_checkpoint",
        "eval", "resume",
    ),
}  # fmt: skip


@strict
class ConvertConfigConfig:
    """Root schema.

    main        the published main file; it names the others
    root        folder that the paths inside the files start from
    world_size  GPUs of the published run: turns epochs of evaluation and checkpoints into steps; null: left out
    """

    main: str
    output: str
    root: str = "."
    world_size: Count | None = None


def convert_config(config: ConvertConfigConfig) -> list[str]:
    """Write the YAML; return one line per key without counterpart. ValueError when the result would not be valid."""
    leftovers = Leftovers()
    source = Source(load_plain(config.main), "main", leftovers)
    plain = _converted(source, config)
    for reason, keys in _NOT_NEEDED.items():
        for key in keys:
            source.drop(key, reason)
    source.name_the_rest()
    checked = from_plain(PretrainConfig, plain, where=config.main)
    output = Path(config.output)
    if output.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{output}: a config is written as .yaml or .yml, found suffix {output.suffix!r}")
    lines = [f"# {line}" for line in _header(config, leftovers.lines, checked)]
    with atomic_file(output) as unfinished:
        unfinished.write_text("\n".join(lines) + "\n" + to_yaml(plain))
    for line in leftovers.lines:
        sys.stderr.write(f"{line}\n")
    return leftovers.lines


def _header(config: ConvertConfigConfig, leftovers: list[str], checked: PretrainConfig) -> list[str]:
    length = checked.training.length(checked.training.epoch_clips)
    return [
        f"Purpose:  {Path(config.main).name}, converted from the published form.",
        f"Command:  torchrun --nproc_per_node=4 run_training_egom2p.py --config {config.output}",
        f"Hardware: as the published run. Time: as the published run; {length.total:g} {length.unit}.",
        "Expected: <output_dir>/final",
        "Budgets are clamped and losses averaged per rank, as published (policy, reference_denominator).",
        *(["Without counterpart:"] if leftovers else []),
        *(f"  {line}" for line in leftovers),
    ]


def _converted(source: Source, config: ConvertConfigConfig) -> dict[str, Any]:
    budgets = {
        "max_input_tokens": source.take("num_input_tokens", 128),
        "max_target_tokens": source.take("num_target_tokens", 128),
        "min_input_tokens": source.take("min_input_tokens"),
        "min_target_tokens": source.take("min_target_tokens"),
    }
    fixed = {
        "max_input_tokens": source.take("fixed_eval_input_tokens", 128),
        "max_target_tokens": source.take("fixed_eval_target_tokens", 128),
    }
    data_file = source.take("data_config")
    if not data_file:
        raise ValueError(f"{config.main}: data_config names no data file")
    plain = {
        "output_dir": source.take("output_dir", "outputs/converted"),
        "seed": source.take("seed", 0),
        "loss": source.take("loss_type", "mod"),
        "model": _model(source, config),
        "data": converted_data(Path(config.root), data_file, budgets, fixed, source.leftovers),
        "evaluation": _evaluation(source),
        "training": _training(source, config, budgets["max_input_tokens"] + budgets["max_target_tokens"]),
    }
    if source.take("finetune"):
        source.leftovers.add("main.finetune", "convert that checkpoint first, then set finetune to its folder")
    return plain


def _model(source: Source, config: ConvertConfigConfig) -> dict[str, Any]:
    name = source.take("model", "base_12e_12d_swiglu_nobias")
    parsed = _MODEL.fullmatch(name)
    if parsed is None:
        raise ValueError(f"{config.main}: model {name!r} is not <size>_<n>e_<n>d_<gelu|swiglu...>")
    size, encoder_depth, decoder_depth, activation, rest = parsed.groups()
    known = to_plain(load_config(ModelConfig, f"default/egom2p/models/size/{size}.yaml"))
    names = ("dim", "num_heads", "mlp_ratio")
    return {
        **{key: known[key] for key in names},
        "encoder_depth": int(encoder_depth),
        "decoder_depth": int(decoder_depth),
        "activation": activation,
        "use_bias": "nobias" not in rest,
        "qk_norm": "qknorm" in rest,
        "causal_decoder": "causal" in name,
        "num_registers": source.take("num_register_tokens", 0),
    }


def _evaluation(source: Source) -> dict[str, Any]:
    return {"batch_size": source.take("fixed_eval_batch_size", 32)}


def _training(source: Source, config: ConvertConfigConfig, budget_per_clip: int) -> dict[str, Any]:
    batch_size, accumulation = source.take("batch_size", 256), source.take("accum_iter", 1)
    epoch_clips = source.take("epoch_size")
    training = {
        **_length(source, budget_per_clip, epoch_clips, config),
        "blr": source.take("blr", 1e-4),
        "batch_size": batch_size,
        "accumulation": accumulation,
        "reference_denominator": True,
        "num_workers": source.take("num_workers", 10),
        "resume": source.take("auto_resume", True),
        "optimizer": {
            "betas": source.take("opt_betas", [0.9, 0.95]),
            "eps": source.take("opt_eps", 1e-8),
            "weight_decay": source.take("weight_decay", 0.05),
            "clip_grad_norm": source.take("clip_grad"),
        },
        "wandb": _wandb(source),
    }
    dtype = source.take("dtype", "bfloat16")
    if dtype in _DTYPES:
        training["dtype"] = _DTYPES[dtype]
    else:
        source.leftovers.add("main.dtype", f"{dtype} has no counterpart; dtype stays auto")
    source.only("opt", "adamw", "the optimizer stays AdamW")
    source.only("scheduler", "cosine", "the schedule stays cosine")
    source.only("min_blr", 0, "set training.min_lr, a learning rate that is not scaled by the batch")
    source.only("weight_decay_end", training["optimizer"]["weight_decay"], "weight decay stays constant")
    for key in ("eval_freq", "save_ckpt_freq"):
        frequency = source.take(key)
        if frequency is None:
            continue
        if config.world_size is None or epoch_clips is None:
            source.leftovers.add(f"main.{key}", "is in epochs; with world_size=<GPUs> it becomes steps")
            continue
        steps = epoch_clips // (batch_size * accumulation * config.world_size)
        training["evaluate_every" if key == "eval_freq" else "checkpoint_every"] = max(1, int(frequency * steps))
    return training


def _length(
    source: Source, budget_per_clip: int, epoch_clips: int | None, config: ConvertConfigConfig
) -> dict[str, Any]:
    """Length and warm-up in one unit: the token budget where the published file counts tokens, else epochs."""
    total, epochs = source.take("total_tokens", -1), source.take("epochs", -1)
    warmup_tokens, warmup_epochs = source.take("warmup_tokens", -1), source.take("warmup_epochs", 10)
    source.only("warmup_steps", -1, "give warm-up in tokens or epochs")
    budget_per_epoch = (epoch_clips or 0) * budget_per_clip
    if epochs < 0:
        if total <= 0:
            raise ValueError(f"{config.main}: neither epochs nor total_tokens says how long to train")
        warmup = warmup_tokens * 1e9 if warmup_tokens >= 0 else max(warmup_epochs, 0) * budget_per_epoch
        return {"total_token_budget": int(total * 1e9), "warmup": warmup}
    in_tokens = warmup_tokens >= 0 and budget_per_epoch > 0
    warmup = warmup_tokens * 1e9 / budget_per_epoch if in_tokens else max(warmup_epochs, 0)
    return {"epochs": epochs, "warmup": warmup, **({"epoch_clips": epoch_clips} if epoch_clips else {})}


def _wandb(source: Source) -> dict[str, Any]:
    wandb: Mapping[str, Any] = {
        "mode": "online" if source.take("log_wandb", False) else "disabled",
        "project": source.take("wandb_project"),
        "entity": source.take("wandb_entity"),
        "name": source.take("wandb_run_name"),
    }
    return {key: value for key, value in wandb.items() if value is not None and value != "auto"}


if __name__ == "__main__":
    run_main(ConvertConfigConfig, convert_config, default_config="default/egom2p/convert/config.yaml",
             description="Convert published YAML files to ours.")  # fmt: skip
