"""READMEs of what is published, and the card of an export: made from the card, config and measurements in a folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egom2p.anytoany.conversations.datasets import trained_on
from egom2p.anytoany.language.packaged_model import origin_of
from egom2p.anytoany.model import AnyToAnyConfig
from egom2p.anytoany.saving import run_folder_of
from egom2p.config import from_plain
from egom2p.models.egom2p_model import load_model
from egom2p.storage import load_json
from egom2p.tokenizers.pretrained import CARD_FILE

ANYTOANY_CARD, MODEL_CARD, TOKENIZER_CARD, STATE = "anytoany.json", "model.json", CARD_FILE, "training.json"
EXPORT_CARD = "CARD.md"


def _front(licence: str | None, *tags: str, **facts: str | None) -> list[str]:
    """The block that the Hub reads."""
    rows = {"license": licence and licence.lower(), "library_name": "egom2p", **facts}
    return [
        "---",
        *(f"{key}: {value}" for key, value in rows.items() if value),
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
        "",
    ]


def model_readme(directory: str | Path, repo_id: str, *, licence: str | None = None) -> str:
    """README of a repository: CARD.md of an export where there is one, else made from `model.json`."""
    card = load_json(Path(directory) / MODEL_CARD)
    model, specs, about = card["model"], card["modalities"], card.get("about", {})
    licence = licence or about.get("licence")
    num_parameters = sum(parameter.numel() for parameter in load_model(directory).parameters())
    front = _front(licence, "egocentric-vision", "multimodal", "any-to-any")
    exported = Path(directory) / EXPORT_CARD
    if exported.is_file():  # its words are a person's, by way of pipelines/export_model.py
        return "\n".join([*front, exported.read_text(encoding="utf-8")])
    names = ", ".join(spec["name"] for spec in specs)
    size = (
        f"{num_parameters / 1e6:.1f} M parameters: {model['encoder_depth']} encoder and {model['decoder_depth']} "
        f"decoder blocks, width {model['dim']}, {model['num_heads']} heads, {model['activation']}."
    )
    return "\n".join(
        [
            *front, f"# {repo_id.split('/')[-1]}", "",
            f"EgoM2P, a masked encoder-decoder transformer over discrete tokens, any to any of {names}.", "", size, "",
            "## Modalities", "", *_modalities(specs, card.get("tokenizers", {})), "",
            "## Use", "", "```python", "from egom2p.models.egom2p_model import EgoM2P", "",
            f'model = EgoM2P.from_pretrained("{repo_id}")', "```", "", "```bash",
            f"python generate.py checkpoint={repo_id} input=<what is there> 'targets=[<modality>]' output=<folder>",
            "```", "",
            *_training(about),
            *_token_losses(about.get("measured", [])),
            "## Licence", "", licence or "not stated", "",
        ]
    )  # fmt: skip


def _modalities(specs: Sequence[Mapping[str, Any]], tokenizers: Mapping[str, str]) -> list[str]:
    rows = [
        "| modality | quantity | token grid | vocabulary | tokenizer | tokenizer's folder |",
        "|---|---|---|---|---|---|",
    ]
    for spec in specs:
        grid = " x ".join(map(str, spec["grid"]))
        tokenizer = spec.get("tokenizer_fingerprint") or "not known"
        folder = tokenizers.get(spec["name"], "not included")
        rows.append(f"| {spec['name']} | {spec['quantity']} | {grid} | {vocabulary(spec)} | `{tokenizer}` | {folder} |")
    return rows


def vocabulary(spec: Mapping[str, Any]) -> str:
    """Of a table; patches have values in place of ids."""
    return "uint8, " + " x ".join(map(str, spec["patch_shape"])) if spec.get("patch_shape") else str(spec["vocab_size"])


def _training(about: Mapping[str, Any]) -> list[str]:
    data = about.get("training_data", {})
    lines = [f"| {name} | {weight:g} |" for name, weight in data.items()]
    table = ["| data set | weight in the mixture |", "|---|---|", *lines] if lines else ["Not stated."]
    start = ["", f"Started from {about['started_from']}."] if about.get("started_from") else []
    return ["## Training data", "", *table, *start, ""]


def _token_losses(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["| task | target | nats per token | unigram baseline per position |", "|---|---|---|---|"]
    for row in rows:
        baseline = "" if row["unigram_baseline"] is None else f"{row['unigram_baseline']:.3f}"
        lines.append(f"| {row['task']} | {row['modality']} | {row['nats']:.3f} | {baseline} |")
    note = (
        "The unigram baseline per position is the loss of a model that knows only how often an id occurs at a position."
    )
    return ["## Measured on held-out clips", "", *lines, "", note, ""]


def tokenizer_readme(directory: str | Path, repo_id: str, *, licence: str | None = None) -> str:
    """README of a repository, made from `tokenizer.json`."""
    card = load_json(Path(directory) / TOKENIZER_CARD)
    spec, licence = card["spec"], licence or card.get("licence")
    grid = " x ".join(map(str, spec["grid"]))
    made = "patches of uint8 values, shown and never predicted" if spec.get("patch_shape") else "tokens and back"
    rows = {
        "modality": f"{spec['name']} ({spec['quantity']})",
        "tokens": f"{grid}, {vocabulary(spec)}" + ("" if spec.get("patch_shape") else " codes"),
        "rate": f"{spec['rate_hz']:g} Hz" if spec.get("rate_hz") else "",
        **{key: str(value) for key, value in spec.get("conventions", {}).items()},
        "fingerprint": f"`{card['fingerprint']}`",
        "licence": licence or "not stated",
    }
    return "\n".join(
        [
            *_front(licence, "tokenizer", spec["quantity"]), f"# {repo_id.split('/')[-1]}", "",
            f"Turns two seconds of {spec['quantity']} into {made}, for EgoM2P.", "",
            *_table(rows), "",
            "```python", "from egom2p.tokenizers import load_tokenizer", "",
            f'tokenizer = load_tokenizer("{repo_id}")',
            "ids = tokenizer.encode(clips)", "values, is_valid = tokenizer.decode(ids)", "```", "",
            "The fingerprint names the ids this tokenizer makes: models and token sets that carry it belong to it.",
            *_section("Measured, encode and decode of held-out clips", card.get("metrics", {})),
            *_section("Training data", _flat(card.get("training_data", {}))),
            *_section("Settings", _flat(card["config"])), "",
        ]
    )  # fmt: skip


def _section(title: str, values: Mapping[str, Any]) -> list[str]:
    return ["", f"## {title}", "", *_table(values)] if values else []


def _table(values: Mapping[str, Any]) -> list[str]:
    rows = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items() if value)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def anytoany_readme(
    directory: Path, repo_id: str, *, licence: str | None = None, base_model: str | None = None, is_merged: bool = False
) -> str:
    """README of a repository, made from the config of an any-to-any model and the measurements of its run.

    base_model   Hub id of the base of the adapter, in place of the local folder it was trained from
    is_merged    whether a plain language model lies in the folder `merged`
    """
    config = anytoany_config(directory)
    settings = config.language_model
    origin = origin_of(directory)
    is_stand_in = origin is not None and origin.stand_in
    base = base_model or (settings.pretrained if origin is None or is_stand_in else origin.model)
    inherited = None if origin is None or is_stand_in else f"that of the base, {origin.model}: {origin.licence}"
    made = f"on {base}" if base else f"a {settings.architecture['model_type']} model made from a description"
    if is_stand_in:
        made = "on a stand-in: random weights in place of a pretrained language model, made to try the commands"
    on_hub = base if base and not is_stand_in and not Path(base).exists() else None
    front = _front(licence, "egocentric-vision", "video-captioning", base_model=on_hub, pipeline_tag="any-to-any")
    # Vectors come from files of vectors; the other sources perceive a video itself.
    is_of_vectors = config.perception[0].source == "vectors"
    kind, file = config.perception[0].served_kinds[0], "vector.npy" if is_of_vectors else "walk.mp4"
    lora = (
        f"LoRA of rank {config.lora.rank} on {', '.join(config.lora.target_modules)}, "
        if config.adapt == "lora"
        else ""
    )
    lines = [
        *front,
        f"# {repo_id.split('/')[-1]}",
        "",
        f"An any-to-any language model: {made} ({lora}adapt: {config.adapt}), which perceives media as tokens.",
        "",
        "| part | |",
        "|---|---|",
        *[f"| perception | {source.source}: {', '.join(source.served_kinds)} |" for source in config.perception],
        f"| connector | {config.connector.kind}, {config.connector.num_tokens} tokens per media item |",
        *[f"| writes codes of | {book.kind}: {book.num_tokens} of {book.size} |" for book in config.codebooks],
        "",
        "## Use",
        "",
        "```bash",
        f"hf download {repo_id} --local-dir model",
        f"python -m egom2p.anytoany.generate model=model 'prompt=\"Describe {{{kind}}}\"' {kind}={file}",
        "```",
        "",
    ]
    if is_merged:
        lines += [
            "The folder `merged` holds the language model alone, for plain transformers "
            '(`AutoModelForCausalLM.from_pretrained(..., subfolder="merged")`).',
            "",
        ]
    return "\n".join([*lines, *_last_evaluation(directory), "## Licence", "", licence or inherited or "not stated", ""])


def anytoany_config(directory: Path) -> AnyToAnyConfig:
    """Config of the any-to-any model in a folder."""
    file = directory / ANYTOANY_CARD
    return from_plain(AnyToAnyConfig, load_json(file)["config"], where=str(file))


def _last_evaluation(directory: Path) -> list[str]:
    """The last evaluation of the run up to this checkpoint."""
    is_final, run = directory.name == "final", run_folder_of(directory)
    if run is None or not (is_final or (directory / STATE).is_file()):
        return []
    step = None if is_final else load_json(directory / STATE)["progress"]["step"]
    records = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines() if line]
    found = [row for row in records if row["kind"] == "evaluation" and (step is None or row["step"] <= step)]
    if not found:
        return []
    rows: dict[str, dict[str, float]] = {}
    for name, value in found[-1].items():
        group, _, metric = name.rpartition("/")
        if group and isinstance(value, int | float):
            rows.setdefault(group, {})[metric] = value
    config = load_json(run / "config.json") if (run / "config.json").is_file() else None
    seen = None if config is None else trained_on(config, config.get("evaluation", {}).get("datasets", {}))
    lines = [f"After step {found[-1]['step']}.", "", *_scores(rows, seen), ""]
    if seen:
        lines += ["Rows of the training data show progress, not generalisation.", ""]
    if seen is not None:
        lines += ["Held out: the run read no file of the set; a copy under another name is not noticed.", ""]
    return ["## Measured", "", *lines]


def _scores(rows: Mapping[str, Mapping[str, float]], seen: set[str] | None) -> list[str]:
    """Rows of a table; `seen`: sets of training rows, None where the run does not say what it was trained on."""
    metrics = ["loss", "exact_match", "token_accuracy"]
    lines = [f"| set | rows | {' | '.join(metrics)} |", "|---" * (2 + len(metrics)) + "|"]
    for group, values in rows.items():
        if "loss" in values:
            cells = [f"{values[name]:.4f}" if name in values else "" for name in metrics]
            kind = "not known" if seen is None else "training rows" if group.split(",")[0] in seen else "held out"
            lines.append(f"| {group} | {kind} | {' | '.join(cells)} |")
    return lines
