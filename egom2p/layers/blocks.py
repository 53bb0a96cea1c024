"""Transformer blocks over rows laid end to end, for models and tokenizers alike.

N rows, P context rows, D width, H heads, E = D / H, C hidden width of the MLP.
Pre-norm; norm epsilon 1e-6. Weights are named as in the published checkpoints.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from egom2p.config import Count, Positive, strict
from egom2p.contracts import TokenGrid
from egom2p.layers.attention import AttentionLayout, Backend, FlashLayout, MixedLayout, attend, choose_backend


@strict
class BlockConfig:
    """Width and shape of one transformer block."""

    dim: Count  # channels of a token
    num_heads: Count
    mlp_ratio: Positive = 4.0  # width of the hidden layer of an MLP, in dim
    activation: Literal["swiglu", "gelu"] = "swiglu"  # of the MLP
    use_bias: bool = False  # in linear layers and norms
    qk_norm: bool = False  # normalises queries and keys per head
    attention_backend: Backend = "auto"  # auto: what is fastest here

    def __post_init__(self) -> None:
        if self.dim % self.num_heads != 0:
            raise ValueError(f"dim must be a multiple of num_heads, got {self.dim} and {self.num_heads}")

    @property
    def mlp_dim(self) -> int:
        """SwiGLU has three matrices instead of two, so it is narrower by a third."""
        factor = 2 / 3 if self.activation == "swiglu" else 1.0
        return int(factor * self.mlp_ratio * self.dim)


class Mlp(nn.Module):
    """fc2(gelu(fc1 x)), or fc2(silu(fc1 x) * fc3 x)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.is_gated = config.activation == "swiglu"
        self.fc1 = nn.Linear(config.dim, config.mlp_dim, bias=config.use_bias)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim, bias=config.use_bias)
        if self.is_gated:
            self.fc3 = nn.Linear(config.dim, config.mlp_dim, bias=config.use_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden_NC = F.silu(self.fc1(hidden)) * self.fc3(hidden) if self.is_gated else F.gelu(self.fc1(hidden))
        return self.fc2(hidden_NC)


class SelfAttention(nn.Module):
    """Rows of a segment see each other."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.backend = config.attention_backend
        self.attend = attend
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.use_bias)
        self.q_norm, self.k_norm = _head_norms(config)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.use_bias)

    def forward(self, hidden: Tensor, layout: AttentionLayout | MixedLayout) -> Tensor:
        query_NHE, key_NHE, value_NHE = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        attended_NHE = self.attend(self.q_norm(query_NHE), self.k_norm(key_NHE), value_NHE, layout, self.backend)
        return self.proj(attended_NHE.flatten(1))


class CrossAttention(nn.Module):
    """Rows of a segment see the context rows of that segment."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.backend = config.attention_backend
        self.attend = attend
        self.q = nn.Linear(config.dim, config.dim, bias=config.use_bias)
        self.kv = nn.Linear(config.dim, 2 * config.dim, bias=config.use_bias)
        self.q_norm, self.k_norm = _head_norms(config)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.use_bias)

    def forward(self, hidden: Tensor, context: Tensor, layout: AttentionLayout) -> Tensor:
        query_NHE = self.q(hidden).unflatten(-1, (self.num_heads, -1))
        key_PHE, value_PHE = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).unbind(1)
        attended_NHE = self.attend(self.q_norm(query_NHE), self.k_norm(key_PHE), value_PHE, layout, self.backend)
        return self.proj(attended_NHE.flatten(1))


class EncoderBlock(nn.Module):
    """Self-attention and MLP."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm1 = layer_norm(config.dim, use_bias=config.use_bias)
        self.attn = SelfAttention(config)
        self.norm2 = layer_norm(config.dim, use_bias=config.use_bias)
        self.mlp = Mlp(config)

    def forward(
        self, hidden: Tensor, layout: AttentionLayout | MixedLayout, branch_scale: Tensor | None = None
    ) -> Tensor:
        """hidden (N, D) -> (N, D). branch_scale (N, 2): stochastic depth of both branches, None for none."""
        hidden = _add(hidden, self.attn(self.norm1(hidden), layout), branch_scale, 0)
        return _add(hidden, self.feed_forward(hidden), branch_scale, 1)

    def feed_forward(self, hidden: Tensor) -> Tensor:
        return self.mlp(self.norm2(hidden))


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to the context, MLP."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm1 = layer_norm(config.dim, use_bias=config.use_bias)
        self.self_attn = SelfAttention(config)
        self.query_norm = layer_norm(config.dim, use_bias=config.use_bias)
        self.context_norm = layer_norm(config.dim, use_bias=config.use_bias)
        self.cross_attn = CrossAttention(config)
        self.norm2 = layer_norm(config.dim, use_bias=config.use_bias)
        self.mlp = Mlp(config)

    def forward(
        self,
        hidden: Tensor,
        context: Tensor,
        self_layout: AttentionLayout | MixedLayout,
        cross_layout: AttentionLayout,
        branch_scale: Tensor | None = None,
    ) -> Tensor:
        """hidden (N, D), context (P, D) -> (N, D). branch_scale (N, 3): one column per branch, None for none."""
        hidden = _add(hidden, self.self_attn(self.norm1(hidden), self_layout), branch_scale, 0)
        seen = self.cross_attn(self.query_norm(hidden), self.context_norm(context), cross_layout)
        hidden = _add(hidden, seen, branch_scale, 1)
        return _add(hidden, self.feed_forward(hidden), branch_scale, 2)

    def feed_forward(self, hidden: Tensor) -> Tensor:
        return self.mlp(self.norm2(hidden))


def layer_norm(dim: int, *, use_bias: bool) -> nn.LayerNorm:
    """LayerNorm with the published epsilon, with or without bias."""
    return RowNorm(dim, eps=1e-6, bias=use_bias)


def initialize_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases, as 4M; q, k and v in one matrix count as separate matrices."""
    if isinstance(module, SelfAttention):
        _xavier_uniform(module.qkv, num_parts=3)
        _xavier_uniform(module.proj)
    elif isinstance(module, CrossAttention):
        _xavier_uniform(module.kv, num_parts=2)
        _xavier_uniform(module.q)
        _xavier_uniform(module.proj)
    elif isinstance(module, Mlp):
        for layer in module.children():
            _xavier_uniform(layer)


def _xavier_uniform(layer: nn.Linear, num_parts: int = 1) -> None:
    num_out, num_in = layer.weight.shape
    bound = math.sqrt(6 / (num_out / num_parts + num_in))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class RowNorm(nn.LayerNorm):
    """Norm of rows that may be wider than its weights: sharded blocks hold those in half precision."""

    def forward(self, rows_ND: Tensor) -> Tensor:
        if self.weight.dtype == rows_ND.dtype or rows_ND.dtype != torch.float32:
            return super().forward(rows_ND)
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(rows_ND, self.normalized_shape, self.weight.float(), bias, self.eps)


class HeadNorm(nn.LayerNorm):
    """Norm of one head's queries or keys, in the precision they come in (autocast would widen them)."""

    def forward(self, rows_NHE: Tensor) -> Tensor:
        return super().forward(rows_NHE).to(rows_NHE.dtype)


def _head_norms(config: BlockConfig) -> tuple[nn.Module, nn.Module]:
    if not config.qk_norm:
        return nn.Identity(), nn.Identity()
    head_dim = config.dim // config.num_heads
    query_norm, key_norm = (HeadNorm(head_dim, eps=1e-6, bias=config.use_bias) for _ in range(2))
    return query_norm, key_norm


def _add(hidden: Tensor, branch: Tensor, branch_scale: Tensor | None, number: int) -> Tensor:
    if branch_scale is None:
        return hidden + branch
    return hidden + branch * branch_scale[:, number, None].to(branch.dtype)


def draw_branch_scale(
    num_clips: int,
    num_branches: int,
    rate: float,
    *,
    device: torch.device | str,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(num_clips, num_branches) float32: 0 with probability `rate`, else 1 / (1 - rate): the mean stays 1.

    Without a generator torch's own state of the device is drawn from.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"a drop rate is in [0, 1), got {rate}")
    draws = torch.rand(num_clips, num_branches, device=device, generator=generator)
    return (draws >= rate).float() / (1 - rate)


def spread_over_rows(values: Tensor, offsets: Tensor, num_rows: int) -> Tensor:
    """(B, C), one line per clip -> (num_rows, C), one line per row; `offsets` (B+1,) say where clips begin."""
    return torch.repeat_interleave(values, offsets.diff(), dim=0, output_size=num_rows)


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Our blocks, in the order they were built: what is recomputed, compiled or sharded as one piece."""
    return [module for module in model.modules() if isinstance(module, EncoderBlock | DecoderBlock)]


def foreign_blocks(model: nn.Module) -> list[nn.Module]:
    """Blocks of another library's model inside this one, which it names itself (method `foreign_blocks`)."""
    return list(model.foreign_blocks()) if hasattr(model, "foreign_blocks") else []


def recompute_in_backward(block: nn.Module, part: Literal["block", "mlp"] = "block") -> None:
    """Activation checkpointing: the block, or its MLP with the norm before it, keeps its input only, and computes the
    rest again in the backward pass."""
    if isinstance(block, EncoderBlock | DecoderBlock):
        # Our blocks draw nothing: stochastic depth comes from outside. Keeping random states would cost host time.
        name = "forward" if part == "block" else "feed_forward"
        again = functools.partial(checkpoint, getattr(block, name), use_reentrant=False, preserve_rng_state=False)
        setattr(block, name, again)
    elif not getattr(block, "gradient_checkpointing", False):  # a block of transformers may be told to do so itself
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def compile_block(block: nn.Module) -> None:
    """Compile a block: one graph with flash attention in it; elsewhere attention, whose plan depends on the lengths
    of the batch, stands apart from two compiled pieces."""
    attentions = [module for module in block.modules() if isinstance(module, SelfAttention | CrossAttention)]
    for module in attentions:
        module.attend = _attend_when_compiled()
    backends = {module.backend for module in attentions}
    head_width = attentions[0].proj.in_features // attentions[0].num_heads
    # What one kernel makes of tensors that are kept anyway (norms, SwiGLU) is made again in the backward pass: 12 GB
    # less at 131,072 rows of the base model for 12 GB of traffic, an estimated 3 ms of 330 on an H200. For the whole
    # process: around each call the switch would cost 15 us a block, and nothing else here has a compiled backward pass.
    if hasattr(torch._functorch.config, "ban_recompute_materialized_backward"):  # private: a torch may lack it
        torch._functorch.config.ban_recompute_materialized_backward = False
    compiled = torch.compile(block.forward, dynamic=True)

    def forward(hidden: Tensor, *inputs: Any) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        if backends <= {"auto", "flash"} and choose_backend(device, dtype, head_width) == "flash":
            inputs = tuple(_for_flash(value) for value in inputs)
        return compiled(hidden, *inputs)

    block.forward = forward


@functools.cache
def _attend_when_compiled() -> Callable[..., Tensor]:
    """One function for all blocks: the compiler tells functions apart."""
    apart = torch.compiler.disable(attend)

    def attend_when_compiled(query: Tensor, key: Tensor, value: Tensor, layout: Any, backend: Backend) -> Tensor:
        is_flash = isinstance(layout, FlashLayout)
        return (attend if is_flash else apart)(query, key, value, layout, backend)

    return attend_when_compiled


def _for_flash(value: Any) -> Any:
    return value.flash if isinstance(value, AttentionLayout) and value.sees_anything else value


def sincos_positions(grid: TokenGrid, dim: int, *, period: float = 10000.0, scale: float = 1.0) -> Tensor:
    """Codes (L, D) float32 of all positions of a grid, row-major.

    period   longest wavelength / 2 pi: angles run from position to position / period
    scale    positions are multiplied by this first (above 1: neighbours differ more)
    """
    if len(grid.shape) == 1:
        angles_LE = _angles(grid.shape[0], dim // 2, period=period, scale=scale)
        codes_LD = torch.cat([angles_LE.sin(), angles_LE.cos()], dim=-1)
    else:
        codes_LD = _codes_of_grid(grid, dim // 6, period=period, scale=scale)
    padded_LD = torch.zeros(grid.num_tokens, dim)
    padded_LD[:, : codes_LD.shape[1]] = codes_LD
    return padded_LD


def _codes_of_grid(grid: TokenGrid, num_angles: int, *, period: float, scale: float) -> Tensor:
    per_axis = []
    for axis, size in enumerate(grid.shape):
        angles_SE = _angles(size, num_angles, period=period, scale=scale)
        codes_SC = rearrange([angles_SE.sin(), angles_SE.cos()], "two s e -> s (e two)")
        shape = [1, 1, 1, 2 * num_angles]
        shape[axis] = size
        per_axis.append(codes_SC.view(shape).expand(*grid.shape, -1))
    return rearrange(torch.cat(per_axis, dim=-1), "t h w d -> (t h w) d")


def _angles(num_positions: int, num_angles: int, *, period: float, scale: float) -> Tensor:
    """(num_positions, num_angles) float64."""
    exponents_E = torch.arange(num_angles, dtype=torch.float64) / max(num_angles, 1)
    positions_S = torch.arange(num_positions, dtype=torch.float64) * scale
    return positions_S[:, None] / period**exponents_E
