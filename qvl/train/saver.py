"""Saving the state of a run while it goes on.

Knows: a copy is taken before anything changes, which rank writes what, what a write that fails means.
Does not know: files (`saved`), names (`state`), how often it is done.

Training stands still for as long as it takes to name the tensors. They are copied beside the forward and backward pass
that follow (`copied` waits before the optimizers change them), and written beside whatever comes then.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qvl.train.ranks import Ranks
from qvl.train.saved import (
    FROZEN,
    PARTIAL,
    PARTIAL_FROZEN,
    Point,
    commit,
    commit_frozen,
    make_room,
    rotate,
    write_tensors,
)
from qvl.train.shards import on_cpu
from qvl.train.state import named_tensors, random_states

log = logging.getLogger(__name__)


@final
class Saver:
    """Writes states of one run, one at a time. Every rank has one and calls the same methods in the same order.

    Use as a context manager: leaving it waits for the write under way.

    Args:
        constant: names of tensors that nothing changes, which are written once.
        keep: so many states stay, the newest ones.
        beside: write while training goes on, which takes memory for a copy; False = training waits.
    """

    def __init__(
        self, checkpoint: Path, ranks: Ranks, constant: Collection[str] = (), keep: int = 2, beside: bool = True
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least one saved state must stay")
        self._checkpoint = checkpoint
        self._ranks = ranks
        self.group = ranks.side_group()
        """Ranks talk about a write beside what they say to each other in training."""
        self._constant, self._keep, self._beside = frozenset(constant), keep, beside
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._problem = ""
        self._bug: BaseException | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._join()
        elif self._thread is not None:
            self._thread.join()  # that error is the one to be heard

    @property
    def busy(self) -> bool:
        """A write is under way on this rank."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], point: Point) -> None:
        """Begins to save all that is now. What goes wrong is told in a warning, and by `finish`.

        A write that is still under way is waited for.
        """
        self._join()
        tensors = _own_part(named_tensors(model, optimizers), self._ranks)
        frozen = {key: tensors.pop(key) for key in self._constant & tensors.keys()}
        if self._ranks.leads:  # ranks of one lane draw the same numbers
            tensors |= random_states(self._ranks.lane, self._ranks.device)
        self._problem, wanted = self._ranks.from_first(self._make_room() if self._ranks.first else ("", False))
        if self._problem:
            return
        self._copied.clear()
        arguments = (tensors, frozen if wanted else None, point)
        if not self._beside:
            self._write(*arguments)
            return
        self._thread = threading.Thread(target=self._copy_and_write, args=arguments, name="qvl-saver")
        self._thread.start()

    def copied(self) -> None:
        """Waits until everything may be changed again. To be called before every change."""
        if self._thread is not None:
            self._copied.wait()
            self._complain()

    def finish(self, must: bool = False) -> None:
        """Waits until the last state is on the disk.

        Args:
            must: fail if it is not; otherwise the warning is all.

        Raises:
            OSError: on every rank, if one could not write.
        """
        self._join()
        problems = [problem for problem in self._ranks.gather(self._problem) if problem]
        if problems and must:
            raise OSError(
                f"could not save the run's state in {self._checkpoint}: {problems[0]}. The last good state is "
                "untouched; make room and start the same command again to go on from there"
            )

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._complain()

    def _complain(self) -> None:
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug

    def _make_room(self) -> tuple[str, bool]:
        """What is wrong, and whether what is constant has to be written."""
        try:
            make_room(self._checkpoint)
        except OSError as error:
            return self._failed(error), False
        return "", bool(self._constant) and not (self._checkpoint / FROZEN).exists()

    def _copy_and_write(self, tensors: dict[str, Tensor], frozen: dict[str, Tensor] | None, point: Point) -> None:
        try:
            try:
                copies = _copy(tensors)
            finally:
                tensors.clear()
                self._copied.set()
            self._write(copies, frozen, point)
        except BaseException as error:  # a thread has nobody to raise it to; `_complain` does
            self._bug = error

    def _write(self, tensors: dict[str, Tensor], frozen: dict[str, Tensor] | None, point: Point) -> None:
        failed: OSError | None = None
        try:
            if frozen is not None:
                write_tensors(self._checkpoint / PARTIAL_FROZEN, frozen, self.group)
                try:
                    if self._ranks.first:
                        commit_frozen(self._checkpoint)
                except OSError as error:
                    failed = error  # the other ranks do not know, and write on
            write_tensors(self._checkpoint / PARTIAL, tensors, self.group)
            if failed is not None:
                raise failed
            if self._ranks.first:
                commit(self._checkpoint, point)
                rotate(self._checkpoint, self._keep)
        except OSError as error:
            self._problem = self._failed(error) if self._ranks.first else str(error)

    def _failed(self, error: OSError) -> str:
        log.warning(
            "COULD NOT SAVE the run's state in %s: %s. Training goes on, the last good state is untouched, and saving "
            "is tried again next time",
            self._checkpoint,
            error,
        )
        return str(error)


def _own_part(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """What this rank writes: its parts of tensors held in parts, and its share of those that every rank holds."""
    count, me = ranks.place.size, ranks.place.rank
    found: dict[str, Tensor] = {}
    taken = [0] * count
    for key, tensor in sorted(tensors.items(), key=lambda item: (-item[1].numel(), item[0])):
        if isinstance(tensor, DTensor):
            found[key] = tensor
            continue
        rank = taken.index(min(taken))
        taken[rank] += tensor.numel() * tensor.element_size()
        if rank == me:
            found[key] = tensor
    return found


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in this machine's memory.

    Not by torch's stager, which failed now and then ("invalid python storage") on tensors that a state dict makes for
    the purpose (rows in the model's order): it tells tensors and storages apart by `id` alone.
    """
    return {key: on_cpu(tensor) for key, tensor in tensors.items()}
