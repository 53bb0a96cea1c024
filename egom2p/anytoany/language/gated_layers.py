"""Gated cross-attention: layers of the language model look at the media before the text (Flamingo).

R rows of T positions, S memory rows of a row's media items, C width of the memory, D width of the language model,
H heads, E width of a head.

Every gate starts at tanh(0) = 0, so the model begins as the language model it is made from.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from egom2p.anytoany.types import LanguageBatch
from egom2p.layers.padding import to_device


@dataclass(frozen=True)
class MediaMemory:
    """What the gated layers look at.

    memory  (R, S, C)   owner (R, S): number of each memory row's media item, -1 padding
    seen    (R, T): number of the media item that a position looks at, the last before it in its conversation; -2: none
    """

    memory: Tensor
    owner: Tensor
    seen: Tensor

    @property
    def may_attend(self) -> Tensor:
        """(R, T, S)."""
        return self.seen[:, :, None] == self.owner[:, None]

    def at(self, positions: Tensor | slice) -> "MediaMemory":
        """The same memory for some of the positions."""
        return MediaMemory(self.memory, self.owner, self.seen[:, positions])

    def of_rows(self, rows: Tensor) -> "MediaMemory":
        """What some rows look at, a row as often as it is named."""
        return MediaMemory(self.memory[rows], self.owner[rows], self.seen[rows])


class GatedCrossAttention(nn.Module):
    """hidden + tanh(a) attention(hidden, memory), then + tanh(b) mlp."""

    def __init__(self, width: int, memory_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q = nn.Linear(width, memory_width, bias=False)
        self.kv = nn.Linear(memory_width, 2 * memory_width, bias=False)
        self.proj = nn.Linear(memory_width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * memory_width), nn.GELU(), nn.Linear(2 * memory_width, width))
        self.attention_gate, self.mlp_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, media: MediaMemory) -> Tensor:
        """hidden (R, T, D) -> (R, T, D)."""
        # These layers train: they are float32 also beside a language model in half precision, where steps would vanish.
        wide = hidden.to(self.norm.weight.dtype)
        sees_media_RT1 = (media.seen >= 0)[:, :, None].to(wide.dtype)
        query_RHTE = rearrange(self.q(self.norm(wide)), "r t (h e) -> r h t e", h=self.num_heads)
        key_RHSE, value_RHSE = rearrange(self.kv(media.memory), "r s (two h e) -> two r h s e", two=2, h=self.num_heads)
        # A position without media sees all, and what it saw is taken away again: softmax over nothing is not a number.
        mask_R1TS = (media.may_attend | (media.seen < 0)[:, :, None])[:, None]
        attended = F.scaled_dot_product_attention(query_RHTE, key_RHSE, value_RHSE, attn_mask=mask_R1TS)
        seen = self.proj(rearrange(attended, "r h t e -> r t (h e)")) * sees_media_RT1
        wide = wide + self.attention_gate.tanh() * seen
        wide = wide + self.mlp_gate.tanh() * self.mlp(self.mlp_norm(wide)) * sees_media_RT1
        return wide.to(hidden.dtype)


class GatedLayers(nn.Module):
    """Gated layers before every `every`-th block of a language model, which is left as it is."""

    def __init__(self, blocks: nn.ModuleList, *, width: int, memory_width: int, num_heads: int, every: int) -> None:
        super().__init__()
        # The last block of every group: those before it read text alone.
        chosen = [block for number, block in enumerate(blocks) if number % every == every - 1]
        self.layers = nn.ModuleList(GatedCrossAttention(width, memory_width, num_heads) for _ in chosen)
        self.media: MediaMemory | None = None
        for block, layer in zip(chosen, self.layers, strict=True):
            # A hook, so that the model stays one that plain transformers saves and loads.
            block.register_forward_pre_hook(_looking(self, layer), with_kwargs=True)

    def look_at(self, media: MediaMemory | None) -> None:
        """What the next passes see; kept until the next call, for blocks computed again in the backward pass."""
        self.media = media


def media_memory(tokens: Tensor, batch: LanguageBatch, tokens_per_item: int) -> MediaMemory:
    """Memory of a batch from its media items' tokens (I * P, C), P = tokens_per_item."""
    num_rows, num_positions = batch.ids.shape
    rows_I, starts_I = batch.media_rows.numpy(), batch.media_starts.numpy()
    order_I = np.lexsort((starts_I, rows_I))
    per_row = np.bincount(rows_I, minlength=num_rows)
    inside_I = np.arange(len(rows_I)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    # Items of a row side by side, as many columns as the fullest row has: attention is then one call for all rows.
    item_RG = np.zeros((num_rows, max(1, int(per_row.max(initial=0)))), np.int64) - 1
    item_RG[rows_I[order_I], inside_I] = order_I
    owner_RG = to_device(item_RG, batch.ids.device)
    items = F.pad(tokens.view(-1, tokens_per_item, tokens.shape[-1]), (0, 0, 0, 0, 0, 1))  # the last one is for -1
    memory_RSC = rearrange(items[owner_RG], "r g p c -> r (g p) c")
    # The number of a position's last start so far, counted in reading order so that a running maximum finds it.
    rank_RT = torch.full((num_rows, num_positions), -1, dtype=torch.int64)
    rank_RT[torch.from_numpy(rows_I[order_I]), torch.from_numpy(starts_I[order_I])] = torch.arange(len(order_I))
    rank_RT = to_device(rank_RT.cummax(dim=1).values, batch.ids.device)
    if len(order_I) == 0:
        return MediaMemory(memory_RSC, owner_RG.repeat_interleave(tokens_per_item, 1), rank_RT - 1)
    order, start_rows, starts = (
        to_device(part, batch.ids.device) for part in (order_I, rows_I[order_I], starts_I[order_I])
    )
    segment_of_rank = batch.segments[start_rows, starts]
    is_same_RT = (rank_RT >= 0) & (segment_of_rank[rank_RT.clamp(min=0)] == batch.segments)
    # A start of the row before does not reach into this one: ranks run within rows because each row's begin at -1.
    seen_RT = torch.where(is_same_RT, order[rank_RT.clamp(min=0)], -2)
    return MediaMemory(memory_RSC, owner_RG.repeat_interleave(tokens_per_item, 1), seen_RT)


def _looking(owner: GatedLayers, layer: GatedCrossAttention) -> Any:
    def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if owner.media is None:
            return None
        if arguments:
            return (layer(arguments[0], owner.media), *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": layer(keywords["hidden_states"], owner.media)}

    return hook
