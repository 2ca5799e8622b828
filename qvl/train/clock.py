"""How far a stage has come: by steps, or by the clock.

Knows: progress in [0, 1] and time left. Does not know: what a step does, other ranks.

A stage with `steps` is exact: the same steps and rates on any machine. A stage with seconds lets the learning rate
follow the clock, so that fifteen minutes are fifteen minutes on a slow and on a fast machine. Elapsed time is part of
the saved state, so an interrupted stage goes on at the rate it had. Progress stands still between calls of `agree`:
ranks have clocks of their own, and all go by the first one's.
"""

from __future__ import annotations

import time
from typing import final


@final
class StageClock:
    def __init__(self, steps: int, seconds: float) -> None:
        if steps <= 0 and seconds <= 0:
            raise ValueError(f"a stage needs steps or time: got {steps} steps and {seconds:.1f} seconds")
        self._steps = steps
        self._seconds = seconds
        self._before = self._agreed = 0.0
        self._started = time.perf_counter()
        self.step = 0

    def resume(self, step: int, elapsed: float) -> None:
        """Goes on from a saved state."""
        self.step, self._before, self._started = step, elapsed, time.perf_counter()
        self._agreed = elapsed

    def agree(self, elapsed: float) -> None:
        """Sets the seconds that progress goes by."""
        self._agreed = elapsed

    @property
    def elapsed(self) -> float:
        """Seconds spent in this stage by this process's clock, interruptions left out."""
        return self._before + time.perf_counter() - self._started

    @property
    def progress(self) -> float:
        done = self.step / self._steps if self._steps else self._agreed / self._seconds
        return min(1.0, done)

    @property
    def seconds_left(self) -> float:
        """Expected seconds until the stage ends (unknown before the first step of a stage counted in steps: 0)."""
        if not self._steps:
            return max(0.0, self._seconds - self.elapsed)
        return self.elapsed / self.step * (self._steps - self.step) if self.step else 0.0
