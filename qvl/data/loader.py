"""Packs prepared in the background while the model trains.

Knows: one worker process runs `packs`, its output is identical to running it in place; how that process begins.
Does not know: what is in a pack.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker

import torch
from torch.utils.data import DataLoader, IterableDataset

from qvl.data.packing import Pack
from qvl.runtime import resident_memory_bytes, set_up_logging

_SMALL = 1 << 30
"""Bytes up to which the worker is a fork of its parent: that takes no time, but it goes on holding all that the parent
held. Training writes to all of its memory, so a larger one (weights, an optimizer's state) would soon be there twice.
The worker of a large process is a new one: two seconds."""
_NICE = 15
"""Lower priority for the worker: it computes while the model waits, for another rank or for it. At the same priority it
takes turns with the model on whichever core, and the other ranks wait."""


class _Packs(IterableDataset["Pack | ValueError | OSError"]):
    def __init__(self, make: Callable[[], Iterator[Pack]]) -> None:
        self._make = make
        self._log_level = logging.getLogger().getEffectiveLevel()

    def __iter__(self) -> Iterator[Pack | ValueError | OSError]:
        # The worker must not take the cores that the model computes on.
        torch.set_num_threads(1)
        os.nice(_NICE)
        # All is handed over by then. What C++ libraries do at a process' end can abort it where a rank has spawned the
        # worker: "terminate called without an active exception".
        atexit.register(os._exit, 0)
        _leave_stopping_to_the_parent()
        if not logging.getLogger().handlers:  # a new process has none yet
            set_up_logging(self._log_level)
        return _or_error(self._make())


def _or_error(packs: Iterator[Pack]) -> Iterator[Pack | ValueError | OSError]:
    """An error is handed over like a pack: raised in the worker it would reach the user as a trace of two processes."""
    try:
        yield from packs
    except (ValueError, OSError) as error:
        yield error


def _leave_stopping_to_the_parent() -> None:
    """From now on this process ends by a SIGTERM of its parent's only.

    Schedulers send SIGTERM to every process of a job, and terminals SIGINT. It asks the trainer to finish its step, for
    which it needs this process, so one that comes from elsewhere is left to the trainer. Both were blocked on the way
    here (`_begun`).
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS cannot tell who sent a signal
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    threading.Thread(target=_end_with_parents_word, daemon=True).start()


def _end_with_parents_word() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def background(make: Callable[[], Iterator[Pack]], prefetch: int = 8) -> Iterator[Pack]:
    """Runs `make()` in a worker process and yields what it yields, up to `prefetch` packs ahead.

    Args:
        make: can be pickled, like all that it holds; a large process starts its worker anew.

    Raises:
        ValueError: `make` cannot be pickled, where the worker is a new process.
        Exception: what `make()` raises.
    """
    # Its own generator: drawing the worker's seed from the common one would shift the dropout of a resumed run.
    seeds = torch.Generator()
    method = "fork" if sys.platform == "linux" and resident_memory_bytes() < _SMALL else "spawn"
    loader = DataLoader(
        _Packs(make),
        batch_size=None,
        num_workers=1,
        prefetch_factor=prefetch,
        generator=seeds,
        multiprocessing_context=method,
    )
    for item in _begun(loader):
        if isinstance(item, Exception):
            raise item
        yield item


def _begun(loader: DataLoader[Pack | ValueError | OSError]) -> Iterator[Pack | ValueError | OSError]:
    """Its worker has started, with signals blocked from its first moment on; in this process they wait."""
    resource_tracker.ensure_running()  # or it would start below, and unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        return iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the samples' source cannot be handed to a new process: {error}. Define what it is made of in a module, "
            "not within a function"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
