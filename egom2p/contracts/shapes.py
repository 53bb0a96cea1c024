"""One shape check for the border of a module."""

from typing import Any


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
