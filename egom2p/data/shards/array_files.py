"""Arrays as bytes: npy, and npz with one array. Nothing is ever unpickled."""

import io
import struct
from functools import lru_cache
from math import prod

import numpy as np

PUBLISHED_NAME = "arr_0"  # what numpy.savez calls an unnamed array; the published token shards hold it
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
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            names = archive.files
            name = PUBLISHED_NAME if PUBLISHED_NAME in names or len(names) != 1 else names[0]
            return archive[name]
    except Exception as error:
        # numpy and zipfile raise many kinds (struct, key, zip, pickle refused) on foreign bytes.
        raise ValueError(f"{len(content)} bytes are not a readable {suffix} array: {error}") from error


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
