"""What a training step of a language model keeps in memory, found by taking it with tensors that hold no numbers.

R rows of T positions, D width.

Torch itself says what the backward pass of one and of two blocks keeps; every further block keeps as much as the
second. So any family, adapter and precision is counted as it is. Attention is that of rows without padding, as on CUDA.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from egom2p.anytoany.language import packed_attention
from egom2p.layers.attention import AttentionLayout
from egom2p.layers.lora import LoraConfig, attach_lora

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class BlockMemory:
    """Bytes of the blocks of a language model.

    kept        by autograd for the backward pass, of all blocks and the last norm; autocast's copies of weights too
    workspace   most that one block needs beside them in its backward pass; with recomputed blocks, what it keeps too
    """

    kept: int
    workspace: int


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made under it that are alive, `now` and at most (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage(), given)
        return found

    def _note(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        number, size = storage._cdata, storage.nbytes()
        if number in self._known or number in given:
            return
        self._known.add(number)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, number, size)

    def _forget(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.now -= size


def block_memory(
    settings: "PretrainedConfig",
    *,
    rows: int,
    positions: int,
    dtype: torch.dtype,
    lora: LoraConfig | None,
    is_full: bool,
    is_mixed: bool,
    recompute: bool,
) -> BlockMemory:
    """Bytes of a step on R = rows of T = positions.

    dtype    of the weights          lora      adapters of a frozen model; None: none
    is_full  whether all of it trains   is_mixed  whether matrix products are made in bfloat16 by autocast
    """
    options = {"rows": rows, "positions": positions, "lora": lora, "is_full": is_full, "is_mixed": is_mixed}
    one, two = (_passes(_decoder(settings, number, dtype, lora, is_full), **options) for number in (1, 2))
    depth = settings.num_hidden_layers
    of_block = two.kept - one.kept
    if not recompute:
        return BlockMemory(one.kept + (depth - 1) * of_block, one.workspace)
    block_input = rows * positions * settings.hidden_size * dtype.itemsize
    return BlockMemory(one.kept - of_block + depth * block_input, one.workspace + of_block)


def _decoder(
    settings: "PretrainedConfig", num_blocks: int, dtype: torch.dtype, lora: LoraConfig | None, is_full: bool
) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    values = settings.to_dict() | {"num_hidden_layers": num_blocks}
    if values.get("layer_types") is not None:
        values["layer_types"] = values["layer_types"][:num_blocks]
    fewer = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(fewer, dtype=dtype, attn_implementation=packed_attention.register())
        lm.requires_grad_(is_full)
        if lora is not None:
            attach_lora(lm, lora)
    return lm.base_model.train()


def _passes(
    decoder: nn.Module,
    *,
    rows: int,
    positions: int,
    lora: LoraConfig | None,
    is_full: bool,
    is_mixed: bool,
) -> BlockMemory:
    """Bytes kept by a forward pass, and the most that is alive beside them while it is gone back."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    shapes = [*decoder.named_parameters(), *decoder.named_buffers()]
    width, dtype = decoder.get_input_embeddings().weight.shape[1], decoder.dtype
    with FakeTensorMode(), LiveBytes() as live:
        weights = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
            for name, tensor in shapes
        }
        embeddings_RTD = torch.empty(rows, positions, width, dtype=dtype, requires_grad=True)
        positions_RT = torch.zeros(rows, positions, dtype=torch.int64)
        offsets = torch.arange(rows + 1, dtype=torch.int32) * positions
        layout = AttentionLayout.within(offsets, (positions,) * rows, is_causal=True)
        own = {tensor.untyped_storage()._cdata for tensor in weights.values()}
        kept: dict[int, Tensor] = {}

        def note(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage()._cdata not in own:
                kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        for tensor in weights.values():
            if tensor.requires_grad:  # as from the second micro-batch on
                tensor.grad = torch.empty_like(tensor)
        before = live.now
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = _hidden(decoder, weights, embeddings_RTD, positions_RT, layout, is_mixed=is_mixed)
        num_kept = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        kept.clear()
        live.peak = live.now
        hidden.backward(torch.empty_like(hidden))
        return BlockMemory(num_kept, max(0, live.peak - before - num_kept))


def _hidden(
    decoder: nn.Module,
    weights: Mapping[str, Tensor],
    embeddings_RTD: Tensor,
    positions_RT: Tensor,
    layout: AttentionLayout,
    *,
    is_mixed: bool,
) -> Tensor:
    call = {
        "inputs_embeds": embeddings_RTD,
        "position_ids": positions_RT,
        "attention_mask": embeddings_RTD.new_zeros(1, 1, 1, 1),
        "use_cache": False,
        "layout": layout,
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        return torch.func.functional_call(decoder, dict(weights), kwargs=call).last_hidden_state
