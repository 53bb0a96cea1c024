"""A tokenizer folder to the Hub, with a README made from its card.

python -m egom2p.tokenizers.push directory=outputs/quickstart/tokenizers/gaze/final repo_id=me/gaze dry_run=true
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egom2p.config import run_main, strict
from egom2p.storage import load_json
from egom2p.storage.hub import push
from egom2p.tokenizers.pretrained import CARD_FILE, load_tokenizer


@strict
class PushConfig:
    """Root schema."""

    directory: str
    repo_id: str  # owner/name
    private: bool = True
    dry_run: bool = False  # only say which files


def push_to_hub(directory: str | Path, repo_id: str, *, private: bool = True, dry_run: bool = False) -> list[str]:
    """Push a tokenizer folder as one commit; returns the names of its files.

    ValueError when the folder is no whole tokenizer, or as `storage.hub.push` says.
    """
    tokenizer = load_tokenizer(directory)
    readme = tokenizer_readme(load_json(Path(directory) / CARD_FILE), repo_id)
    message = f"{tokenizer.spec.name}, {tokenizer.fingerprint}"
    return push(directory, repo_id, private=private, dry_run=dry_run, readme=readme, message=message)


def tokenizer_readme(card: Mapping[str, Any], repo_id: str) -> str:
    """README of a repository from the content of `tokenizer.json`."""
    spec, licence = card["spec"], card.get("licence")
    grid = " x ".join(map(str, spec["grid"]))
    rows = {
        "modality": f"{spec['name']} ({spec['quantity']})",
        "tokens": f"{grid}, of {spec['vocab_size']} codes",
        "rate": f"{spec['rate_hz']:g} Hz" if spec.get("rate_hz") else "",
        **{key: str(value) for key, value in spec.get("conventions", {}).items()},
        "fingerprint": f"`{card['fingerprint']}`",
        "licence": licence or "not stated",
    }
    front = [f"license: {licence.lower()}"] if licence else []
    front += ["library_name: egom2p", "tags:", "- tokenizer", f"- {spec['quantity']}"]
    return "\n".join(
        [
            "---", *front, "---", "", f"# {repo_id.split('/')[-1]}", "",
            f"Turns two seconds of {spec['quantity']} into tokens and back, for EgoM2P.", "",
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


def _push(config: PushConfig) -> None:
    files = push_to_hub(config.directory, config.repo_id, private=config.private, dry_run=config.dry_run)
    what = "would push" if config.dry_run else "pushed"
    sys.stdout.write(f"{what} to {config.repo_id}: {', '.join(files)}\n")


if __name__ == "__main__":
    run_main(
        PushConfig, _push, default_config="default/tokenization/push.yaml", description="Push a tokenizer to the Hub."
    )
