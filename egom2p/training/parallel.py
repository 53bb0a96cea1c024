"""How a model is spread over ranks: whole copies (DDP), shards (FSDP2), or copies of shards (hybrid).

Sharded, every transformer block is a group of its own: gathered before it runs, freed after it. All else is one group,
the root's: token tables, heads (which are token tables too), the modality embeddings that both sides share. They are
used at the beginning and at the end of a pass, always inside the root's forward, so they are gathered once for both.
Around a language model of transformers the groups are its blocks, and all else, perception too, is the root's: a rank
whose batch shows nothing does not look, and ranks must gather in step.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from egom2p.config import Count, strict
from egom2p.contracts import LossOutput
from egom2p.layers.blocks import compile_block, foreign_blocks, recompute_in_backward, transformer_blocks
from egom2p.training.distributed import Ranks

T = TypeVar("T")
Recompute = Literal[False, True, "mlp"]


@strict
class ParallelConfig:
    """What each of several processes holds. One process alone holds everything, whatever the config says.

    kind                    ddp: weights, gradients and moments are whole on every rank. fsdp: every rank keeps a part
    shard_size              fsdp: ranks that share one copy, neighbours first (null: all). Smaller than the number of
                            ranks is hybrid: parts within a group (the GPUs of a node), copies between groups
    reshard_after_forward   fsdp: free a block's weights between its forward and its backward pass (less memory, one
                            more gathering)
    """

    kind: Literal["ddp", "fsdp"] = "ddp"
    shard_size: Count | None = None
    reshard_after_forward: bool = True

    def __post_init__(self) -> None:
        if self.shard_size is not None and self.shard_size < 2:
            raise ValueError(f"shard_size must be at least 2 ranks or null (all), got {self.shard_size}")
        if self.kind == "ddp" and self.shard_size is not None:
            raise ValueError("shard_size has a meaning only with kind=fsdp")


def check_parallel(config: ParallelConfig, world_size: int) -> None:
    """ValueError when the ranks cannot be grouped as asked."""
    if config.kind == "fsdp" and world_size > 1 and config.shard_size is not None and world_size % config.shard_size:
        raise ValueError(
            f"parallel.shard_size must divide the number of processes, got {config.shard_size} and {world_size}"
        )


def wants_compiling(model: nn.Module, config: ParallelConfig, *, ranks: Ranks) -> bool:
    """What `compile=auto` is: blocks of our own on a GPU that Triton serves, whole on every rank."""
    has_compiler = importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("gcc", "clang", "cc")))
    is_sharded = config.kind == "fsdp" and ranks.world_size > 1
    return (
        ranks.device.type == "cuda"
        and torch.cuda.get_device_capability(ranks.device) >= (7, 0)
        and has_compiler
        and not is_sharded
        and bool(transformer_blocks(model))
        and not foreign_blocks(model)
    )


def prepare_blocks(model: nn.Module, *, recompute: Recompute, compile_blocks: bool) -> None:
    """Activation checkpointing of all transformer blocks, regional compilation of our own, in place."""
    own, foreign = transformer_blocks(model), foreign_blocks(model)
    if compile_blocks and not own or recompute and not (own or foreign):
        option = "compile=blocks" if compile_blocks else "activation_checkpointing"
        raise ValueError(f"{option} works on transformer blocks, and {type(model).__name__} has none")
    if recompute == "mlp":
        if not own or foreign:
            raise ValueError(f"activation_checkpointing=mlp works on our own blocks; {type(model).__name__}: say true")
        for block in own:
            recompute_in_backward(block, "mlp")
    for block in own if compile_blocks else ():
        compile_block(block)
    if compile_blocks and hasattr(model, "compiles_loss"):
        model.compiles_loss = True
    for block in (*own, *foreign) if recompute is True else ():
        recompute_in_backward(block)


def shard(model: nn.Module, config: ParallelConfig, *, ranks: Ranks, dtype: torch.dtype) -> None:
    """Shard parameters (float32) over ranks, in place: they become DTensors; gradients and moments follow.

    Blocks compute with, and gather, weights in `dtype`; tables and norms outside of blocks stay float32, as autocast
    has them. Gradients are reduced in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    check_parallel(config, ranks.world_size)
    shard_size = config.shard_size or ranks.world_size
    sizes = (ranks.world_size // shard_size, shard_size)
    names = ("replicate", "shard")
    is_hybrid = sizes[0] > 1
    mesh = init_device_mesh(
        ranks.device.type, sizes if is_hybrid else sizes[1:], mesh_dim_names=names if is_hybrid else names[1:]
    )
    # float32 sums over ranks: in bfloat16 a hundred ranks' small gradients round away against their sum.
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    half = dataclasses.replace(whole, param_dtype=None if dtype == torch.float32 else dtype)
    blocks = foreign_blocks(model) or transformer_blocks(model)
    # Block by block, so that the next one's weights travel while one computes, and two at most are whole at a time.
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=half, reshard_after_forward=config.reshard_after_forward)
    _know_loss_output()
    outside = _parameters_outside(model, blocks)
    # Before torch's own hook, which frees the weights.
    model.register_forward_hook(functools.partial(_touch_root, outside))
    # The root's group is whole all through a step: sharding what is frozen of it would save nothing.
    frozen = {parameter for module, name in outside if not (parameter := getattr(module, name)).requires_grad}
    fully_shard(model, mesh=mesh, mp_policy=whole, ignored_params=frozen)
    model.call_with_whole_weights = functools.partial(_call_gathered, model, blocks, config.reshard_after_forward)
    register_fsdp_forward_method(model, "call_with_whole_weights")


def share_gradients(model: nn.Module) -> DistributedDataParallel:
    """The model under DDP; buffers (codebooks) agree by construction or by their library, only gradients travel."""
    # Older torch knows the switch by its old name only.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **{switch: False})


def is_sharded_model(model: nn.Module) -> bool:
    return hasattr(model, "call_with_whole_weights")


def gradient_exchange(model: nn.Module, *, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Around a forward and backward pass: whether its gradients travel, or wait for those of later micro-batches."""
    if is_sharded_model(model):
        model.set_requires_gradient_sync(wanted)
    elif isinstance(model, DistributedDataParallel) and not wanted:
        return model.no_sync()
    return contextlib.nullcontext()


def with_whole_weights(model: nn.Module, action: Callable[[], T]) -> T:
    """`action()` with all weights gathered, for passes without backward.

    Any method of the model may be called, as often as each rank likes: ranks may have different numbers of batches.
    """
    if not is_sharded_model(model):
        return action()
    results: list[T] = []
    try:
        model.call_with_whole_weights(lambda: results.append(action()))
    finally:
        for module in model.modules():
            if hasattr(module, "reshard"):
                module.reshard()
    return results[0]


class TouchAll(torch.autograd.Function):
    """A tensor itself, with a zero gradient to every parameter: `TouchAll.apply(tensor, *parameters)`.

    Ranks reduce gradients in step; a modality that no clip of this rank has would leave its parameters without one.
    Searching the graph for them at every step costs more than these zeros.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zero = torch.zeros((), device=gradient.device)
        return gradient, *(zero.to(parameter.dtype).expand(parameter.shape) for parameter in ctx.parameters)


def _touch_root(outside: Sequence[tuple[nn.Module, str]], model: nn.Module, inputs: Any, output: LossOutput) -> Any:
    """Blocks use all of their weights at every pass; what lies outside of them need not be used."""
    if not torch.is_grad_enabled():
        return None
    parameters = [parameter for module, name in outside if (parameter := getattr(module, name)).requires_grad]
    return dataclasses.replace(output, sums=TouchAll.apply(output.sums, *parameters))


def _parameters_outside(model: nn.Module, blocks: Sequence[nn.Module]) -> list[tuple[nn.Module, str]]:
    """(module, attribute) of every parameter outside of blocks; gathering replaces the parameters themselves."""
    inside = {module for block in blocks for module in block.modules()}
    return [
        (module, name)
        for module in model.modules()
        if module not in inside
        for name, _ in module.named_parameters(recurse=False)
    ]


@functools.cache
def _know_loss_output() -> None:
    """Tell torch's tree of containers where the tensor in a `LossOutput` is; FSDP hangs its hooks on it."""
    from torch.utils import _pytree

    _pytree.register_pytree_node(
        LossOutput,
        lambda output: ([output.sums], (output.counts, output.names)),
        lambda children, context: LossOutput(children[0], *context),
    )


def _call_gathered(
    model: nn.Module, blocks: Sequence[nn.Module], reshard_after_forward: bool, action: Callable[[], None]
) -> None:
    for piece in (*blocks, model):
        piece.set_reshard_after_forward(False, recurse=False)
        piece.unshard()
    try:
        action()
    finally:
        for block in blocks:
            block.set_reshard_after_forward(reshard_after_forward, recurse=False)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor."""
    return hasattr(tensor, "full_tensor")


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds, sharing memory; an ordinary tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def part_like(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has, cut as `like` is; nothing travels."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


def sharded_like(part: Tensor, like: Tensor) -> Tensor:
    """The parts that ranks hold, cut as `like` is, as one DTensor in the same memory; of ordinary tensors the part."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank. All ranks must ask for the same tensor."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) one by one, of which only sharded ones are moved to the CPU; all ranks must take part.

    keep   False on the ranks that only help: they get nothing, and never hold more than one whole tensor
    """
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            with torch.no_grad():
                whole = tensor.full_tensor()
            if keep:
                yield name, whole.cpu()
        elif keep:
            yield name, tensor
