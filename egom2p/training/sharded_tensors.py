"""Tensors of which every rank holds a part (DTensor), beside ordinary ones: the same three questions for both.

DTensor is imported where it is needed: it costs half a second that `--help` need not wait for.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


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
