"""Tensors on disk as safetensors, and the identity of a set of weights."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from egom2p.storage.atomic import atomic_file, parse_json

_TIES = "tied"
_SMALL_SIZE = 10_000
_OS_ERROR = re.compile(r"os error (\d+)")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to one safetensors file.

    Names that are the same tensor (tied weights) are stored once, under the first name; the others are noted in the
    file's metadata and restored by `load_tensors`. Views that only overlap are stored as copies.
    """
    stored: dict[str, Tensor] = {}
    first_name: dict[tuple[Any, ...], str] = {}
    ties: dict[str, str] = {}
    for name, tensor in tensors.items():
        detached = tensor.detach()
        identity = _identity(detached)
        if identity in first_name and detached.numel() > 0:
            ties[name] = first_name[identity]
            continue
        first_name[identity] = name
        stored[name] = detached
    note = {**(metadata or {}), _TIES: json.dumps(ties)}
    with atomic_file(path) as unfinished:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        try:
            save_file(_without_shared_memory(stored), str(unfinished), metadata=note)
        except SafetensorError as error:
            number = _OS_ERROR.search(str(error))
            if number is None:
                raise ValueError(f"{path}: cannot be written ({error})") from error
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        unfinished.chmod(mode)  # the library's files are for their owner alone; colleagues read checkpoints too


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file; tied names come back as the same tensor. ValueError names a broken file."""
    with _opened(path, device) as (opened, ties):
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    tensors.update({name: tensors[stored_as] for name, stored_as in ties.items()})
    return tensors


def stream_tensors(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) on the CPU one after another, so that no more than one is held; tied names come each."""
    with _opened(path) as (opened, ties):
        for name in (*opened.keys(), *ties):
            yield name, opened.get_tensor(ties.get(name, name))


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape, from the head of the file alone."""
    with _opened(path) as (opened, ties):
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    return shapes | {name: shapes[stored_as] for name, stored_as in ties.items()}


def load_tensor_metadata(path: str | Path) -> dict[str, str]:
    """The free text stored beside the tensors."""
    with _opened(path) as (opened, _):
        note = dict(opened.metadata() or {})
    note.pop(_TIES, None)
    return note


def check_finite(tensors: Mapping[str, Tensor], *, where: object) -> None:
    """ValueError that names the first of these weights with a number that is none or infinite.

    A model of a run that diverged answers something to every question, so it is neither exported nor loaded.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int(tensor.numel() - torch.isfinite(tensor).sum())
            raise ValueError(
                f"{where}: {name} holds {count} of {tensor.numel()} numbers that are not finite: the weights of a run "
                "that diverged, or damaged"
            )


def check_sizes(config: Mapping[str, Any], weights: str | Path, *, where: object) -> None:
    """ValueError for a size in a network's plain config that the weights beside it cannot mean.

    Asked before anything is built: a number is quickly written into a card, and building what it says takes all memory
    or for ever. No size is beyond the longest axis of the weights (small ones aside: frames, samples), and there are no
    more layers than tensors.
    """
    shapes = [shape for shape in tensor_shapes(weights).values() if shape and 0 not in shape]
    longest = max((size for shape in shapes for size in shape), default=0)
    for name, value in config.items():
        is_count = name.endswith(("depth", "num_blocks", "num_layers"))
        most = len(shapes) if is_count else max(longest, _SMALL_SIZE)
        sizes = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(size, int | float) and not abs(size) <= most for size in sizes):
            raise ValueError(f"{where}: `{name}` is {value!r:.80}, but {Path(weights).name} allows for {most} at most")


def fingerprint_of(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """`sha256:` and 16 hex digits that name these weights with these settings, whatever the order or device.

    `settings` are plain JSON values.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


@contextmanager
def _opened(path: str | Path, device: torch.device | str = "cpu") -> Iterator[tuple[Any, dict[str, str]]]:
    """The open file, and tied name -> name that is stored."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as opened:
            yield opened, _ties_of(opened, path)
    except (SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from error


def _ties_of(opened: Any, path: Path) -> dict[str, str]:
    ties = parse_json((opened.metadata() or {}).get(_TIES, "{}"), f"{path}, metadata `{_TIES}`")
    stored = set(opened.keys())
    if not isinstance(ties, dict):
        raise ValueError(f"{path}: metadata `{_TIES}` is {ties!r:.80}, wanted name -> name that is stored")
    for name, stored_as in ties.items():
        if not isinstance(stored_as, str) or stored_as not in stored or name in stored:
            raise ValueError(f"{path}: metadata `{_TIES}` says {name!r:.80} is {stored_as!r:.80}, which is not stored")
    return ties


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return (
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        str(tensor.device),
    )


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory or are not contiguous."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        contiguous = tensor.contiguous()
        owner = contiguous.untyped_storage().data_ptr()
        separate[name] = contiguous.clone() if owner in seen else contiguous
        seen.add(owner)
    return separate
