"""Ctrl-C and SIGTERM as requests: the step under way ends, nothing is torn.

Knows: signals. Does not know: what is saved.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` on the first Ctrl-C or SIGTERM; a second Ctrl-C interrupts at once. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    for s in before:
        signal.signal(s, request)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
