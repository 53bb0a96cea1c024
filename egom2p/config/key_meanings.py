"""What `--help` says of every key of a schema: default, meaning, choices.

Meanings stand where the schema's reader finds them as well: in the docstring's table (`key   meaning`, or several keys
with commas), in its sentences (`key: meaning`, or one that has the key between backticks), or in the comment at
the field. Keys that mean the same everywhere have their words here.
"""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from egom2p.config.schema import types_at

# Of a key of this name where its own schema says nothing.
_EVERYWHERE = {
    "axes": "of the camera: opencv (x right, y down, z ahead) or opengl (x right, y up, z back)",
    "batch_size": "items that go through the model at once; less needs less memory and gives the same",
    "clips": "store of aligned clips",
    "clips_per_shard": "clips in one tar",
    "dataset": "name of the data set inside the store",
    "datasets": "names of the data sets",
    "description": "words at the head of the page",
    "device": "auto (a GPU if there is one), cpu, cuda or cuda:1",
    "duration_s": "length in seconds",
    "files": "paths of the files, jsonl, json or parquet",
    "folder": "name of the folder of its tokens in a data set",
    "height": "pixels",
    "intrinsics": "of the colour camera, where no file says them",
    "kinds": "kinds of media it serves; empty: all",
    "licence": "of the weights, for their card",
    "lora": "adapters, with train=lora",
    "max_clips": "at most so many clips; null: all",
    "max_test_clips": "at most so many held-out clips; null: all",
    "max_train_clips": "at most so many training clips; null: all",
    "media": "kind of media of every row",
    "metres_per_unit": "metres of one unit of the files",
    "modality": "name of the modality, such as tok_gaze",
    "model": "sizes and options of the model",
    "names": "recordings to take, wildcards allowed; null: all",
    "num_heads": "attention heads",
    "num_workers": "processes that share the work; 0: this one",
    "checkpoint": "file or folder of the weights",
    "features": "folders of exported features",
    "num_train": "how many to train on",
    "network": "kind and sizes of the tokenizer; `architecture` names the kind",
    "dim": "channels",
    "encoder_depth": "blocks of the encoder",
    "decoder_depth": "blocks of the decoder",
    "mlp_ratio": "width of the hidden layer of an MLP, in dim",
    "seeds": "runs that differ in their seed alone",
    "vocab_size": "ids of the tokenizer",
    "output": "folder that the results are written to",
    "output_dir": "folder of the run: log, checkpoints, the model in `final`",
    "pictures": "whether pictures are read",
    "plan": "assumptions of dry_run",
    "progress": "whether a bar shows how far it is",
    "quantity": "what is measured: rgb, depth, camera, gaze ...",
    "rate_hz": "samples a second",
    "revision": "branch, tag or commit on the Hub; null: the newest",
    "root": "folder that is read",
    "seed": "of everything that is drawn at random",
    "stream": "name of the stream in a clip; null: named like the quantity",
    "title": "of the page",
    "tokenizers_root": "folder that relative paths of tokenizers begin at",
    "training": "length, learning rate, batch, precision, logging and checkpoints",
    "width": "pixels",
}


@dataclass(frozen=True)
class KeyMeaning:
    """A dotted key of a schema; keys of open mappings are called <name>."""

    key: str
    default: str
    meaning: str


def described_keys(schema: type, *, prefix: str = "", held: Any = None, depth: int = 6) -> list[KeyMeaning]:
    """Every key that the schema declares, once for each meaning. `held`: an instance whose values are the defaults."""
    found: list[KeyMeaning] = []
    meanings = _meanings(schema)
    # What tells the alternatives of a union apart comes first.
    for field in sorted(dataclasses.fields(schema), key=lambda field: not _only_choice(schema, field.name)):
        default = _default(field) if held is None else getattr(held, field.name)
        key, below = f"{prefix}{field.name}", []
        for step, path in (("", (field.name,)), (".<name>", (field.name, "0"))):
            kinds = [kind for kind in types_at(schema, path) if dataclasses.is_dataclass(kind)]
            for kind in kinds if depth > 0 else ():
                inner = default if not step and isinstance(default, kind) else None
                below += described_keys(kind, prefix=f"{key}{step}.", held=inner, depth=depth - 1)
        words = meanings.get(field.name) or _of_type(schema, field.name) or _EVERYWHERE.get(field.name, "")
        found += [KeyMeaning(key, _shown(default), _with_choices(schema, field.name, words)), *below]
    return list(dict.fromkeys(found))


def key_lines(schema: type, width: int) -> list[str]:
    """`key = default` and below it the meaning, lines of at most `width` where words allow."""
    lines: list[str] = []
    for one in described_keys(schema):
        indents = {"initial_indent": "", "subsequent_indent": "      ", "break_on_hyphens": False}
        lines += textwrap.wrap(f"{one.key} = {one.default}", width, break_long_words=False, **indents)
        lines += textwrap.wrap(
            one.meaning, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
        )
    return lines


def prose(schema: type) -> str:
    """The docstring without its table, whose rows stand at their keys."""
    lines = inspect.cleandoc(schema.__doc__ or "").splitlines()
    kept, in_table = [], False
    for line in lines:
        in_table = bool(_ROW.fullmatch(line)) or (in_table and line.startswith("  "))
        kept += [] if in_table else [line]
    text = re.sub(r"^Root schema( of `[\w./]+`)?[.:]\s*", "", "\n".join(kept)).strip()
    return "" if text.startswith(f"{schema.__name__}(") else text


_ROW = re.compile(r"(\w+(?:, \w+)*) {2,}(\S.*)")


@cache
def _meanings(schema: type) -> dict[str, str]:
    """Key -> meaning as the schema says it, or a schema it is derived from."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        if dataclasses.is_dataclass(kind):
            known = {field.name for field in dataclasses.fields(kind)}
            said = {**_in_sentences(kind, known), **_in_comments(kind), **_in_table(kind)}
            found |= {name: words for name, words in said.items() if name in known}
    return found


def _in_table(schema: type) -> dict[str, str]:
    found: dict[str, str] = {}
    keys: list[str] = []
    for line in inspect.cleandoc(schema.__doc__ or "").splitlines():
        row = _ROW.fullmatch(line)
        if row:
            keys, words = row[1].split(", "), row[2]
        else:
            keys, words = (keys, line.strip()) if line.startswith("  ") else ([], "")
        for key in keys:
            found[key] = f"{found.get(key, '')} {words}".strip()
    return found


def _in_sentences(schema: type, names: set[str]) -> dict[str, str]:
    """`key: meaning.` (several keys with commas), else the first sentence with the key between backticks, of the
    schema or of its module."""
    module = inspect.getmodule(schema)
    text = " ".join(f"{prose(schema)}\n\n{(module.__doc__ if module else None) or ''}".split())
    found: dict[str, str] = {}
    for sentence in re.split(r"(?<=[.;])\s+(?=[\w`(])", text):
        begins = re.match(r"`?(\w+(?:, \w+)*)`?(: | is | are )(.*)", sentence)
        keys = [] if begins is None else begins[1].split(", ")
        if keys and set(keys) <= names:
            said = begins[3] if begins[2] == ": " else f"{begins[2].strip()} {begins[3]}"
            found |= {key: said.rstrip(".;") for key in keys}
        for key in names & set(re.findall(r"`(\w+)(?:=\w+)?`", sentence)):
            found.setdefault(key, sentence.rstrip(".;"))
    return found


def _in_comments(schema: type) -> dict[str, str]:
    """Comments of the fields: behind them, going on below without a capital, or above them as whole sentences."""
    try:
        source = textwrap.dedent(inspect.getsource(schema))
    except (OSError, TypeError):
        return {}  # typed into an interpreter
    body = ast.parse(source).body[0].body
    fields = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    alone = {line for line in comments if source.splitlines()[line - 1].lstrip().startswith("#")}
    found: dict[str, str] = {}
    for node in fields:
        behind = [comments.pop(line) for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in comments]
        if behind:
            below = (node.end_lineno or 0) + 1
            while below in alone and not _is_sentence(comments[below]):
                behind.append(comments.pop(below))
                below += 1
            found[node.target.id] = " ".join(behind)
    for node in fields:
        line, above = node.lineno - 1, []
        while line in alone & set(comments):
            above.insert(0, comments[line])
            line -= 1
        if above and _is_sentence(above[0]):
            found.setdefault(node.target.id, " ".join(above))
    return found


def _is_sentence(words: str) -> bool:
    return words[0].isupper() or words[0] == "`"


def _of_type(schema: type, name: str) -> str:
    """The first sentence of what stands below a key, or of the alternative that the key's only value chooses."""
    kinds = [kind for kind in types_at(schema, (name,)) if dataclasses.is_dataclass(kind)]
    if _only_choice(schema, name):
        kinds = [schema]
    kinds = kinds or [kind for kind in types_at(schema, (name, "0")) if dataclasses.is_dataclass(kind)]
    return prose(kinds[0]).split("\n\n")[0].replace("\n", " ") if len(kinds) == 1 else ""


def _choices(schema: type, name: str) -> list[Any]:
    return [
        choice
        for kind in types_at(schema, (name,))
        if typing.get_origin(kind) is Literal
        for choice in typing.get_args(kind)
    ]


def _only_choice(schema: type, name: str) -> bool:
    return len(_choices(schema, name)) == 1 and len(types_at(schema, (name,))) == 1


def _with_choices(schema: type, name: str, words: str) -> str:
    choices = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in _choices(schema, name)]
    if len(choices) < 2 or all(re.search(rf"\b{re.escape(choice)}\b", words) for choice in choices):
        return words
    return f"{words}{' ' if words else ''}({' | '.join(choices)})"


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return dataclasses.MISSING if field.default_factory is dataclasses.MISSING else field.default_factory()


def _shown(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "(must be given)"
    return "..." if dataclasses.is_dataclass(default) else "null" if default is None else str(default) or '""'
