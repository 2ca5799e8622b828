"""How far a stage has come: by steps, by samples, or by the clock.

Knows: progress in [0, 1], time planned and time left. Does not know: what a step does, other ranks.

A stage with `steps` is exact: the same steps and rates on any machine. A stage with seconds lets the learning rate
follow the clock, so that fifteen minutes are fifteen minutes on a slow and on a fast machine. Elapsed time is part of
the saved state, so an interrupted stage goes on at the rate it had. Progress stands still between calls of `agree`:
ranks have clocks of their own, and all go by the first one's.
"""

from __future__ import annotations

import time
from typing import final

from qvl.train.config import TrainConfig

_MOST_NEEDED = 0.5
"""Share of a run's time that goes at most to what stages need at least."""


@final
class StageClock:
    def __init__(self, steps: int, seconds: float, samples: int = 0) -> None:
        """The stage ends after `steps` if there are any, else after `samples`, else after `seconds`."""
        if steps <= 0 and samples <= 0 and seconds <= 0:
            raise ValueError(f"a stage needs steps, epochs or time: got {steps} steps and {seconds:.1f} seconds")
        self._steps = steps
        self._samples = 0 if steps else samples
        self._seconds = seconds
        self._before = self._agreed = 0.0
        self._taken = 0
        self._started = time.perf_counter()
        self.step = 0

    def resume(self, step: int, elapsed: float, taken: int = 0) -> None:
        """Goes on from a saved state."""
        self.step, self._before, self._started = step, elapsed, time.perf_counter()
        self.agree(elapsed, taken)

    def agree(self, elapsed: float, taken: int = 0) -> None:
        """Sets the seconds, and the samples taken so far, that progress goes by."""
        self._agreed, self._taken = elapsed, taken

    @property
    def elapsed(self) -> float:
        """Seconds spent in this stage by this process's clock, interruptions left out."""
        return self._before + time.perf_counter() - self._started

    @property
    def progress(self) -> float:
        if self._steps:
            return min(1.0, self.step / self._steps)
        return min(1.0, self._taken / self._samples if self._samples else self._agreed / self._seconds)

    @property
    def seconds_left(self) -> float:
        """Expected seconds until the stage ends (unknown before the first step of a stage without a time: 0)."""
        if not self._steps and not self._samples:
            return max(0.0, self._seconds - self.elapsed)
        done = self.progress
        return self.elapsed * (1 - done) / done if done else 0.0


def stage_seconds(config: TrainConfig, index: int) -> float:
    """The stage's part of the run's minutes, in seconds; 0 if it is counted in steps or epochs."""
    total = 60 * config.minutes
    timed = {i: stage for i, stage in enumerate(config.stages) if not stage.steps and not stage.epochs}
    needed = sum(stage.least_seconds for stage in timed.values())
    scale = min(1.0, _MOST_NEEDED * total / needed) if needed else 0.0
    given: dict[int, float] = {}
    while index in timed:
        second = (total - sum(given.values())) / sum(stage.share for stage in timed.values())
        short = {i: scale * stage.least_seconds for i, stage in timed.items()}
        short = {i: least for i, least in short.items() if second * timed[i].share < least}
        if not short:
            return second * timed[index].share
        given |= short
        for i in short:
            del timed[i]
    return given.get(index, 0.0)
