"""The one place where pickles of other projects are read: released `.pth` files, as plain values and nothing else.

Admitted: tensors, arrays of numbers, numbers, strings, dict, list, tuple, set and `argparse.Namespace`, which becomes
a dict. Torch's restricted unpickler refuses everything else before it is called.
"""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ARRAY, _SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
# NumPy's own constructors, under the names that its versions 1 and 2 write.
_ADMITTED: list[Any] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *(
        type(np.dtype(name))
        for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    ),
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_FORBIDDEN = re.compile(r"(?:GLOBAL|class|global|function)\s+`?([\w.]+\.\w+)`?")
# Where training programs put the weights, in the order of preference.
_WEIGHT_KEYS = ("model", "state_dict")


def read_foreign_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a pickled checkpoint on the CPU, read lazily where its format allows.

    FileNotFoundError without the file; ValueError names the file and, when it holds more than plain values, the thing
    that it wanted to load. Nothing of a refused file is run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(_ADMITTED), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what it cannot read, it refuses
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({_first_line(error)})") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: a checkpoint is a dict, found {type(content).__name__}")
    return _plain(content)


def read_foreign_array(path: str | Path) -> Any:
    """What an `.npy` file holds: an array, or for one of objects the dict, list or value that was saved in it.

    ValueError names the file, and the thing that it wanted to load when it holds more than plain values and arrays.
    """
    path = Path(path)
    try:
        with open(path, "rb") as opened:
            version = np.lib.format.read_magic(opened)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
            _, _, dtype = (read_header or np.lib.format.read_array_header_2_0)(opened)
            if not dtype.hasobject:
                return np.load(path, allow_pickle=False)
            held = _PlainUnpickler(opened).load()
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, {error}; only plain values and arrays are read from files of others"
        ) from None
    except Exception as error:  # numpy and pickle raise many kinds on damaged bytes
        raise ValueError(f"{path}: not a readable array file ({_first_line(error)})") from error
    return held.item() if isinstance(held, np.ndarray) and held.ndim == 0 else held


class _PlainUnpickler(pickle.Unpickler):
    """Builds arrays and plain values only; every other name is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return _ARRAY if name == "_reconstruct" else _plain_scalar
        if (module, name) == ("_codecs", "encode"):
            return _latin_bytes
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")


def _plain_scalar(dtype: np.dtype, content: Any = None) -> Any:
    if dtype.hasobject:  # NumPy would unpickle its bytes
        raise pickle.UnpicklingError("it holds a scalar of objects")
    return _SCALAR(dtype, content)


def _latin_bytes(text: str, codec: str) -> bytes:
    """How pickles of old protocols hold bytes."""
    if codec != "latin1":
        raise pickle.UnpicklingError(f"it wants the codec {codec}")
    return text.encode("latin1")


def foreign_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by name, and the settings (`args`) stored beside them ({} without any).

    ValueError when the file holds no weights.
    """
    content = read_foreign_checkpoint(path)
    found = next((content[key] for key in _WEIGHT_KEYS if isinstance(content.get(key), Mapping)), content)
    weights = {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    if not weights:
        raise ValueError(f"{path}: no weights; its keys are {sorted(map(str, content))[:10]}")
    settings = content.get("args")
    return weights, settings if isinstance(settings, dict) else {}


def _refusal(path: Path, message: str) -> str:
    forbidden = _FORBIDDEN.search(message)
    if forbidden is None:
        # Torch's first lines advise to switch the protection off.
        reason = message.partition("WeightsUnpickler error:")[2].strip() or "not a pickle of plain values"
        return f"{path}: not a readable checkpoint ({reason.splitlines()[0]})"
    return (
        f"{path}: refused, it wants to load {forbidden.group(1)}; only tensors, arrays, numbers, strings, dict, list "
        "and argparse.Namespace are read from files of others"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_plain(inner) for inner in value) if type(value) in (list, tuple, set) else value
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
