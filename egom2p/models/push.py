"""A model folder to the Hub, with a README made from its card.

python -m egom2p.models.push directory=outputs/quickstart/pretrain/final repo_id=me/egom2p dry_run=true
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egom2p.config import run_main, strict
from egom2p.models.weights import find_model, load_model
from egom2p.storage import load_json
from egom2p.storage.hub import push


@strict
class PushModelConfig:
    """Root schema of this command.

    directory   a model folder, or the folder of a run: its `final`
    licence     of the weights; null: as model.json tells
    """

    directory: str
    repo_id: str  # owner/name
    private: bool = True
    licence: str | None = None
    dry_run: bool = False  # only say which files, and show the README


def push_to_hub(
    directory: str | Path, repo_id: str, *, private: bool = True, licence: str | None = None, dry_run: bool = False
) -> list[str]:
    """Push a model folder, with its tokenizers, as one commit; returns the names of its files.

    ValueError when the folder is no whole model, or as `storage.hub.push` says. The state of training that lies in a
    checkpoint is pushed too; `final` has none.
    """
    directory = find_model(directory)
    load_model(directory)
    readme = model_readme(directory, repo_id, licence=licence)
    return push(directory, repo_id, private=private, dry_run=dry_run, readme=readme, message="EgoM2P model")


def model_readme(directory: str | Path, repo_id: str, *, licence: str | None = None) -> str:
    """README of a repository: CARD.md of a bundle where there is one, else made from `model.json`."""
    card = load_json(Path(directory) / "model.json")
    model, specs, about = card["model"], card["modalities"], card.get("about", {})
    licence = licence or about.get("licence")
    num_parameters = sum(parameter.numel() for parameter in load_model(directory).parameters())
    front = [f"license: {licence.lower()}"] if licence else []
    front = [
        "---",
        *front,
        "library_name: egom2p",
        "tags:",
        "- egocentric-vision",
        "- multimodal",
        "- any-to-any",
        "---",
    ]
    bundled = Path(directory) / "CARD.md"
    if bundled.is_file():  # written by a person, by way of pipelines/bundle.py
        return "\n".join([*front, "", bundled.read_text(encoding="utf-8")])
    names = ", ".join(spec["name"] for spec in specs)
    size = (
        f"{num_parameters / 1e6:.1f} M parameters: {model['encoder_depth']} encoder and {model['decoder_depth']} "
        f"decoder blocks, width {model['dim']}, {model['num_heads']} heads, {model['activation']}."
    )
    return "\n".join(
        [
            *front, "", f"# {repo_id.split('/')[-1]}", "",
            f"EgoM2P, a masked encoder-decoder transformer over discrete tokens, any to any of {names}.", "", size, "",
            "## Modalities", "", *_modalities(specs, card.get("tokenizers", {})), "",
            "## Use", "", "```python", "from egom2p.models.egom2p_model import EgoM2P", "",
            f'model = EgoM2P.from_pretrained("{repo_id}")', "```", "", "```bash",
            f"python generate.py checkpoint={repo_id} input=<what is there> 'targets=[<modality>]' output=<folder>",
            "```", "",
            *_training(about),
            *_measured(about.get("measured", [])),
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
        position = tokenizers.get(spec["name"], "not included")
        rows.append(
            f"| {spec['name']} | {spec['quantity']} | {grid} | {spec['vocab_size']} | `{tokenizer}` | {position} |"
        )
    return rows


def _training(about: Mapping[str, Any]) -> list[str]:
    data = about.get("training_data", {})
    lines = [f"| {name} | {weight:g} |" for name, weight in data.items()]
    table = ["| data set | weight in the mixture |", "|---|---|", *lines] if lines else ["Not stated."]
    start = ["", f"Started from {about['started_from']}."] if about.get("started_from") else []
    return ["## Training data", "", *table, *start, ""]


def _measured(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["| task | target | nats per token | unigram baseline per position |", "|---|---|---|---|"]
    for row in rows:
        marginal = "" if row["unigram_baseline"] is None else f"{row['unigram_baseline']:.3f}"
        lines.append(f"| {row['task']} | {row['modality']} | {row['nats']:.3f} | {marginal} |")
    note = (
        "The unigram baseline per position is the loss of a model that knows only how often an id occurs at a position."
    )
    return ["## Measured on held-out clips", "", *lines, "", note, ""]


def push_model(config: PushModelConfig) -> None:
    """What the script does."""
    files = push_to_hub(
        config.directory, config.repo_id, private=config.private, licence=config.licence, dry_run=config.dry_run
    )
    if config.dry_run:
        sys.stdout.write(model_readme(find_model(config.directory), config.repo_id, licence=config.licence) + "\n")
    what = "would push" if config.dry_run else "pushed"
    sys.stdout.write(f"{what} to {config.repo_id}: {', '.join(files)}\n")


if __name__ == "__main__":
    run_main(
        PushModelConfig,
        push_model,
        default_config="default/egom2p/push.yaml",
        description="Push an EgoM2P model with its tokenizers and a model card to the Hugging Face Hub.",
    )
