"""An any-to-any model to the Hub: `python upload_ckpt_hf.py --ckpt_dir <run> --epoch <n> --hf_repo_id <owner/name>`.

One commit of safetensors, JSON and text: adapter, connector, tokenizer, config and a model card with what was measured.
The login is that of `hf auth login`, or HF_TOKEN.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from egom2p.anytoany.model import AnyToAnyConfig
from egom2p.config import from_plain
from egom2p.storage import load_json, save_json, tensor_shapes
from egom2p.storage.hub import push

_CARD, _STATE = "anytoany.json", "training.json"
_ONLY_TRAINING = ("training.safetensors", _STATE)
_EPOCH_TOLERANCE = 0.02


def push_anytoany(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    merge: bool = False,
    base_model: str | None = None,
    licence: str | None = None,
) -> list[str]:
    """Push an any-to-any directory as one commit; returns the names of its files.

    merge       also a plain language model for transformers, in the folder `merged` (loads the whole model)
    base_model  Hub id to note as the base of the adapter, in place of the local folder it was trained from

    ValueError when a file is missing or broken, or as `storage.hub.push` says.
    """
    directory = Path(directory)
    check_whole(directory)
    with TemporaryDirectory(dir=directory.parent, prefix=".push-") as scratch:
        staged = Path(scratch) / "model"
        shutil.copytree(directory, staged, ignore=shutil.ignore_patterns(*_ONLY_TRAINING), copy_function=_link)
        if merge:
            _add_merged(directory, staged / "merged")
        if base_model is not None:
            _name_base(staged, base_model)
        readme = model_card(directory, repo_id, base_model=base_model, licence=licence, is_merged=merge)
        return push(
            staged, repo_id, private=private, dry_run=dry_run, readme=readme, message="EgoM2P any-to-any language model"
        )


def find_checkpoint(run: str | Path, epoch: int | None) -> Path:
    """The any-to-any directory of a run at the end of an epoch, 0 being the first; None: the end of the run.

    A run that counted steps has the one epoch 0. ValueError says which epochs are there.
    """
    run = Path(run)
    if (run / _CARD).is_file():
        if epoch is not None:
            raise ValueError(f"{run}: is a model itself; --epoch chooses among those of a run")
        return run
    final = run / "final"
    if not (final / _CARD).is_file():
        raise ValueError(f"{run}: no finished run of run_training_anytoany.py (it has no final/{_CARD})")
    if epoch is None:
        return final
    training = load_json(run / "config.json")["training"]
    num_epochs = training.get("epochs") or 1
    if epoch == round(num_epochs) - 1:
        return final
    passed = {path.parent: load_json(path)["progress"]["clips"] for path in run.glob(f"checkpoints/*/{_STATE}")}
    size = max(passed.values(), default=0) / num_epochs
    nearest = min(passed, key=lambda path: abs(passed[path] - (epoch + 1) * size), default=None)
    if nearest is None or abs(passed[nearest] - (epoch + 1) * size) > _EPOCH_TOLERANCE * size:
        kept = ", ".join(f"{clips / size:.2f}" for clips in sorted(passed.values())) if size else "none"
        raise ValueError(
            f"{run}: no checkpoint at the end of epoch {epoch} (0 is the first of {num_epochs:g}); there are "
            f"checkpoints after {kept} epochs"
        )
    return nearest


def check_whole(directory: Path) -> None:
    """ValueError names what is missing of an any-to-any directory, or half written."""
    if not (directory / _CARD).is_file():
        raise ValueError(f"{directory}: no {_CARD}; wanted a directory that save_anytoany wrote")
    config = _config_of(directory)
    wanted = ["parts.safetensors", "codebooks.json", "tokenizer/tokenizer.json"]
    wanted += ["adapter_config.json", "adapter_model.safetensors"] if config.adapt == "lora" else []
    for name in wanted:
        if not (directory / name).is_file():
            raise ValueError(f"{directory}: {name} is missing")
    for path in directory.rglob("*.safetensors"):
        tensor_shapes(path)


def model_card(
    directory: Path, repo_id: str, *, base_model: str | None = None, licence: str | None = None, is_merged: bool = False
) -> str:
    """README of the repository, made from the config and the measurements of the run."""
    config = _config_of(directory)
    settings = config.language_model
    base = base_model or settings.pretrained
    made = f"on {base}" if base else f"a {settings.architecture['model_type']} model made from a description"
    front = ["---", *([f"license: {licence.lower()}"] if licence else []), "library_name: egom2p"]
    front += [f"base_model: {base}"] if base and not Path(base).exists() else []
    front += ["pipeline_tag: any-to-any", "tags:", "- egocentric-vision", "- video-captioning", "---", ""]
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
        *[f"| says codes of | {book.kind}: {book.num_tokens} of {book.size} |" for book in config.codebooks],
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
    return "\n".join([*lines, *_measured(directory), "## Licence", "", licence or "not stated", ""])


def upload(arguments: Sequence[str]) -> list[str]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="upload_ckpt_hf.py", description=str(__doc__).splitlines()[0])
    parser.add_argument("--ckpt_dir", required=True, help="folder of the run, or a model directory")
    parser.add_argument("--epoch", type=int, help="0 is the first; left out: the end of the run")
    parser.add_argument("--hf_repo_id", required=True, help="owner/name")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dry_run", action="store_true", help="say which files, show the card; no network, no login")
    parser.add_argument("--merge", action="store_true", help="also a plain language model, in the folder merged")
    parser.add_argument("--base_model", help="Hub id of the base model, noted in place of the local folder")
    parser.add_argument("--licence")
    given = parser.parse_args(list(arguments))
    try:
        directory = find_checkpoint(given.ckpt_dir, given.epoch)
        settings = {"merge": given.merge, "base_model": given.base_model, "licence": given.licence}
        files = push_anytoany(directory, given.hf_repo_id, private=given.private, dry_run=given.dry_run, **settings)
        card = model_card(
            directory, given.hf_repo_id, base_model=given.base_model, licence=given.licence, is_merged=given.merge
        )
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    base = _config_of(directory).language_model.pretrained
    is_local = base is not None and Path(base).exists() and given.base_model is None
    if is_local and not (directory / "language_model").is_dir():
        sys.stderr.write(f"note: others do not have the base model {base}; name it by --base_model <Hub id>\n")
    if given.dry_run:
        sys.stdout.write(card + "\n")
    sys.stdout.write(f"{'would push' if given.dry_run else 'pushed'} to {given.hf_repo_id}: {', '.join(files)}\n")
    return files


def _config_of(directory: Path) -> AnyToAnyConfig:
    return from_plain(AnyToAnyConfig, load_json(directory / _CARD)["config"], where=str(directory / _CARD))


def _measured(directory: Path) -> list[str]:
    """The last evaluation of the run up to this checkpoint."""
    is_final = directory.name == "final"
    log = (directory.parent if is_final else directory.parents[1]) / "log.jsonl"
    step = None if is_final else load_json(directory / _STATE)["progress"]["step"] if _is_step(directory) else -1
    if not log.is_file() or step == -1:
        return []
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line]
    found = [row for row in records if row["kind"] == "evaluation" and (step is None or row["step"] <= step)]
    if not found:
        return []
    rows: dict[str, dict[str, float]] = {}
    for name, value in found[-1].items():
        group, _, metric = name.rpartition("/")
        if group and isinstance(value, int | float):
            rows.setdefault(group, {})[metric] = value
    return ["## Measured", "", f"On held-out conversations, after step {found[-1]['step']}.", "", *_table(rows), ""]


def _table(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    metrics = ["loss", "exact_match", "token_accuracy"]
    lines = [f"| set | {' | '.join(metrics)} |", "|---" * (1 + len(metrics)) + "|"]
    for group, values in rows.items():
        if "loss" in values:
            cells = [f"{values[name]:.4f}" if name in values else "" for name in metrics]
            lines.append(f"| {group} | {' | '.join(cells)} |")
    return lines


def _is_step(directory: Path) -> bool:
    return (directory / _STATE).is_file()


def _add_merged(directory: Path, folder: Path) -> None:
    # Imported here: it brings transformers along.
    from egom2p.anytoany.saving import load_anytoany, save_merged

    save_merged(load_anytoany(directory), folder)


def _name_base(staged: Path, base_model: str) -> None:
    for name, path in (
        (_CARD, ("config", "language_model", "pretrained")),
        ("adapter_config.json", ("base_model_name_or_path",)),
    ):
        if (staged / name).is_file():
            card: dict[str, Any] = load_json(staged / name)
            part = card
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = base_model
            (staged / name).unlink()  # a link: the original stays as it is
            save_json(staged / name, card)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
