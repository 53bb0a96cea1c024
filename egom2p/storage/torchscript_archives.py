"""TorchScript files of others (`.jit`): their tensors read by key, or, only when asked for by hash, the program itself.

A TorchScript file is a zip: `data.pkl` describes modules and their attributes, `data/<number>` holds the bytes of each
tensor, `code/` the program. For the tensors no name in `data.pkl` is ever looked up: every class and function in it is
replaced by a stand-in that does nothing, so that nothing of the file can run.
"""

import hashlib
import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# What pickle, zip and torch say of bytes that are no archive, or a maimed one.
_BROKEN = (pickle.UnpicklingError, EOFError, LookupError, AttributeError, ValueError, TypeError, OverflowError)
_BROKEN += (RuntimeError, zipfile.BadZipFile, zlib.error)


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with `data.pkl` and code or constants beside it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/data.pkl") for name in names) and any(
        name.endswith("/constants.pkl") or "/code/" in name for name in names
    )


def read_torchscript_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor among the attributes of the archive's modules, by dotted name, on the CPU, in its stored type.

    Also buffers that a state dict leaves out. ValueError names a file that is no such archive, FileNotFoundError a
    missing one. Nothing of the file is run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not is_torchscript(path):
        raise ValueError(f"{path}: not a TorchScript archive (a zip with data.pkl and code)")
    with zipfile.ZipFile(path) as archive:
        described = min((name for name in archive.namelist() if name.endswith("/data.pkl")), key=len)
        root = described.removesuffix("data.pkl")
        byteorder = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
        if byteorder != b"little":
            raise ValueError(f"{path}: its numbers are {byteorder.decode(errors='replace')}-endian, wanted little")
        try:
            with archive.open(described) as opened:
                module = _InertUnpickler(opened, archive, f"{root}data/").load()
        except _BROKEN as error:
            raise ValueError(f"{path}: not a readable TorchScript archive ({error})") from None
    tensors = dict(_named_tensors(module, ""))
    if not tensors:
        raise ValueError(f"{path}: the archive holds no tensors")
    return tensors


def load_torchscript(path: str | Path, *, allow_torchscript: bool, sha256: str | None) -> torch.jit.ScriptModule:
    """The program in a TorchScript file, ready to run; only if that is allowed and the file is the one that is known.

    sha256   hash of the trusted file, as its publisher's page or `sha256sum` says

    ValueError without `allow_torchscript` or a hash, and for a file with another hash.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not allow_torchscript:
        raise ValueError(f"{path}: is a program; running it needs allow_torchscript=true and its sha256")
    if not sha256:
        raise ValueError(f"{path}: allow_torchscript=true needs the sha256 of the file you trust")
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256.lower():
        raise ValueError(f"{path}: has sha256 {found}, wanted {sha256}; it is not the file you trust")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")  # the released files are what they are
        return torch.jit.load(str(path), map_location="cpu")


class _Inert:
    """Stands for any class or function of the file: takes everything, does nothing, remembers its attributes."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.__dict__["attributes"] = state if isinstance(state, dict) else {}


class _InertUnpickler(pickle.Unpickler):
    """Reads the shape of the data; the only functions it ever calls are `_tensor` and `_Inert`."""

    def __init__(self, opened: Any, archive: zipfile.ZipFile, data_folder: str) -> None:
        super().__init__(opened)
        self._archive, self._data_folder = archive, data_folder
        self._stored: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return type(name, (_Inert,), {})

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of one storage, flat."""
        kind, dtype, key, _, num_values = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"storage of an unknown kind: {pid!r}")
        if key not in self._stored:
            content = self._archive.read(f"{self._data_folder}{key}")
            values = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.zeros(0, dtype=dtype)
            if len(values) != num_values:
                raise pickle.UnpicklingError(f"storage {key} has {len(values)} values, {num_values} are announced")
            self._stored[key] = values
        return self._stored[key]


def _tensor(values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(values, size, stride, offset)


def _named_tensors(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Inert):
        for key, inner in value.__dict__.get("attributes", {}).items():
            yield from _named_tensors(inner, f"{name}.{key}" if name else str(key))
