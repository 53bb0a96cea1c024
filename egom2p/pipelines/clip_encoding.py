"""Prepared clips -> ids, on the device, in the wanted precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import AlignedClip, Tokenizer
from egom2p.pipelines.clip_reading import PreparedClips
from egom2p.tokenizers.protocol import TokenizerBatch


class ClipEncoder:
    """Encodes with several tokenizers at once.

    dtype        bf16 computes the networks under autocast: faster on GPUs; ids at the edge of a level or between two
                 codes may differ from those of fp32
    is_compiled  the networks' encoders go through torch.compile; batches are then filled up to `batch_size`
    """

    def __init__(
        self,
        tokenizers: Mapping[str, Tokenizer],
        *,
        device: torch.device,
        dtype: str,
        batch_size: int,
        is_compiled: bool,
    ) -> None:
        self.tokenizers, self.device, self.batch_size, self.is_compiled = (
            dict(tokenizers),
            device,
            batch_size,
            is_compiled,
        )
        self._is_bf16 = dtype == "bf16"
        for network in self._networks().values():
            if is_compiled:
                network.encoder.compile(dynamic=False)

    def encode(self, prepared: PreparedClips) -> dict[str, np.ndarray]:
        """Modality -> ids (B, L) int32 of the clips in `prepared`."""
        networks = self._networks()
        ids: dict[str, Any] = {}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._is_bf16):
            for name, inputs in prepared.inputs.items():
                ids[name] = (
                    inputs if isinstance(inputs, np.ndarray) else self._encoded(networks[name].encode_batch, inputs)
                )
        # Fetched after all were sent off, so that the device has work while the host waits.
        return {
            name: rows.astype(np.int32) if isinstance(rows, np.ndarray) else rows.to("cpu", torch.int32).numpy()
            for name, rows in ids.items()
        }

    def errors(
        self, clips: Sequence[AlignedClip], ids: Mapping[str, np.ndarray], tokenizers: Mapping[str, Tokenizer]
    ) -> list[dict[str, dict[str, float]]]:
        """Per clip: modality -> errors of decoding its ids (rows of `ids` in the order of the clips)."""
        networks = self._networks()
        errors: list[dict[str, dict[str, float]]] = [{} for _ in clips]
        for name, tokenizer in tokenizers.items():
            if name in networks:
                rows = networks[name].clip_errors(clips, ids[name])
            elif hasattr(tokenizer, "evaluate"):
                rows = [_without_usage(tokenizer.evaluate([clip])) for clip in clips]
            else:
                continue
            for per_clip, row in zip(errors, rows, strict=True):
                per_clip[name] = row
        return errors

    def _encoded(self, encode_batch: Callable[[TokenizerBatch], Tensor], inputs: TokenizerBatch) -> Tensor:
        count = inputs.num_clips
        if self.is_compiled and count < self.batch_size:
            # Every other number of clips would be compiled anew.
            inputs = TokenizerBatch.joined([inputs] * -(-self.batch_size // count))
            inputs = TokenizerBatch(
                {name: tensor[: self.batch_size] for name, tensor in inputs.tensors.items()}, (), self.batch_size
            )
        return encode_batch(inputs.to(self.device))[:count]

    def _networks(self) -> dict[str, Any]:
        named = {name: getattr(tokenizer, "network", None) for name, tokenizer in self.tokenizers.items()}
        return {name: network for name, network in named.items() if network is not None}


def _without_usage(measured: Mapping[str, float]) -> dict[str, float]:
    """Of a single clip the use of the codes says nothing."""
    return {name: value for name, value in measured.items() if name not in ("codes_used", "perplexity", "dead_codes")}
