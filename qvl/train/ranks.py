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


@final
class Ranks:
    """This process among `place.size`. Every method is to be called by all ranks in the same order."""

    def __init__(self, place: Place | None = None, device: torch.device | str = "cpu") -> None:
        """`place`: default alone."""
        self.place = place or Place()
        self.device = torch.device(device)
        self.lane, self.lanes = self.place.rank, self.place.size

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


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one dtype, up to `_BUCKET_BYTES` together, in order."""
    bucket: list[nn.Parameter] = []
    size = 0
    for p in parameters:
        if bucket and (size + p.nbytes > _BUCKET_BYTES or p.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.nbytes
    if bucket:
        yield bucket
