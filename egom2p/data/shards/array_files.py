"""Arrays as bytes: npy, and npz with one array. Nothing is ever unpickled."""

import io
import struct
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

PUBLISHED_NAME = "arr_0"  # what numpy.savez calls an unnamed array; the published token shards hold it
_MAX_UNPACKED = 1 << 30
_HEAD_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Signature, version, flags, method, time, date, checksum, sizes (2), lengths of name and of extra field.
_ZIP_HEADER = struct.Struct("<4sHHHHHIIIHH")


def encode_array(values: np.ndarray, suffix: str = "npy") -> bytes:
    """Bytes of one array as `npy`, or as `npz` under the name `arr_0`."""
    buffer = io.BytesIO()
    if suffix == "npy":
        np.lib.format.write_array(buffer, np.ascontiguousarray(values), allow_pickle=False)
    elif suffix == "npz":
        np.savez(buffer, allow_pickle=False, **{PUBLISHED_NAME: values})
    else:
        raise ValueError(f"an array is stored as npy or npz, got {suffix!r}")
    return buffer.getvalue()


def decode_array(content: bytes, suffix: str = "npy") -> np.ndarray:
    """The array of `encode_array`; an npz must hold `arr_0` or exactly one array. Raises ValueError.

    The array may be a read-only view of `content`.
    """
    if suffix not in ("npy", "npz"):
        raise ValueError(f"an array is stored as npy or npz, got {suffix!r}")
    try:
        start = 0 if suffix == "npy" else _start_of_single_member(content)
        if start is not None:
            return _view_npy(content, start)
        arrays = read_npz(io.BytesIO(content))
        name = PUBLISHED_NAME if PUBLISHED_NAME in arrays or len(arrays) != 1 else next(iter(arrays))
        return arrays[name]
    except Exception as error:
        # A header of foreign bytes fails in many ways (struct, key, shape).
        raise ValueError(f"{len(content)} bytes are not a readable {suffix} array: {error}") from error


def read_npz(file: BinaryIO | str | Path, *, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz, all or the named ones; ValueError for anything else. Nothing is unpickled.

    What the heads of the members announce is compared with their sizes, and with a bound (1 GiB, or a hundred times the
    size of the file), before anything is unpacked: a file of 1 MB can announce 10 GB, and hold them as zeros.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            chosen = members if names is None else {name: members[name] for name in names if name in members}
            if names is not None and len(chosen) < len(names):
                raise ValueError(f"it holds {sorted(members)}, wanted {list(names)}")
            most = max(_MAX_UNPACKED, 100 * sum(entry.compress_size for entry in members.values()))
            for name, entry in chosen.items():
                with archive.open(entry) as opened:
                    version = np.lib.format.read_magic(opened)
                    head = _HEAD_READERS[version](opened)
                    announced = opened.tell() + prod(head[0]) * head[2].itemsize
                if head[2].hasobject:
                    raise ValueError(f"{name} holds Python objects, which are never loaded")
                if announced != entry.file_size:
                    raise ValueError(f"{name} announces {announced} bytes and has {entry.file_size}")
            if (total := sum(entry.file_size for entry in chosen.values())) > most:
                raise ValueError(f"its arrays would take {total} bytes, at most {most} are unpacked")
            arrays = {}
            for name, entry in chosen.items():
                with archive.open(entry) as opened:
                    arrays[name] = np.lib.format.read_array(opened, allow_pickle=False)
            return arrays
    except ValueError:
        raise
    except Exception as error:
        # zipfile and numpy raise many kinds (zip, zlib, struct, key, encryption) on foreign bytes.
        raise ValueError(f"not a readable npz: {type(error).__name__}: {error}") from error


def _start_of_single_member(content: bytes) -> int | None:
    """Where the npy begins in an npz whose first member is `arr_0`, stored plainly; None for any other npz.

    Opening a zip the general way takes ten times as long as reading the array.
    """
    if content[:4] != b"PK\x03\x04" or len(content) < _ZIP_HEADER.size:
        return None
    _, _, flags, method, *_, name_length, extra_length = _ZIP_HEADER.unpack_from(content)
    name = content[_ZIP_HEADER.size : _ZIP_HEADER.size + name_length]
    is_plain = method == 0 and not flags & 1 and name == f"{PUBLISHED_NAME}.npy".encode()
    return _ZIP_HEADER.size + name_length + extra_length if is_plain else None


def _view_npy(content: bytes, start: int) -> np.ndarray:
    if content[start : start + 6] != b"\x93NUMPY":
        raise ValueError("no npy header")
    length_bytes = 2 if content[start + 6] == 1 else 4
    data = start + 8 + length_bytes
    data += int.from_bytes(content[start + 8 : data], "little")
    shape, is_fortran, dtype = _parse_header(content[start:data])
    values = np.frombuffer(content, dtype=dtype, count=prod(shape), offset=data)
    return values.reshape(shape, order="F" if is_fortran else "C")


@lru_cache(maxsize=256)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order, type of an npy header; the clips of a data set share a few headers."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    return shape, is_fortran, dtype
