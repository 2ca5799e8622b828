"""The processes that train one model together, and all that they say to each other.

Knows: sums, gathers and waits over ranks; that a run alone needs none. Does not know: what is summed, who started it.

Ranks lie in lanes: a lane draws samples of its own, and the `tensor` ranks of one lane compute the same pack together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qvl.runtime import Place

_BUCKET_BYTES = 32 << 20
_PATIENCE = timedelta(minutes=30)
"""How long a rank waits for another, evaluations and first compilations included."""
T = TypeVar("T")
TensorT = TypeVar("TensorT", bound=Tensor)


@final
class Ranks:
    """This process among `place.size`. Every method is to be called by all ranks in the same order."""

    def __init__(self, place: Place | None = None, device: torch.device | str = "cpu") -> None:
        """`place`: default alone."""
        self.place = place or Place()
        self.device = torch.device(device)
        self.lane, self.lanes = self.place.rank, self.place.size
        self.leads = True
        """The rank that speaks for its lane: what ranks of a lane count, all of them count."""

    def in_lanes(self, tensor: int) -> Ranks:
        """The same ranks, `tensor` neighbours to a lane.

        Raises:
            ValueError: the ranks cannot be divided so.
        """
        size, rank = self.place.size, self.place.rank
        if tensor < 1 or size % tensor:
            raise ValueError(
                f"parallel.tensor is {tensor}, but {size} {'rank is' if size == 1 else 'ranks are'} no multiple of it; "
                "start another number of ranks"
            )
        laid = Ranks(self.place, self.device)
        laid.lane, laid.lanes, laid.leads = rank // tensor, size // tensor, rank % tensor == 0
        return laid

    @classmethod
    def join(cls, place: Place, meeting_file: Path | None = None) -> Ranks:
        """Meets the other ranks: over a file of this machine, or as torchrun says.

        Gloo on the CPU, NCCL where every rank of a machine has a GPU of its own.
        """
        on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= place.local_size
        device = torch.device("cuda", place.local_rank) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(device)
        if place.size > 1:
            meeting = f"file://{meeting_file}" if meeting_file else "env://"
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            dist.init_process_group(backend, meeting, _PATIENCE, world_size=place.size, rank=place.rank)
        return cls(place, device)

    def leave(self) -> None:
        """Ends the acquaintance."""
        if self.place.size > 1:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """True for the one rank that writes files and talks to the person."""
        return self.place.rank == 0

    def wait(self) -> None:
        """Until all ranks are here."""
        self.gather(None)

    def first_then_others(self, make: Callable[[], T]) -> T:
        """Calls `make` on the first rank, then on the others, which find what the first has written."""
        if not self.first:
            self.wait()
            return make()
        made = make()
        self.wait()
        return made

    def gather(self, value: T) -> list[T]:
        """What every rank has, in rank order. For small things: they are pickled."""
        if self.place.size == 1:
            return [value]
        found: list[Any] = [None] * self.place.size
        dist.all_gather_object(found, value)
        return found

    def gather_lanes(self, value: T) -> list[T]:
        """What every lane has, in lane order (ranks of one lane have the same). For small things."""
        return self.gather(value)[:: self.place.size // self.lanes]

    def deliver(self, things: Sequence[T], moves: Sequence[tuple[int, int, int]]) -> dict[tuple[int, int], T]:
        """Things that lanes give to each other, in an order in which none waits for ever.

        Args:
            things: what this lane can give.
            moves: (giving lane, which of its things, receiving lane), the same on all ranks.

        Returns:
            What this rank has received, by (giving lane, which).
        """
        per_lane = self.place.size // self.lanes
        beside = self.place.rank % per_lane
        received: dict[tuple[int, int], T] = {}
        for giver, number, taker in moves:
            if giver == self.lane:
                dist.send_object_list([things[number]], taker * per_lane + beside, device=torch.device("cpu"))
            elif taker == self.lane:
                box: list[Any] = [None]
                dist.recv_object_list(box, giver * per_lane + beside, device=torch.device("cpu"))
                received[giver, number] = box[0]
        return received

    def from_first(self, value: T) -> T:
        """What the first rank has."""
        if self.place.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def side_group(self) -> dist.ProcessGroup | None:
        """A second acquaintance of all ranks, on the CPU, for talk beside the training; None if this rank is alone."""
        if self.place.size == 1:
            return None
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        assert isinstance(group, dist.ProcessGroup)
        return group

    def sum(self, values_X: Tensor) -> Tensor:
        """Sum of a small vector over ranks, the same bits on each."""
        if self.place.size == 1:
            return values_X
        on_device = values_X.to(self.device)
        dist.all_reduce(on_device)
        return on_device.to(values_X.device)

    @torch.no_grad()
    def copy_from_first(self, model: nn.Module) -> None:
        """Makes parameters and buffers those of the first rank, bit for bit."""
        if self.place.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[nn.Parameter], scale: float) -> None:
        """Every gradient becomes its sum over ranks times `scale`; a missing one counts as zero.

        Once per step, in flat buckets that travel while the next is being filled.
        """
        if self.place.size == 1:
            for p in parameters:
                if p.grad is not None:
                    p.grad.mul_(scale)
            return
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        under_way = []
        for bucket in _buckets(parameters):
            flat = torch.cat([p.grad.flatten() for p in bucket if p.grad is not None])
            under_way.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in under_way:
            work.wait()
            parts = flat.mul_(scale).split([p.numel() for p in bucket])
            for p, part in zip(bucket, parts, strict=True):
                p.grad = part.view_as(p)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
        """Every tensor becomes its mean over the ranks of `group`, the same bits on each."""
        for bucket in _buckets(tensors):
            flat = torch.cat([t.flatten() for t in bucket])
            dist.all_reduce(flat, group=group)
            parts = flat.div_(dist.get_world_size(group)).split([t.numel() for t in bucket])
            for t, part in zip(bucket, parts, strict=True):
                t.copy_(part.view_as(t))


def _buckets(parameters: Iterable[TensorT]) -> Iterator[list[TensorT]]:
    """Tensors of one dtype, up to `_BUCKET_BYTES` together, in order."""
    bucket: list[TensorT] = []
    size = 0
    for p in parameters:
        if bucket and (size + p.nbytes > _BUCKET_BYTES or p.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.nbytes
    if bucket:
        yield bucket
