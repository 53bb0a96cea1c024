"""A trained checkpoint as one small folder that stands alone.

python -m egom2p.pipelines.export_model checkpoint=<model> output=<folder>

The folder is a model directory like any other: weights in float16 (`load_model` makes them float32 again), tokenizers
copied as they are, and beside them CARD.md, the numbers of an evaluation, and the settings of the training run.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from egom2p.config import Positive, run_main, strict
from egom2p.generation.checkpoints import Checkpoint, load_checkpoint
from egom2p.jobs.progress import say
from egom2p.metrics.result_table import Results, ResultTable
from egom2p.models.sampling import Recommendation
from egom2p.models.weights import recommendation, tokenizer_locations, write_model_files
from egom2p.pipelines.cards import vocabulary
from egom2p.storage import atomic_directory, save_json
from egom2p.tokenizers.pretrained import copy_tokenizer


@strict
class ExportModelConfig:
    """What is exported, and the words of its card.

    checkpoint   model directory whose modalities all have a tokenizer folder
    evaluation   folder with a results.json that measured this checkpoint; None: the card says that there is none
    recommended  how it was measured, and is asked where nobody says it; None: as the checkpoint itself says, if it does
    data         what it was trained on
    commands     what makes it again
    max_mb       a larger folder is refused (1 MB is a million bytes)
    """

    checkpoint: str
    output: str
    title: str  # of the card
    evaluation: str | None = None
    data: str
    commands: tuple[str, ...]
    summary: str  # what it is good for and what not, in two sentences: also on every page that generate.py writes
    limits: str  # what it cannot do, for the card
    recommended: Recommendation | None = None
    licence: str = "Apache-2.0"
    max_mb: Positive = 20.0


def export_model(config: ExportModelConfig) -> Path:
    """Write the folder atomically and say its size; ValueError, and nothing written, when it is too large."""
    checkpoint = load_checkpoint(config.checkpoint, device="cpu")
    metrics = _metrics(config)
    recommended = config.recommended or recommendation(checkpoint.directory)
    with atomic_directory(config.output) as folder:
        for name, source in _tokenizer_folders(checkpoint).items():
            copy_tokenizer(source, folder / "tokenizers" / name)
        folders = {name: f"tokenizers/{name}" for name in checkpoint.tokenizers}
        about = {"licence": config.licence, "summary": config.summary}
        write_model_files(checkpoint.model, folder, folders, dtype=torch.float16, recommended=recommended, about=about)
        (folder / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone; this is for everyone
        run_settings = checkpoint.directory.parent / "config.json"
        if run_settings.is_file():
            shutil.copyfile(run_settings, folder / "training_config.json")
        if metrics is not None:
            save_json(folder / "metrics.json", metrics.to_plain())
        (folder / "CARD.md").write_text(
            _card(config, checkpoint, metrics, recommended or Recommendation()), encoding="utf-8"
        )
        load_checkpoint(folder, device="cpu")
        sizes = {entry.name: _megabytes(entry) for entry in sorted(folder.iterdir())}
        parts = ", ".join(f"{name} {size:.2f}" for name, size in sizes.items() if size >= 0.01)
        total = sum(sizes.values())
        if total > config.max_mb:
            raise ValueError(
                f"{config.output}: the folder would have {total:.2f} MB ({parts}), max_mb allows {config.max_mb:g}; "
                f"nothing was written. Export a smaller model, or raise max_mb"
            )
    say(f"wrote {config.output}: {total:.2f} MB ({parts})")
    return Path(config.output)


def _tokenizer_folders(checkpoint: Checkpoint) -> dict[str, Path]:
    folders = tokenizer_locations(checkpoint.directory)
    missing = [spec.name for spec in checkpoint.specs if spec.name not in folders]
    if missing:
        raise ValueError(
            f"{checkpoint.directory}: model.json names no tokenizer for {missing}; what is exported must stand alone"
        )
    return {name: Path(folder) for name, folder in folders.items()}


def _metrics(config: ExportModelConfig) -> Results | None:
    """Results of the one evaluated checkpoint that is exported, beside baselines, ceilings and bounds."""
    if config.evaluation is None:
        return None
    results = Results.read(config.evaluation)
    folders = {label: about["directory"] for label, about in results.about["checkpoints"].items()}
    labels = [label for label, folder in folders.items() if Path(folder).resolve() == Path(config.checkpoint).resolve()]
    if not labels:
        raise ValueError(f"{config.evaluation}/results.json: evaluated {folders}, not {config.checkpoint}")
    name_of = {None: None, labels[0]: Path(config.output).name}
    tables = tuple(_of_checkpoints(table, name_of) for table in results.tables)
    about = {key: results.about[key] for key in ("hardware", "num_train_clips")}
    about["clips"] = results.about["config"]["clips"]["dataset"]  # what ranges of samples are calibrated on
    return Results(results.description, tables, about)


def _of_checkpoints(table: ResultTable, name_of: Mapping[str | None, str | None]) -> ResultTable:
    """Rows of these checkpoints (None: of no checkpoint) under other names."""
    kept = {
        part: tuple(
            replace(entry, checkpoint=name_of[entry.checkpoint])
            for entry in getattr(table, part)
            if entry.checkpoint in name_of
        )
        for part in ("rows", "token_losses", "uncertainty")
    }
    return replace(table, **kept)


def _card(
    config: ExportModelConfig, checkpoint: Checkpoint, metrics: Results | None, recommended: Recommendation
) -> str:
    model = checkpoint.model
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = [
        f"| {spec.name} | {spec.quantity} | {' x '.join(map(str, spec.grid.shape))} | {vocabulary(spec.to_dict())} | "
        f"{spec.tokenizer_fingerprint} |"
        for spec in checkpoint.specs
    ]
    lines = [
        f"# {config.title}",
        "",
        config.summary,
        "",
        f"EgoM2P, any-to-any generation over discrete tokens: {num_parameters / 1e6:.2f} M parameters, "
        f"{model.config.encoder_depth} encoder and {model.config.decoder_depth} decoder blocks, width "
        f"{model.config.dim}. Weights are stored in float16 and loaded as float32; the tokenizers are beside them.",
        "",
        "| modality | quantity | token grid | vocabulary | tokenizer |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "## Data",
        "",
        config.data,
        "",
        "## Made by",
        "",
        "```bash",
        *config.commands,
        "```",
        "",
        "## Use",
        "",
        "```bash",
        f"python generate.py checkpoint={config.output} input=<what is there> 'targets=[<modality>]' output=<folder>",
        "```",
        "",
        _use(recommended),
        "",
        "## Limits",
        "",
        config.limits,
        "",
        "## Licence",
        "",
        config.licence,
        "",
        "## Measured",
        "",
    ]
    if metrics is None:
        return "\n".join([*lines, "No evaluation was given.", ""])
    lines += ["Before rounding to float16; also in metrics.json.", "", ""]
    return "\n".join(lines) + re.sub(r"^(?=#)", "#", metrics.markdown().partition("\n")[2].lstrip(), flags=re.MULTILINE)


def _use(recommended: Recommendation) -> str:
    """What is done where nobody says it."""
    if recommended == Recommendation():
        return "Asked for nothing else it takes the most likely tokens in one step."
    count, steps = recommended.num_samples, recommended.num_steps
    what = f"the mean of {count} samples" if count > 1 else "one sample"
    of = "each target a condition of those after it" if recommended.chain else "every target of the input alone"
    return (
        f"Asked for nothing else it makes {what} at temperature {recommended.temperature:g} in {steps} "
        f"step{'s' * (steps > 1)}, {of}, as it was measured (`generation` in model.json)."
    )


def _megabytes(entry: Path) -> float:
    files = [entry] if entry.is_file() else [path for path in entry.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) / 1e6


if __name__ == "__main__":
    run_main(
        ExportModelConfig,
        export_model,
        default_config="default/egom2p/export/world_small.yaml",
        description="Make a small, self-contained model directory.",
    )
