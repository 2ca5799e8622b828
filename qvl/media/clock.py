"""Where the time goes: milliseconds per phase. Knows nothing of what the phases do."""

from __future__ import annotations

import time
from contextlib import contextmanager


class Clock:
    """Milliseconds per phase, added up over repetitions."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms[name] = self.ms.get(name, 0.0) + 1000 * (time.perf_counter() - start)
