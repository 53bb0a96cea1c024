"""Tokens of the finished windows of an unfinished recording, so that an interrupted run goes on."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.contracts import TokenClip
from egom2p.data.recordings.track_files import load_npz
from egom2p.storage import atomic_file, load_json, save_json

_SETTINGS = "settings.json"


class WindowStore:
    """A folder of token files beside the result; emptied when it was made with other settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], fingerprints: Mapping[str, str | None]) -> None:
        self._folder, self._fingerprints = folder, dict(fingerprints)
        card = folder / _SETTINGS
        if folder.is_dir() and not (card.is_file() and load_json(card) == settings):
            shutil.rmtree(folder)
        if not card.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            save_json(card, dict(settings))

    def load(self, key: str) -> TokenClip | None:
        """What was made of a window, or None."""
        path = self._folder / f"{key}.npz"
        return TokenClip(key, load_npz(path), self._fingerprints) if path.is_file() else None

    def save(self, clip: TokenClip) -> None:
        with atomic_file(self._folder / f"{clip.key}.npz") as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **clip.tokens)

    def remove(self) -> None:
        """When the recording is whole."""
        shutil.rmtree(self._folder, ignore_errors=True)
