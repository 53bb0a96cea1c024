"""Trained weights to the Hub: `python upload_ckpt_hf.py --ckpt_dir <run or folder> --hf_repo_id <owner/name>`.

What lies in a folder says what it is: an EgoM2P model with its tokenizers (`model.json`), a tokenizer
(`tokenizer.json`) or an any-to-any language model (`anytoany.json`). Each goes as one commit of safetensors, JSON and
text with a README made from its card; the state of training that lies in a checkpoint stays at home.
The login is that of `hf auth login`, or HF_TOKEN.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from egom2p.anytoany.language.packaged_model import origin_of
from egom2p.anytoany.saving import load_anytoany, save_merged
from egom2p.models.egom2p_model import load_model
from egom2p.pipelines.cards import (
    ANYTOANY_CARD,
    MODEL_CARD,
    STATE,
    TOKENIZER_CARD,
    anytoany_config,
    anytoany_readme,
    model_readme,
    tokenizer_readme,
)
from egom2p.storage import load_json, save_json, tensor_shapes
from egom2p.storage.hub import push
from egom2p.tokenizers.pretrained import load_tokenizer

_CARDS = (ANYTOANY_CARD, MODEL_CARD, TOKENIZER_CARD)
_ONLY_TRAINING = ("training.safetensors", STATE)
# A checkpoint is written after a whole step, so it may lie a few clips beside the end of an epoch.
_EPOCH_TOLERANCE = 0.02


@dataclass(frozen=True)
class Published:
    """Names of the files in the repository, its README, and what its users will miss."""

    files: list[str]
    readme: str
    notes: tuple[str, ...] = ()


def publish(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    licence: str | None = None,
    merge: bool = False,
    base_model: str | None = None,
) -> Published:
    """Push a folder of weights as one commit.

    licence     of the weights; None: as the card tells
    dry_run     only say which files, and what the README would be: no network, no login
    merge       any-to-any: also a plain language model for transformers, in the folder `merged` (loads the whole model)
    base_model  any-to-any: Hub id to note as the base of the adapter, in place of the local folder it was trained from

    ValueError when a file is missing or broken, or as `storage.hub.push` says.
    """
    directory = Path(directory)
    card = _card_of(directory)
    if card is None:
        raise ValueError(f"{directory}: found none of {', '.join(_CARDS)}, wanted a folder of trained weights")
    notes: tuple[str, ...] = ()
    if card == ANYTOANY_CARD:
        check_anytoany(directory)
        base_model = base_model or _hub_id_of_base(directory)
        readme = anytoany_readme(directory, repo_id, licence=licence, base_model=base_model, is_merged=merge)
        message = "EgoM2P any-to-any language model"
        notes = _missing_base(directory, base_model)
    elif merge or base_model is not None:
        raise ValueError(f"{directory}: merge and base_model are for any-to-any language models, found {card}")
    elif card == MODEL_CARD:
        load_model(directory)
        readme, message = model_readme(directory, repo_id, licence=licence), "EgoM2P model"
    else:
        tokenizer = load_tokenizer(directory)
        readme = tokenizer_readme(directory, repo_id, licence=licence)
        message = f"{tokenizer.spec.name}, {tokenizer.fingerprint}"
    with _staged(directory, merge=merge, base_model=base_model) as folder:
        files = push(
            folder, repo_id, private=private, dry_run=dry_run, readme=readme, message=message, leave_out=_ONLY_TRAINING
        )
    return Published(files, readme, notes)


def find_checkpoint(run: str | Path, epoch: int | None = None) -> Path:
    """The folder of weights of a run at the end of an epoch, 0 being the first; None: the end of the run.

    A run that counted steps or tokens has the one epoch 0. ValueError says which epochs are there.
    """
    run = Path(run)
    if _card_of(run) is not None:
        if epoch is not None:
            raise ValueError(f"{run}: is a folder of weights itself; --epoch chooses among those of a run")
        return run
    final = run / "final"
    if _card_of(final) is None:
        raise ValueError(f"{run}: no finished run (found none of {', '.join(_CARDS)} in it or in {final.name}/)")
    if epoch is None:
        return final
    num_epochs = load_json(run / "config.json")["training"].get("epochs") or 1
    if epoch == round(num_epochs) - 1:
        return final
    passed = {path.parent: load_json(path)["progress"]["clips"] for path in run.glob(f"checkpoints/*/{STATE}")}
    size = max(passed.values(), default=0) / num_epochs
    nearest = min(passed, key=lambda path: abs(passed[path] - (epoch + 1) * size), default=None)
    if nearest is None or abs(passed[nearest] - (epoch + 1) * size) > _EPOCH_TOLERANCE * size:
        kept = ", ".join(f"{clips / size:.2f}" for clips in sorted(passed.values())) if size else "none"
        raise ValueError(
            f"{run}: no checkpoint at the end of epoch {epoch} (0 is the first of {num_epochs:g}); there are "
            f"checkpoints after {kept} epochs"
        )
    return nearest


def check_anytoany(directory: Path) -> None:
    """ValueError names what is missing of an any-to-any folder, or half written; the weights are not loaded."""
    config = anytoany_config(directory)
    wanted = ["parts.safetensors", "codebooks.json", "tokenizer/tokenizer.json"]
    wanted += ["adapter_config.json", "adapter_model.safetensors"] if config.adapt == "lora" else []
    for name in wanted:
        if not (directory / name).is_file():
            raise ValueError(f"{directory}: {name} is missing")
    for path in directory.rglob("*.safetensors"):
        tensor_shapes(path)


def upload(arguments: Sequence[str]) -> list[str]:
    """The command line; returns the names of the files."""
    parser = argparse.ArgumentParser(prog=Path(sys.argv[0]).name, description="Push trained weights to the Hub.")
    parser.add_argument("--ckpt_dir", required=True, help="folder of a run, or of a model or tokenizer")
    parser.add_argument("--epoch", type=int, help="0 is the first; left out: the end of the run")
    parser.add_argument("--hf_repo_id", required=True, help="owner/name")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dry_run", action="store_true", help="say which files, show the card; no network, no login")
    parser.add_argument("--licence", help="of the weights; left out: as their card tells")
    parser.add_argument("--merge", action="store_true", help="any-to-any: also a plain language model, in merged/")
    parser.add_argument("--base_model", help="any-to-any: Hub id of the base, noted in place of the local folder")
    given = vars(parser.parse_args(list(arguments)))
    run, epoch, repo_id = given.pop("ckpt_dir"), given.pop("epoch"), given.pop("hf_repo_id")
    try:
        done = publish(find_checkpoint(run, epoch), repo_id, **given)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    sys.stderr.writelines(f"note: {note}\n" for note in done.notes)
    if given["dry_run"]:
        sys.stdout.write(done.readme + "\n")
    sys.stdout.write(f"{'would push' if given['dry_run'] else 'pushed'} to {repo_id}: {', '.join(done.files)}\n")
    return done.files


def _card_of(directory: Path) -> str | None:
    return next((card for card in _CARDS if (directory / card).is_file()), None)


def _hub_id_of_base(directory: Path) -> str | None:
    """The Hub id that stands for the local folder of a base, as that folder said when the model was trained."""
    origin, settings = origin_of(directory), anytoany_config(directory).language_model
    is_stand_in = origin is None or origin.stand_in
    return None if is_stand_in or settings.pretrained is None else origin.model


def _missing_base(directory: Path, base_model: str | None) -> tuple[str, ...]:
    base = anytoany_config(directory).language_model.pretrained
    is_local = base is not None and Path(base).exists() and base_model is None
    if not is_local or (directory / "language_model").is_dir():
        return ()
    return (f"others do not have the base model {base}; name it by --base_model <Hub id>",)


@contextmanager
def _staged(directory: Path, *, merge: bool, base_model: str | None) -> Iterator[Path]:
    """The folder itself, or for an any-to-any model that changes on its way a copy of links beside it."""
    if not merge and base_model is None:
        yield directory
        return
    # Beside the original, because links do not cross file systems and copies of a base model are tens of gigabytes.
    with TemporaryDirectory(dir=directory.parent, prefix=".push-") as scratch:
        staged = Path(scratch) / "model"
        shutil.copytree(directory, staged, ignore=shutil.ignore_patterns(*_ONLY_TRAINING), copy_function=_link)
        if merge:
            _add_merged(directory, staged / "merged")
        if base_model is not None:
            _name_base(staged, base_model)
        yield staged


def _add_merged(directory: Path, folder: Path) -> None:
    save_merged(load_anytoany(directory), folder)


def _name_base(staged: Path, base_model: str) -> None:
    for name, path in (
        (ANYTOANY_CARD, ("config", "language_model", "pretrained")),
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
