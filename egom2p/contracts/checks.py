"""Checks for the border of a module: the shape of an array, and a name that becomes part of a path."""

import re
from typing import Any

_MAX_NAME_BYTES = 200  # file systems allow 255; suffixes and the marks of unfinished files come on top
# Separators, control characters, and what turns the direction of writing or breaks lines in a message.
_NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain_name(text: Any, what: str, where: object = "") -> str:
    """`text` itself, if it is one plain part of a path; ValueError names `where` it was read, and `what` it is.

    Names come from files of strangers (members of tars, cards, folders) and become paths of what is written. Plain
    means: not empty, no separator, no control character, no dot at its start (so neither `..` nor a hidden file), at
    most 200 bytes.
    """
    if isinstance(text, str) and text.strip() and text[0] != "." and not _NOT_IN_NAMES.search(text):
        if len(text) <= _MAX_NAME_BYTES // 4 or len(text.encode()) <= _MAX_NAME_BYTES:
            return text
    shown = repr(text) if len(repr(text)) <= 80 else f"{repr(text)[:80]}..."
    raise ValueError(
        f"{where}{': ' if str(where) else ''}{what} {shown} is not one plain name (wanted: text without slash, "
        f"backslash or control character, no dot at its start, at most {_MAX_NAME_BYTES} bytes)"
    )


def check_shape(name: str, array: Any, pattern: str, **sizes: int) -> dict[str, int]:
    """Check an array's axes against a pattern such as `"b l 3"`; return the size of each named axis.

    A word is a named axis (equal wherever it repeats, equal to `sizes` where given), a number is that
    size, `*` stands for any size. Raises ValueError naming the array, its shape and the wanted one.
    """
    shape = tuple(array.shape)
    axes = pattern.split()
    found = dict(sizes)
    matches = len(shape) == len(axes)
    for size, axis in zip(shape, axes, strict=False):
        if axis == "*":
            continue
        wanted = int(axis) if axis.isdigit() else found.setdefault(axis, size)
        matches = matches and size == wanted
    if not matches:
        wanted_text = " ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
        raise ValueError(f"{name} has shape {shape}, wanted ({wanted_text})")
    return found
