"""From perception features to perception tokens: rows of the language model's width.

N feature rows of I media items, W their width, P tokens of an item, M tokens of all items, C inner width, D width of
the language model, S slots of a space-time cell.

All but `global_mlp` cost parameters linear in P, or none per token.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egom2p.anytoany.perception.source import FeatureRows
from egom2p.anytoany.types import KINDS, PerceptionFeatures
from egom2p.config import Count, Natural, strict
from egom2p.layers.attention import AttentionLayout
from egom2p.layers.blocks import BlockConfig, CrossAttention, Mlp, initialize_linear, layer_norm
from egom2p.layers.padding import to_device

# Longest wavelength of position codes: grids of features have tens of positions, not thousands.
_PERIOD = 100.0
_WHITENING_FLOOR = 0.1  # of the mean variance of a direction


@strict
class ConnectorConfig:
    """How perception features become perception tokens.

    kind         global_mlp: their mean through two layers, as published (parameters grow with num_tokens squared)
                 st_shuffle: cells of neighbouring positions become one token each
                 resampler: learned queries look at the features
                 gated_xattn: a resampler whose rows stand beside the text; gated layers in the language model look at
                 them. The text holds one position per media item
    num_tokens   P, or P by kind of media; not of st_shuffle, where the count follows from the features
    nested       (global_mlp, resampler) further counts that training draws from: the first p of P tokens work alone
    cell         st_shuffle: positions along t, y, x that become one token
    pool         st_shuffle: blocks of so many positions of a cell first become their mean: what a block holds, not
                 where in it. Far fewer parameters; divides `cell`
    whiten       st_shuffle: features are deviations from the training mean of their slot, with unit variance in all
                 directions. 94 to 98 % of the states of an encoder are the same in every clip, two fifths of what is
                 left lie in one direction, and what is looked at lies in others
    num_words    st_shuffle: perception tokens are mixtures of the embeddings of at most so many words of the answers,
                 which they learn to name before the language model is asked (see `word_lessons`); 0: any vectors
    word_steps   steps in which they learn it
    positions    st_shuffle: mark rows with their position, which features of pictures do not tell
    dim          C, channels of the connector
    depth        cross-attention blocks of the resampler
    every        gated_xattn: a gated layer before every so many layers of the language model
    """

    kind: Literal["global_mlp", "st_shuffle", "resampler", "gated_xattn"] = "resampler"
    num_tokens: Count | dict[str, Count] = 8
    nested: tuple[Count, ...] = ()
    cell: tuple[Count, Count, Count] = (1, 1, 1)
    pool: tuple[Count, Count, Count] = (1, 1, 1)
    whiten: bool = False
    num_words: Natural = 0
    word_steps: Count = 300
    positions: bool = False
    dim: Count = 256
    depth: Count = 2
    num_heads: Count = 4
    every: Count = 1

    def __post_init__(self) -> None:
        counts = self.num_tokens if isinstance(self.num_tokens, dict) else {"num_tokens": self.num_tokens}
        if isinstance(self.num_tokens, dict) and (unknown := sorted(set(counts) - set(KINDS))):
            raise ValueError(f"num_tokens: no kind of media {unknown[0]!r}; kinds are {KINDS}")
        if not counts or min(counts.values()) < 1:
            raise ValueError(f"num_tokens must be at least 1, got {self.num_tokens}")
        if self.kind == "gated_xattn" and isinstance(self.num_tokens, dict):
            raise ValueError("gated layers see one number of tokens per media item; give num_tokens one number")
        if (self.whiten or self.num_words) and self.kind != "st_shuffle":
            raise ValueError(f"connector.whiten and num_words belong to st_shuffle, found {self.kind}")
        if self.nested and self.kind not in ("global_mlp", "resampler"):
            raise ValueError(f"nested counts need a connector of kind global_mlp or resampler, got {self.kind}")
        if self.nested and not 1 <= min(self.nested) <= max(self.nested) <= self.max_tokens:
            raise ValueError(f"nested counts must lie in 1 ... {self.max_tokens} (num_tokens), got {self.nested}")
        if min(self.pool) < 1 or any(positions % block for positions, block in zip(self.cell, self.pool, strict=True)):
            raise ValueError(f"pool must divide cell, got pool {self.pool} and cell {self.cell}")
        if (max(self.pool) > 1 or self.positions) and self.kind != "st_shuffle":
            raise ValueError(f"pool and positions need a connector of kind st_shuffle, got {self.kind}")
        if self.dim % self.num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {self.dim} and {self.num_heads}")

    @property
    def max_tokens(self) -> int:
        return max(self.num_tokens.values()) if isinstance(self.num_tokens, dict) else self.num_tokens

    def tokens_of_kind(self, kind: str) -> int:
        """P of a kind of media."""
        if not isinstance(self.num_tokens, dict):
            return self.num_tokens
        if kind not in self.num_tokens:
            raise ValueError(f"connector.num_tokens names no count for {kind}; it has {sorted(self.num_tokens)}")
        return self.num_tokens[kind]

    def span_length(self, item: PerceptionFeatures, kind: str, wanted: int | None = None) -> int:
        """Positions of a media item in the text. `wanted`: one of `nested`, in place of the full count."""
        if self.kind == "st_shuffle":
            return len(np.unique(self._cells(item)))
        if wanted is not None and wanted not in (*self.nested, self.tokens_of_kind(kind)):
            raise ValueError(f"{wanted} perception tokens are none of the trained counts {self.nested}")
        if self.kind == "gated_xattn":
            return 1
        return wanted or self.tokens_of_kind(kind)

    def _cells(self, item: PerceptionFeatures) -> np.ndarray:
        """(N,) one number for each cell of a source; asked for every conversation, and whole rows sort slowly."""
        cells_N3 = item.position // np.asarray(self.cell, np.int16)
        return np.ravel_multi_index((item.source, *cells_N3.T), (1 << 15,) * 4)


class GlobalMlp(nn.Module):
    """Mean of the rows -> Linear(W, P D), GELU, LayerNorm, Linear(P D, P D): the published projector."""

    def __init__(self, config: ConnectorConfig, width: int, out_width: int) -> None:
        super().__init__()
        self.num_tokens = config.max_tokens
        total = self.num_tokens * out_width
        self.layers = nn.Sequential(nn.Linear(width, total), nn.GELU(), nn.LayerNorm(total), nn.Linear(total, total))

    def forward(self, rows: FeatureRows, counts: Sequence[int]) -> Tensor:
        """Tokens (M, D), item after item; `counts`: tokens of each item."""
        num_items = len(rows.lengths)
        owner_N = _repeated(range(num_items), rows.lengths, rows.features.device)
        sums_IW = rows.features.new_zeros(num_items, rows.features.shape[1]).index_add(0, owner_N, rows.features)
        lengths_I1 = to_device(rows.lengths, sums_IW.device, sums_IW.dtype).clamp(min=1)[:, None]
        tokens_PD = self.layers(sums_IW / lengths_I1).unflatten(-1, (self.num_tokens, -1)).flatten(0, 1)
        return tokens_PD[_first_of_each(counts, self.num_tokens, tokens_PD.device)]


class SpaceTimeShuffle(nn.Module):
    """Cells of t x y x x positions: Linear(W, C) per position, then one Linear(S C, D) per cell.

    A cell has S slots: its positions, or where `pool` is given its blocks of positions, of each of which the mean
    counts. Of plain codes that is a linear map of how often each code occurs in the block. Slots that an item does
    not have are 0. Tokens are ordered by item, source, t, y, x.
    """

    def __init__(self, config: ConnectorConfig, width: int, out_width: int, num_sources: int) -> None:
        super().__init__()
        self.register_buffer("cell", torch.tensor(config.cell), persistent=False)
        self.register_buffer("pool", torch.tensor(config.pool), persistent=False)
        self.is_pooled, self.has_positions = max(config.pool) > 1, config.positions
        self.num_slots = math.prod(config.cell) // math.prod(config.pool)
        self.norm = nn.Identity() if config.whiten else layer_norm(width, use_bias=True)
        self.reduce = nn.Linear(width, config.dim)
        self.source_table = nn.Parameter(torch.randn(num_sources, config.dim) * 0.02)
        self.mean_norm = layer_norm(config.dim, use_bias=True) if self.is_pooled else nn.Identity()
        self.out = nn.Linear(self.num_slots * config.dim, out_width)
        if self.is_pooled:
            self.register_buffer("gain", torch.ones(()))
        self.is_whitened = config.whiten
        if config.whiten:
            self.register_buffer("centre", torch.zeros(num_sources, self.num_slots, width))
            self.register_buffer("whitening", torch.eye(width).repeat(num_sources, 1, 1))
        self.has_words = config.num_words > 0
        if self.has_words:
            # The first row is silence; rows of 0 are no words.
            self.register_buffer("words", torch.zeros(1 + config.num_words, out_width))
            self.register_buffer("is_word", torch.zeros(1 + config.num_words, dtype=torch.bool))
            self.sharpness = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def fit(self, rows: FeatureRows) -> None:
        """Mean of each source and slot, and how deviations of each source spread, over the rows of training items."""
        features_NW, source_N = rows.features.float(), rows.source.long()
        slots_N = source_N * self.num_slots + self._slots(rows)
        counts_S = torch.bincount(slots_N, minlength=self.centre.shape[0] * self.num_slots)
        sums_SW = torch.zeros_like(self.centre).flatten(0, 1).index_add(0, slots_N, features_NW)
        self.centre.copy_((sums_SW / counts_S.clamp(min=1)[:, None]).view_as(self.centre))
        deviations_NW = features_NW - self.centre.flatten(0, 1)[slots_N]
        for number, whitening_WW in enumerate(self.whitening):
            own_NW = deviations_NW[source_N == number]
            variance_W, directions_WW = torch.linalg.eigh(own_NW.T @ own_NW / max(len(own_NW), 1))
            # A direction in which items hardly differ must not be blown up.
            floor = _WHITENING_FLOOR * variance_W.mean() + 1e-8
            whitening_WW.copy_(directions_WW / (variance_W.clamp(min=0) + floor).sqrt())

    def _slots(self, rows: FeatureRows) -> Tensor:
        """Slot (N,) of each row in its cell."""
        slots_3 = self.cell // self.pool
        inner_N3 = rows.position.long() % self.cell // self.pool
        return (inner_N3[:, 0] * slots_3[1] + inner_N3[:, 1]) * slots_3[2] + inner_N3[:, 2]

    def forward(self, rows: FeatureRows, counts: Sequence[int]) -> Tensor:
        tokens_MD = self.vectors(rows, counts)
        return self.said(tokens_MD) @ self.words.to(tokens_MD.dtype) if self.has_words else tokens_MD

    def vectors(self, rows: FeatureRows, counts: Sequence[int]) -> Tensor:
        """Perception tokens (M, D) before they become words, where they do."""
        total, source_N, slot_N = sum(counts), rows.source.long(), self._slots(rows)
        cell_N = _cell_of_each(rows, self.cell, total)
        at_N = cell_N * self.num_slots + slot_N
        sizes_S1 = rows.features.new_zeros(total * self.num_slots).index_add(
            0, at_N, rows.features.new_ones(len(at_N))
        )[:, None]

        def means(values_NX: Tensor) -> Tensor:
            sums_SX = values_NX.new_zeros(len(sizes_S1), values_NX.shape[1]).index_add(0, at_N, values_NX)
            return sums_SX / sizes_S1.clamp(min=1)

        # All up to `mean_norm` is linear but for `norm`: a block is averaged first, and the rest done once for it.
        source_S = source_N.new_zeros(total).index_copy(0, cell_N, source_N).repeat_interleave(self.num_slots)
        if self.is_whitened:
            features_SW = self._whitened(means(rows.features - self.centre[source_N, slot_N]), source_S)
        else:
            features_SW = means(self.norm(rows.features))
        hidden_SC = self.reduce(features_SW) + self.source_table[source_S]
        if self.has_positions:
            hidden_SC = hidden_SC + means(position_codes(rows.position, hidden_SC.shape[1]).to(hidden_SC.dtype))
        hidden_SC = self.mean_norm(hidden_SC) * (sizes_S1 > 0)
        tokens_MD = self.out(hidden_SC.view(total, -1))
        return tokens_MD * self.gain if self.is_pooled else tokens_MD

    def said(self, tokens_MD: Tensor) -> Tensor:
        """How much each token says each word, (M, 1 + words), 1 in all; the first is silence."""
        directions_VD = F.normalize(self.words, dim=1).to(tokens_MD.dtype)
        logits_MV = (tokens_MD @ directions_VD.T).float() * self.sharpness.exp()
        return logits_MV.masked_fill(~self.is_word, -1e9).softmax(-1).to(tokens_MD.dtype)

    def _whitened(self, features_SW: Tensor, source_S: Tensor) -> Tensor:
        """Deviations in the directions of their source, each of unit variance in training."""
        whitened_SW = torch.zeros_like(features_SW)
        for number, whitening_WW in enumerate(self.whitening):  # few sources: no waiting for which rows are whose
            is_own_S1 = (source_S == number)[:, None]
            whitened_SW = torch.where(is_own_S1, features_SW @ whitening_WW.to(features_SW.dtype), whitened_SW)
        return whitened_SW


class Resampler(nn.Module):
    """P learned queries look at each item's features. Queries do not see one another: the first p work alone."""

    def __init__(self, config: ConnectorConfig, width: int, out_width: int, num_sources: int) -> None:
        super().__init__()
        block = BlockConfig(dim=config.dim, num_heads=config.num_heads, activation="gelu", use_bias=True)
        self.num_tokens = config.max_tokens
        self.norm = layer_norm(width, use_bias=True)
        self.reduce = nn.Linear(width, config.dim)
        self.source_table = nn.Parameter(torch.randn(num_sources, config.dim) * 0.5)
        self.queries = nn.Parameter(torch.randn(self.num_tokens, config.dim) * 0.5)
        self.context_norm = layer_norm(config.dim, use_bias=True)
        self.blocks = nn.ModuleList(_ResamplerBlock(block) for _ in range(config.depth))
        self.out_norm = layer_norm(config.dim, use_bias=True)
        self.out = nn.Linear(config.dim, out_width)
        self.blocks.apply(initialize_linear)

    def forward(self, rows: FeatureRows, counts: Sequence[int]) -> Tensor:
        context_NC = self.reduce(self.norm(rows.features)) + self.source_table[rows.source.long()]
        context_NC = self.context_norm(
            context_NC + position_codes(rows.position, context_NC.shape[1]).to(context_NC.dtype)
        )
        if max(counts, default=0) > self.num_tokens:
            raise ValueError(f"{max(counts)} perception tokens asked for, the connector has {self.num_tokens}")
        device = context_NC.device
        number_M = to_device(_concatenated([np.arange(count) for count in counts]), device)
        hidden_MC = self.queries[number_M].to(context_NC.dtype)
        layout = AttentionLayout(_offsets(counts, device), _offsets(rows.lengths, device), tuple(counts), rows.lengths)
        for block in self.blocks:
            hidden_MC = block(hidden_MC, context_NC, layout)
        return self.out(self.out_norm(hidden_MC))


class _ResamplerBlock(nn.Module):
    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm1 = layer_norm(config.dim, use_bias=True)
        self.attn = CrossAttention(config)
        self.norm2 = layer_norm(config.dim, use_bias=True)
        self.mlp = Mlp(config)

    def forward(self, hidden: Tensor, context: Tensor, layout: AttentionLayout) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), context, layout)
        return hidden + self.mlp(self.norm2(hidden))


def build_connector(config: ConnectorConfig, *, width: int, out_width: int, num_sources: int) -> nn.Module:
    """width W of features -> out_width D. `num_sources`: values that `source` of a row can have."""
    if config.kind == "global_mlp":
        return GlobalMlp(config, width, out_width)
    if config.kind == "st_shuffle":
        return SpaceTimeShuffle(config, width, out_width, num_sources)
    return Resampler(config, width, out_width, num_sources)


@torch.no_grad()
def match_scale(connector: nn.Module, table: Tensor) -> None:
    """Make new perception tokens of cells as large as the language model's own embeddings (V, D).

    Others keep the size that linear layers start with. A resampler learns slowly from weights so small that a step of
    Adam is as large as they are: 10 % of unseen captions right instead of 100 % after the same 150 steps. So does
    a pooled shuffle, whose tokens get a constant factor instead.
    """
    sample = table[:: max(1, len(table) // 1024)].float()
    size = float(sample.square().mean().sqrt())
    if isinstance(connector, SpaceTimeShuffle) and connector.is_pooled:
        connector.gain.fill_(size)
    elif isinstance(connector, SpaceTimeShuffle):
        # What `out` is fed has variance about 1 per number.
        nn.init.normal_(connector.out.weight, std=size / math.sqrt(connector.out.in_features))
        nn.init.zeros_(connector.out.bias)


def position_codes(position: Tensor, dim: int) -> Tensor:
    """Sines and cosines (N, dim) of positions (N, 3), a third of the width for each axis; what is left over is 0."""
    num_angles = dim // 6
    rates_E = _PERIOD ** -(torch.arange(num_angles, device=position.device, dtype=torch.float32) / max(num_angles, 1))
    angles_NE = (position.float()[:, :, None] * rates_E).flatten(1)
    return F.pad(torch.cat([angles_NE.sin(), angles_NE.cos()], dim=1), (0, dim - 6 * num_angles))


def _cell_of_each(rows: FeatureRows, cell: Tensor, total: int) -> Tensor:
    """Number (N,) of each row's cell among the cells of all items; an error where there are not `total` of them."""
    cells_N3 = rows.position.long() // cell
    item_N = _repeated(range(len(rows.lengths)), rows.lengths, cells_N3.device)
    # int16 positions leave 15 bits for each axis.
    inside_N = ((rows.source.long() << 45) | (cells_N3[:, 0] << 30)) | ((cells_N3[:, 1] << 15) | cells_N3[:, 2])
    number_N, num_cells = _cell_numbers(item_N, inside_N)
    torch._assert_async(num_cells == total, f"the features have other cells than the {total} positions of the text")
    return number_N.clamp(max=max(total - 1, 0))


def _cell_numbers(item_N: Tensor, inside_N: Tensor) -> tuple[Tensor, Tensor]:
    """Number of each row's cell among all cells sorted by (item, cell), and how many there are; no waiting."""
    order_N = torch.argsort(inside_N, stable=True)
    order_N = order_N[torch.argsort(item_N[order_N], stable=True)]
    item, inside = item_N[order_N], inside_N[order_N]
    is_new = (item.diff() != 0) | (inside.diff() != 0)
    number_sorted = F.pad(is_new.cumsum(0), (min(1, len(item)), 0))
    number_N = torch.empty_like(number_sorted).index_copy_(0, order_N, number_sorted)
    return number_N, number_sorted[-1:].sum() + min(1, len(item))


def _first_of_each(counts: Sequence[int], num_tokens: int, device: torch.device) -> Tensor:
    if max(counts, default=0) > num_tokens:
        raise ValueError(f"{max(counts)} perception tokens asked for, the connector has {num_tokens}")
    rows = [number * num_tokens + np.arange(count) for number, count in enumerate(counts)]
    return to_device(_concatenated(rows), device)


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _repeated(values: Sequence[int], lengths: Sequence[int], device: torch.device) -> Tensor:
    return to_device(np.repeat(np.asarray(values, np.int64), np.asarray(lengths, np.int64)), device)


def _offsets(lengths: Sequence[int], device: torch.device) -> Tensor:
    return to_device(np.cumsum([0, *lengths], dtype=np.int32), device)
