"""Reading a mapping key by key, so that none is forgotten silently."""

from collections.abc import Mapping
from typing import Any


class Leftovers:
    """Keys without counterpart, each with the reason."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, key: str, reason: str) -> None:
        self.lines.append(f"{key}: {reason}")


class Source:
    """Keys of one published mapping, crossed out as they are used."""

    def __init__(self, values: Mapping[str, Any], where: str, leftovers: Leftovers) -> None:
        self._left = dict(values)
        self.where = where
        self.leftovers = leftovers

    def take(self, key: str, default: Any = None) -> Any:
        """Value of a key, else the published program's default."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def drop(self, key: str, reason: str) -> None:
        """A key that is not needed here."""
        if key in self._left and self._left.pop(key) is not None:
            self.leftovers.add(f"{self.where}.{key}", reason)

    def only(self, key: str, value: Any, reason: str) -> None:
        """A key of which one value has a counterpart; with another one it is named."""
        found = self._left.pop(key, None)
        if found is not None and found != value:
            self.leftovers.add(f"{self.where}.{key}", f"{found} has no counterpart; {reason}")

    def name_the_rest(self) -> None:
        """Name every key that nothing has asked for, unless it is null."""
        for key, value in self._left.items():
            if value is not None:
                self.leftovers.add(f"{self.where}.{key}", "unknown")
        self._left.clear()
