"""Options of a transformer block that change neither results nor names: recomputing it, compiling it."""

import functools

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from egom2p.layers.blocks import CrossAttention, DecoderBlock, EncoderBlock, SelfAttention


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Our blocks, in the order they were built: what is recomputed, compiled or sharded as one piece."""
    return [module for module in model.modules() if isinstance(module, EncoderBlock | DecoderBlock)]


def foreign_blocks(model: nn.Module) -> list[nn.Module]:
    """Blocks of another library's model inside this one, which it names itself (method `foreign_blocks`)."""
    return list(model.foreign_blocks()) if hasattr(model, "foreign_blocks") else []


def recompute_in_backward(block: nn.Module) -> None:
    """Activation checkpointing: the block keeps its inputs only, and computes the rest again in the backward pass."""
    if not getattr(block, "gradient_checkpointing", False):  # a block of transformers may be told to do so itself
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def compile_block(block: nn.Module) -> None:
    """Compile all of a block but the attention, which is one kernel, and depends on lengths that change every batch."""
    for module in block.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.attend = torch.compiler.disable(module.attend)
    block.forward = torch.compile(block.forward, dynamic=True)
