"""Rows of the tables of code_tables.py: the configs of this folder with overrides."""

from dataclasses import dataclass

_DATA = "outputs/experiments/codes/data"


@dataclass(frozen=True)
class ExperimentRow:
    """One row.

    num_tokens   perception tokens at which a nested connector is measured; None: all
    trained_as   label of a row whose runs serve this one too
    filtered_by  label of a row before, whose models choose the captions that this one is trained on
    """

    label: str
    config: str
    overrides: tuple[str, ...] = ()
    num_tokens: int | None = None
    trained_as: str | None = None
    filtered_by: str | None = None


@dataclass(frozen=True)
class ExperimentTable:
    """Rows and what is measured of them.

    asked       evaluation data set -> controls
    is_said     answers are said too, and their last sentence is looked at
    """

    rows: tuple[ExperimentRow, ...]
    asked: dict[str, tuple[str, ...]]
    is_said: bool = False


def _files(dataset: str, name: str) -> str:
    return f"data.datasets.{dataset}.files=[{_DATA}/{name}_train.jsonl]"


def _perception_rows() -> tuple[ExperimentRow, ...]:
    rows = []
    for kind in ("global_mlp", "resampler"):
        for count in (1, 2, 4, 8, 16):
            changed = (f"model.connector.kind={kind}", f"model.connector.num_tokens={count}")
            rows.append(ExperimentRow(f"{kind} {count}", "perception_tokens", changed))
    for count in (1, 2, 4, 8, 16):
        rows.append(ExperimentRow(f"nested {count}", "perception_tokens_nested", (), count, "nested"))
    for cell in ("4,1,3", "4,1,1", "1,1,1"):
        changed = ("model.connector.kind=st_shuffle", f"model.connector.cell=[{cell}]")
        rows.append(ExperimentRow(f"st_shuffle cell {cell}", "perception_tokens", changed))
    return tuple(rows)


def _template_rows() -> tuple[ExperimentRow, ...]:
    rows = []
    for config, beside in (("templates", "alone"), ("dialogues", "beside dialogues")):
        for limit in (1, 5, 20):
            changed = (f"data.datasets.captions.templates.limit={limit}",)
            rows.append(ExperimentRow(f"{limit} wordings {beside}", config, changed))
    return tuple(rows)


def _which_rows() -> tuple[ExperimentRow, ...]:
    rows = [
        ExperimentRow("compared", "which_clip"),
        ExperimentRow("compared, without words", "which_clip", ("data.mix.weights.in_words=0.000001",)),
    ]
    for name in ("bare", "described", "looked_up", "of_three"):
        asked = f"evaluation.datasets.which.files=[{_DATA}/which_{name}_unseen.jsonl]"
        rows.append(ExperimentRow(name, "which_clip", (_files("which", f"which_{name}"), asked)))
    asked = f"evaluation.datasets.which.files=[{_DATA}/changed_unseen.jsonl]"
    rows.append(ExperimentRow("changed", "which_clip", (_files("which", "changed"), asked)))
    gated = ("model.connector={kind: gated_xattn, num_tokens: 8, dim: 64}", "model.connector_lr=0.3")
    rows.append(ExperimentRow("compared, gated cross-attention", "which_clip", gated))
    queries = ("model.connector={kind: resampler, num_tokens: 8, dim: 64}", "model.connector_lr=0.3")
    rows.append(ExperimentRow("compared, resampler", "which_clip", queries))
    return tuple(rows)


def _retention_rows() -> tuple[ExperimentRow, ...]:
    """The base is measured after one step that moves nothing."""
    rows = [
        ExperimentRow("before", "text_retention", ("training.num_steps=1", "training.warmup=0", "training.lr=1e-12"))
    ]
    for adapt, rate in (("full", 1e-3), ("lora", 3e-3)):
        for label, weights in (("a tenth text", "9, text: 1"), ("no text", "1, text: 0.000001")):
            changed = (f"model.adapt={adapt}", f"training.lr={rate}", f"data.mix.weights={{captions: {weights}}}")
            rows.append(ExperimentRow(f"{adapt}, {label}", "text_retention", changed))
    return tuple(rows)


_ALL = ("true", "shuffled", "zero")
TABLES: dict[str, ExperimentTable] = {
    "perception_tokens": ExperimentTable(_perception_rows(), {"unseen_combinations": ("true", "shuffled")}),
    "templates": ExperimentTable(_template_rows(), {"trained_templates": ("true",), "unseen_templates": ("true",)}),
    "which_clip": ExperimentTable(_which_rows(), {"which": ("true", "shuffled")}, is_said=True),
    "named_things": ExperimentTable(
        (ExperimentRow("three things", "named_things"),),
        {"named": _ALL, "removed": ("true",)},
    ),
    "noisy_captions": ExperimentTable(
        (
            ExperimentRow("true captions", "caption_codes"),
            ExperimentRow("30 % wrong", "noisy_captions"),
            ExperimentRow("filtered", "noisy_captions", filtered_by="30 % wrong"),
        ),
        {"unseen_combinations": ("true",)},
    ),
    "text_retention": ExperimentTable(_retention_rows(), {"text": ("true",), "unseen_combinations": ("true",)}),
    "plans": ExperimentTable(
        (ExperimentRow("plans", "plans"),),
        {"say": ("true",), "read": ("true",), "unseen_combinations": ("true",), "text": ("true",)},
    ),
}
