"""A trained model together with the tokenizers it names: from signals to tokens and back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import numpy as np

import egom2p
from egom2p.config import to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, TokenClip, Tokenizer, check_fingerprint
from egom2p.jobs.workers import Dtype, choose_device, choose_dtype
from egom2p.models.egom2p_model import EgoM2P, load_model
from egom2p.models.generate import Sampler
from egom2p.models.sampling import Recommendation
from egom2p.models.weights import about_model, recommendation, tokenizer_locations
from egom2p.storage import fingerprint_of, load_json
from egom2p.storage.hub import fetch
from egom2p.tokenizers.pretrained import load_tokenizer

_CONTEXT_BYTES = 256 << 20
PRETRAINED = ("world_real", "world_small")  # what comes with the project, in the order in which it is tried
_LONGEST_SUMMARY = 1000  # characters
# Data sets of the embedded world in the configs of the project, and what files that belong to no data set are called.
_EMBEDDED_WORLDS = {"world", "synthetic"}
_OF_PLAIN_FILES = {"video", "pictures", "texts", "recordings"}


@dataclass(frozen=True)
class Checkpoint:
    """A model, its sampler, and modality name -> tokenizer for the modalities that have one.

    context_bytes   of encoder outputs that the sampler may keep between calls
    recommended     number of samples and sampling of requests that do not say them
    summary         for people: what it is good for and what not; empty where its card does not say it
    """

    directory: Path
    model: EgoM2P
    sampler: Sampler
    tokenizers: dict[str, Tokenizer]
    context_bytes: int = 0
    recommended: Recommendation = Recommendation()
    summary: str = ""

    @property
    def specs(self) -> tuple[ModalitySpec, ...]:
        return self.sampler.specs

    @property
    def fingerprint(self) -> str:
        """Of the model's weights in their precision, and config: a model trained again lies at the same path."""
        return fingerprint_of(self.model.state_dict(), to_plain(self.model.config))

    def spec(self, word: str) -> ModalitySpec:
        """The modality meant by a name (`tok_cam`), a quantity (`camera`) or a folder (`cam`), rather of tokens."""
        for attribute in ("name", "quantity", "folder"):
            found = [spec for spec in self.specs if getattr(spec, attribute) == word]
            found = [spec for spec in found if not spec.is_input_only] or found
            if len(found) == 1:
                return found[0]
        known = sorted({word for spec in self.specs for word in (spec.name, spec.quantity, spec.folder)})
        nearest = "".join(f"; did you mean {near!r}?" for near in get_close_matches(word, known, n=1))
        raise ValueError(f"{self.directory}: no modality {word!r}{nearest}; known: {known}")

    def inputs(self, word: str) -> list[ModalitySpec]:
        """The modalities that a word means as input: a name itself, a quantity or folder also the patches of the same
        pictures, or these alone where there are no tokens of them.
        """
        of_quantity = [spec for spec in self.specs if spec.quantity == word]
        if of_quantity and all(spec.is_input_only for spec in of_quantity):
            return of_quantity
        spec = self.spec(word)
        if word == spec.name:
            return [spec]
        return [
            other for other in self.specs if other is spec or other.is_input_only and other.quantity == spec.quantity
        ]

    def target(self, word: str) -> ModalitySpec:
        """The modality that a word means as target; ValueError for patches, of which there is nothing to predict."""
        meant = [spec for spec in self.specs if word in (spec.name, spec.quantity, spec.folder)]
        if meant and all(spec.is_input_only for spec in meant):
            names = ", ".join(spec.name for spec in meant)
            raise ValueError(f"{self.directory}: {names} is input only, it cannot be a target")
        return self.spec(word)

    def tokenizer(self, name: str) -> Tokenizer:
        if name not in self.tokenizers:
            raise ValueError(
                f"{self.directory}: modality {name} has no tokenizer; model.json names tokenizers for "
                f"{sorted(self.tokenizers)}"
            )
        return self.tokenizers[name]

    def tokenize(self, clips: Sequence[AlignedClip], names: Sequence[str]) -> list[TokenClip]:
        """Tokens of the named modalities; a modality that a clip does not have has no entry."""
        tokens: list[dict[str, np.ndarray]] = [{} for _ in clips]
        fingerprints: list[dict[str, str | None]] = [{} for _ in clips]
        for name in names:
            tokenizer = self.tokenizer(name)
            present = [index for index, clip in enumerate(clips) if tokenizer.stream in clip]
            if not present:
                continue
            for index, ids_L in zip(present, tokenizer.encode([clips[index] for index in present]), strict=True):
                tokens[index][name] = ids_L
                fingerprints[index][name] = tokenizer.fingerprint
        return [
            TokenClip(clip.key, known, marks) for clip, known, marks in zip(clips, tokens, fingerprints, strict=True)
        ]


def load_checkpoint(
    id_or_path: str | Path | None = None, *, device: str = "auto", dtype: Dtype = "auto", graphs: bool = True
) -> Checkpoint:
    """Model and tokenizers of a model directory, or of a repository `owner/name` of the Hub; needs nothing else.

    dtype    precision of the model's weights: bf16 by default on a GPU, where logits are made in fp32 all the same
    graphs   see `Sampler`

    None is the first of the pretrained ones. Raises ValueError when a tokenizer is not the one whose tokens the
    model was trained on.
    """
    directory = checkpoint_directory(id_or_path)
    if not (directory / "model.json").is_file():
        raise ValueError(f"{directory}: no model.json; wanted a model directory such as outputs/<run>/final")
    chosen = choose_device(device)
    model = load_model(directory, chosen).to(choose_dtype(dtype, chosen))
    locations = tokenizer_locations(directory)
    tokenizers = {}
    for spec in model.specs:
        if spec.name in locations:
            tokenizer = load_tokenizer(locations[spec.name], device=chosen)
            check_fingerprint(
                spec.name, found=spec.tokenizer_fingerprint, wanted=tokenizer.fingerprint, where=str(directory)
            )
            tokenizers[spec.name] = tokenizer
    sampler = Sampler(model, context_bytes=_CONTEXT_BYTES, graphs=graphs)
    recommended = recommendation(directory) or Recommendation()
    summary = str(about_model(directory).get("summary") or "")[:_LONGEST_SUMMARY]
    return Checkpoint(directory, model, sampler, tokenizers, _CONTEXT_BYTES, recommended, summary)


def trained_on(directory: Path) -> tuple[str, ...] | None:
    """Data sets that a model and those it was started from were trained on, by the settings of their runs.

    They lie beside exported models and above those of a run; None where nothing says it.
    """
    files = (directory / "training_config.json", directory.parent / "config.json")
    settings = next((load_json(path) for path in files if path.is_file()), None)
    patterns = (
        []
        if settings is None
        else [about.get("shards") or "" for about in (settings.get("data") or {}).get("datasets", {}).values()]
    )
    names = {PurePosixPath(pattern).parent.name for pattern in patterns if "/" in pattern}
    if not names:
        return None
    base = Path(settings.get("finetune") or "")
    if settings.get("finetune") and (base / "model.json").is_file():
        names |= set(trained_on(base) or ())
    return tuple(sorted(names))


def unfamiliar_input(directory: Path, datasets: Iterable[str], *, label: str = "") -> str:
    """One line for input of data sets that a model was not trained on; empty where it was, or nobody knows.

    Plain files have no data set of their own; they are none of the embedded world, which is all that some models know.
    """
    known = trained_on(directory)
    if known is None:
        return ""
    strange = set(datasets) - set(known)
    if not set(known) <= _EMBEDDED_WORLDS:
        strange -= _OF_PLAIN_FILES
    unknown = sorted(strange)
    if not unknown:
        return ""
    name = label or directory.name
    return (
        f"{name} was trained on {', '.join(known)}; the input ({', '.join(unknown)}) is none of it, so what it makes "
        f"of it is not to be relied on{'' if not (directory / 'CARD.md').is_file() else ' (see its CARD.md)'}"
    )


def checkpoint_directory(id_or_path: str | Path | None) -> Path:
    """Where a checkpoint lies on this disk, fetched from the Hub if need be.

    Pretrained ones are found by their names from anywhere, also where the project is installed without its checkout.
    """
    if id_or_path is None or (str(id_or_path) in PRETRAINED and not Path(id_or_path).is_dir()):
        return pretrained_checkpoint(PRETRAINED[0] if id_or_path is None else str(id_or_path))
    return fetch(id_or_path)


def pretrained_checkpoint(name: str = PRETRAINED[0]) -> Path:
    """Model directory that comes with the project: beside the package in a checkout, inside it when installed."""
    # Never one of this name in the working directory, which is somebody's own.
    folder = Path(egom2p.__file__).resolve().parent / "pretrained" / name
    folder = folder if folder.is_dir() else folder.parents[2] / "checkpoints" / name
    if (folder / "model.json").is_file():
        return folder
    raise ValueError(f"no checkpoint {name!r} comes with this installation; name one: checkpoint=<folder>")
