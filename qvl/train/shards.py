"""Tensors of which every rank holds a piece: taking the own piece, putting the whole together, one norm over all.

Knows: DTensors, and rows that are dealt to ranks projection by projection. Does not know: models, who needs the whole.

A fused matrix holds several projections one below the other, and every tensor-parallel rank needs rows of each. So its
rows are *dealt*: held in an order in which equal pieces are what the ranks need. Two projections of 4 and 2 rows on two
ranks::

    the model's order    a0 a1 a2 a3 | b0 b1
    held                 a0 a1 b0 | a2 a3 b1        rank 0 holds the first half, rank 1 the second

Only values in memory lie so. State dicts of the model and of optimizers show the model's order (`show_in_order`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from math import prod
from mmap import mmap
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard  # what FSDP makes of rows that are cut already

from qvl.layers.linear import FusedLinear

Orders = Mapping[Tensor, Tensor]
"""Of each parameter whose rows are dealt: held row i is row `order[i]` of the model's."""
_FUSED = ("weight", "bias")
_MAPPED = 64 << 10
"""Bytes from which a copy has a mapping of its own: those of a smaller one would be lost in whole pages."""


def dealt_order(parts: Sequence[int], ranks: int) -> Tensor:
    """int64 [sum(parts)]: the rows in the order in which they are held.

    Raises:
        ValueError: a projection's rows cannot be shared out evenly.
    """
    if any(rows % ranks for rows in parts):
        raise ValueError(f"projections of {', '.join(map(str, parts))} rows cannot be dealt to {ranks} ranks evenly")
    starts = [0, *accumulate(parts)]
    rows = [torch.arange(start, start + n).view(ranks, -1) for start, n in zip(starts, parts, strict=False)]
    return torch.cat(rows, dim=1).flatten()


def deal_rows(layer: FusedLinear, ranks: int) -> None:
    """Puts a fused layer's rows into the order in which `ranks` ranks hold them; its state dict keeps the model's."""
    order_X = dealt_order(layer.parts, ranks)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[order_X])
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[order_X])

    def show(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        for leaf in _FUSED:
            if prefix + leaf in state:
                state[prefix + leaf] = with_rows(state[prefix + leaf].detach(), order_X.argsort())

    def take(module: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
        for leaf in _FUSED:
            if prefix + leaf in state:
                state[prefix + leaf] = with_rows(state[prefix + leaf], order_X)

    layer.register_state_dict_post_hook(show)
    layer.register_load_state_dict_pre_hook(take)


def orders_of(model: nn.Module, ranks: int) -> dict[Tensor, Tensor]:
    """The order of every parameter of `model` whose rows are dealt to `ranks` ranks."""
    if ranks == 1:
        return {}
    dealt = [m for m in model.modules() if isinstance(m, FusedLinear) and is_split(m.weight)]
    return {p: dealt_order(m.parts, ranks).to(p.device) for m in dealt for p in m.parameters(recurse=False)}


def is_split(p: Tensor) -> bool:
    """Whether the tensor-parallel ranks (the last axis of a mesh that has such) hold different values."""
    if not isinstance(p, DTensor):
        return False
    names = p.device_mesh.mesh_dim_names
    return names is not None and names[-1] == "tensor" and not p.placements[-1].is_replicate()


def show_in_order(optimizer: torch.optim.Optimizer, orders: Orders) -> None:
    """Lets the optimizer's state dict show rows in the model's order, and take them so; what is given whole is cut."""

    def changed(state: dict[str, Any], change: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
        keys = [key for group in state["param_groups"] for key in group["params"]]  # numbers, or names
        params = dict(zip(keys, (p for group in optimizer.param_groups for p in group["params"]), strict=False))

        def changed_values(p: Tensor, values: dict[str, Any]) -> dict[str, Any]:
            shaped = {key: v for key, v in values.items() if isinstance(v, Tensor) and v.shape == p.shape}
            return values | {key: change(p, value) for key, value in shaped.items()}

        return state | {"state": {key: changed_values(params[key], v) for key, v in state["state"].items()}}

    def show(p: Tensor, value: Tensor) -> Tensor:
        return with_rows(value, orders[p].argsort()) if p in orders else value

    def take(p: Tensor, value: Tensor) -> Tensor:
        value = with_rows(value, orders[p]) if p in orders else value
        if isinstance(p, DTensor) and not isinstance(value, DTensor):
            return like(p, own_piece(value.to(p.device), p).clone())
        return value

    optimizer.register_state_dict_post_hook(lambda _, state: changed(state, show))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: changed(state, take))


def with_rows(tensor: Tensor, order_X: Tensor) -> Tensor:
    """`tensor[order_X]`, held as `tensor` is. Every rank that holds a piece calls it."""
    order_X = order_X.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return tensor[order_X]
    return like(tensor, own_piece(whole(tensor)[order_X], tensor))


def local(tensor: Tensor) -> Tensor:
    """What this rank holds: the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor, order_X: Tensor | None = None) -> Tensor:
    """The whole tensor on every rank, in the model's order of rows. Every rank that holds a piece calls it."""
    full = tensor
    if isinstance(tensor, DTensor):
        placements = list(tensor.placements)
        for axis in range(len(placements)):  # one after the other, what FSDP has cut first: torch warns of both at once
            placements[axis] = Replicate()
            tensor = tensor.redistribute(placements=placements)
        full = tensor.full_tensor()
    return full if order_X is None else full[order_X.argsort()]


def own_piece(full: Tensor, held: Tensor) -> Tensor:
    """The piece of `full` (its rows as `held` has them) that this rank holds of `held`."""
    if not isinstance(held, DTensor):
        return full
    piece, mesh = full, held.device_mesh
    # The ranks of the last axis (tensor parallel) share first, the others share what each of these has.
    for axis in reversed(range(mesh.ndim)):
        dim = _cut_along(held.placements[axis])
        if dim is not None:
            at, pieces = mesh.get_local_rank(axis), piece.chunk(mesh.size(axis), dim)
            piece = pieces[at] if at < len(pieces) else piece.narrow(dim, 0, 0)
    assert piece.shape == held.to_local().shape, f"{tuple(piece.shape)} is not {tuple(held.to_local().shape)}"
    return piece


def like(held: DTensor, piece: Tensor) -> DTensor:
    """A tensor of which this rank holds `piece`, laid out as `held`."""
    return DTensor.from_local(
        piece.contiguous(),
        held.device_mesh,
        held.placements,
        run_check=False,
        shape=held.shape,
        stride=held.stride(),
    )


def on_cpu(tensor: Tensor) -> Tensor:
    """A copy in the processor's memory, of what this rank holds; laid out as `tensor`.

    Large ones lie in a mapping of their own, which goes back to the system with them. The C library's heap would keep
    what they took: a long run held two copies of its state (of a model of 135 M parameters 3.4 GB) for good.
    """
    held = local(tensor.detach())
    if held.nbytes < _MAPPED or not held.is_contiguous():
        piece = held.to("cpu", copy=True)
    else:
        piece = torch.frombuffer(mmap(-1, held.nbytes), dtype=held.dtype).view(held.shape).copy_(held)
    return DTensor(piece, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else piece


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    return any(isinstance(t, DTensor) for t in tensors)


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """float64: the length of all values together, each counted once however many ranks hold it. The same on all ranks,
    all of which call it."""
    ranks = dist.get_world_size()
    held = [(local(t), ranks // _holders(t)) for t in tensors]
    total = torch.zeros((), dtype=torch.float64, device=held[0][0].device)
    for piece, copies in held:
        total += piece.norm(dtype=torch.float32).double().square() / copies
    dist.all_reduce(total)
    return total.sqrt()


def _holders(tensor: Tensor) -> int:
    """How many different pieces there are."""
    if not isinstance(tensor, DTensor):
        return 1
    mesh = tensor.device_mesh
    return prod(mesh.size(axis) for axis, placement in enumerate(tensor.placements) if not placement.is_replicate())


def _cut_along(placement: Placement) -> int | None:
    """The dimension that ranks of an axis share, if they do."""
    if placement.is_replicate():
        return None
    assert isinstance(placement, Shard | _StridedShard), f"no pieces for {placement}"
    return placement.dim
