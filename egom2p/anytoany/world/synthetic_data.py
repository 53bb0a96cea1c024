"""Everything a run needs, made here: captions of the world of codes, features, text, a tokenizer and a tiny base model.

Same files as the downloaded ones, so the same configs and readers work; no network. Makes nothing twice.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.anytoany.conversations.conversation import load_templates, template_path
from egom2p.anytoany.language.language_model import LanguageModelConfig, load_language_model
from egom2p.anytoany.language.language_tokenizer import train_tokenizer
from egom2p.anytoany.language.packaged_model import Origin, save_origin
from egom2p.anytoany.perception.feature_store import FeatureWriter
from egom2p.anytoany.perception.source import CodesConfig
from egom2p.anytoany.perception.token_features import TokenSource
from egom2p.anytoany.world.factor_world import Ask, Split, factor_clip, factor_rows, factor_specs
from egom2p.config import Count, Natural, strict, to_plain
from egom2p.contracts import TokenClip
from egom2p.data.clip_order import clip_rng
from egom2p.storage import atomic_directory, atomic_file

_TEMPLATES = ("caption_video", "looked_at", "looked_at_choice", "motion", "order")
_BLANK_LINE = re.compile(r"\n\s*\n")
_PROSE = re.compile(r"[A-Z][^{}<>=|\[\]^`*_+\\]{200,800}\.")  # sentences without signs of code
_SHARD_CLIPS = 1024
_VECTOR_WIDTH = 1024


@strict
class SyntheticDataConfig:
    """Sizes of what is made.

    architecture   settings of transformers for the base model, with random weights
    """

    clips_per_combination: Count = 8  # of action, object and direction
    vocab_size: Count = 768  # of the stand-in's tokenizer
    architecture: dict[str, Any] | None = None
    seed: Natural = 0


def build_synthetic(output: str | Path, config: SyntheticDataConfig) -> list[Path]:
    """Write what is missing below `output`; returns the files and folders.

    captions_train.jsonl, captions_unseen.jsonl, looked_at_*.jsonl   rows {clip, description}
    fusion_train.jsonl, fusion_unseen.jsonl   interleaved: camera codes asked for, and read
    features/    codes of all these clips     tokenizer/   trained on their texts
    python_reference.jsonl   rows {text}: English by people that is on every machine
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    tables = {
        (ask, split): factor_rows(ask, split, config.clips_per_combination if split == "train" else 1)
        for ask in ("caption", "looked_at")
        for split in ("train", "unseen")
    }
    made = [write_rows(output / table_name(*key), rows) for key, rows in tables.items()]
    for split in ("train", "unseen"):
        made.append(write_rows(output / f"fusion_{split}.jsonl", _fusion_rows(tables["caption", split])))
    clips = [factor_clip(row["clip"]) for rows in tables.values() for row in rows]
    made.append(write_codes(output / "features", clips))
    made.append(write_tokenizer(output / "tokenizer", world_texts(), config.vocab_size))
    made.append(write_rows(output / "python_reference.jsonl", [{"text": text} for text in reference_paragraphs()]))
    return made


def reference_paragraphs() -> list[str]:
    """Paragraphs of the language reference that comes with Python (PSF licence) which hold no code; by topic.

    Which they are depends on the version of Python.
    """
    from pydoc_data.topics import topics

    blocks = [" ".join(block.split()) for name in sorted(topics) for block in _BLANK_LINE.split(topics[name])]
    return list(dict.fromkeys(block for block in blocks if _PROSE.fullmatch(block)))


def build_like_manifest(tables: Mapping[Path, Sequence[str]], config: SyntheticDataConfig) -> list[Path]:
    """Stand-ins under the names of downloaded files; what is there already stays.

    tables   path -> columns. A parquet file gets captions of the world of codes, as instructions where a folder's name
             says so, and vectors that hold what the clip shows. Beside a `config.json` a tiny model is made.
    """
    made = []
    for path, columns in tables.items():
        if path.exists():
            continue
        if path.suffix == ".parquet":
            made.append(_write_vectors(path, columns, config))
        elif path.name == "config.json" and config.architecture is not None:
            made.append(write_stand_in(path.parent, config))
    return made


def table_name(ask: Ask, split: Split) -> str:
    return f"{'captions' if ask == 'caption' else ask}_{split}.jsonl"


def world_texts() -> list[str]:
    """Words of all questions about the synthetic worlds, and of the answers."""
    files = [load_templates(template_path(name)) for name in _TEMPLATES]
    texts = [text for file in files for text in (*file.train, *file.held_out)]
    movers = [f"{colour} {shape}" for colour in ("red", "orange", "pink") for shape in ("ball", "box", "barrel")]
    answers = [f"first a {mover}, then an {mover}" for mover in movers]
    answers += [f"the wearer {way} and looks at a {mover} moving" for mover in movers for way in _WAYS]
    asks: tuple[Ask, ...] = ("caption", "looked_at")
    answers += [row["description"] for ask in asks for row in factor_rows(ask, "train", 1)]
    return [*texts, *answers, "Say again: What happens here? Move the camera: How does the camera move?"]


_WAYS = (
    "stands still",
    "turns left on the spot",
    "turns right on the spot",
    "walks forward",
    "walks fast forward",
    "walks and turns left",
    "walks fast and turns right",
)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """JSON lines, unless the file is there."""
    if not path.is_file():
        with atomic_file(path) as unfinished:
            unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _fusion_rows(captions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both directions between words and camera codes: codes that the model is to say, codes that it is to name."""
    rows = []
    for caption in captions:
        motion = caption["description"].rpartition(" while ")[2]
        media = [{"kind": "cam", "ref": caption["clip"]}]
        pairs = {"say": (f"Move the camera: {motion}.", "{cam}"), "read": ("{cam}\nHow does the camera move?", motion)}
        for name, (question, answer) in pairs.items():
            turns = [{"role": "user", "text": question}, {"role": "assistant", "text": answer}]
            rows.append({"key": f"{caption['clip']}/{name}", "turns": turns, "media": media})
    return rows


def write_codes(folder: Path, clips: Sequence[TokenClip]) -> Path:
    """Codes of clips of the world of codes, those that the folder does not hold yet."""
    config = CodesConfig(width=1, modality_specs=[spec.to_dict() for spec in factor_specs()])
    source = TokenSource(config)
    card = {"source": "codes", "names": list(source.names), "width": 1, "fingerprint": source.fingerprint}
    writer = FeatureWriter(folder, card | {"perception": to_plain(config)})
    missing = [clip for clip in clips if clip.key not in writer.done]
    for start in range(0, len(missing), _SHARD_CLIPS):
        part = missing[start : start + _SHARD_CLIPS]
        writer.write([clip.key for clip in part], source.perceive(part))
    return folder


def write_tokenizer(folder: Path, texts: Iterable[str], vocab_size: int) -> Path:
    """A tokenizer trained on these texts, unless the folder is there."""
    if not folder.is_dir():
        with atomic_directory(folder) as unfinished:
            train_tokenizer(texts, vocab_size).save_pretrained(unfinished)
    return folder


def _write_vectors(path: Path, columns: Sequence[str], config: SyntheticDataConfig) -> Path:
    """Rows of a published data set: column `caption` (text or turns) and a vector in the other one."""
    import pyarrow
    from pyarrow import parquet

    caption, vector = columns
    names = [row["clip"] for row in factor_rows("caption", "train", 1)]
    texts = [row["description"] for row in factor_rows("caption", "train", 1)]
    if "instruct" in path.parent.name or "flan" in path.parent.name:
        turns = [{"human": "<image>\nWhat happens here?", "gpt": text} for text in texts]
        answers: list[Any] = [[{"from": who, "value": text} for who, text in pair.items()] for pair in turns]
    else:
        answers = texts
    vectors = [clip_vector(name).tolist() for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        parquet.write_table(pyarrow.table({caption: answers, vector: vectors}), unfinished)
    return path


def clip_vector(name: str) -> np.ndarray:
    """(1024,) float32: the codes of a clip through a fixed random projection, as one vector per clip has them."""
    tokens = factor_clip(name).tokens
    vector = np.zeros(_VECTOR_WIDTH)
    for modality in sorted(tokens):
        for code in tokens[modality][tokens[modality] >= 0].tolist():
            vector += clip_rng(0, f"direction of {modality}", code).normal(size=_VECTOR_WIDTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def write_stand_in(folder: Path, config: SyntheticDataConfig) -> Path:
    """A language model with random weights and the tokenizer of the world, as a folder of transformers; it says so."""
    if not (folder / "config.json").is_file():
        tokenizer = train_tokenizer(world_texts(), config.vocab_size)
        settings = LanguageModelConfig(architecture=config.architecture, tokenizer="none", seed=config.seed)
        model = load_language_model(settings, tokenizer)
        with atomic_directory(folder) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            save_origin(unfinished, Origin("none: random weights", "none: nothing was learnt", stand_in=True))
    return folder
