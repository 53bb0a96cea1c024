"""What every tokenizer promises."""

from typing import Protocol, runtime_checkable

import numpy as np

from egom2p.contracts.clips import AlignedClip
from egom2p.contracts.tokens import ModalitySpec


class TokenizerMismatch(ValueError):
    """Tokens were made by another tokenizer than the one that is to read them."""


@runtime_checkable
class Tokenizer(Protocol):
    """Signals to ids and back; normalisation lives inside.

    `spec.quantity` says which stream of a clip it reads (`spec.quantity`, or `stream` for a generic track).
    """

    spec: ModalitySpec
    fingerprint: str
    stream: str

    def encode(self, clips: list[AlignedClip]) -> np.ndarray:
        """Ids (B, L) int32 of a list of clips that all have the stream."""
        ...

    def decode(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (B, T, ...) in the stream's unit and convention, and validity (B, T) bool, from ids (B, L)."""
        ...


def check_fingerprint(modality: str, *, found: str | None, wanted: str | None, where: str) -> None:
    """Raise TokenizerMismatch when both fingerprints are known and differ."""
    if found is not None and wanted is not None and found != wanted:
        raise TokenizerMismatch(
            f"{where}: tokens of {modality} were made by tokenizer {found}, but tokenizer {wanted} is expected; "
            f"tokenize the data again or name the tokenizer that made it"
        )
