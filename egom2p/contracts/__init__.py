"""The types of the project: what one part hands to the next. Imports nothing of the project."""

from egom2p.contracts.batches import LossOutput, MaskedClip, PackedBatch
from egom2p.contracts.checks import check_shape, plain_name
from egom2p.contracts.clips import AlignedClip, FrameSource, Intrinsics, Provenance, Recording, Stream
from egom2p.contracts.quantities import QUANTITIES, Quantity, quantity_of_stream
from egom2p.contracts.tokens import ModalitySpec, TokenClip, TokenGrid, Tokenizer, TokenizerMismatch, check_fingerprint

__all__ = [
    "QUANTITIES",
    "AlignedClip",
    "FrameSource",
    "Intrinsics",
    "LossOutput",
    "MaskedClip",
    "ModalitySpec",
    "PackedBatch",
    "Provenance",
    "Quantity",
    "Recording",
    "Stream",
    "TokenClip",
    "TokenGrid",
    "Tokenizer",
    "TokenizerMismatch",
    "check_fingerprint",
    "check_shape",
    "quantity_of_stream",
    "plain_name",
]
