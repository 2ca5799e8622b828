"""A trace of a few training steps, by PyTorch's profiler: where the time goes, operation by operation.

Knows: which steps are recorded, where the trace lies. Does not know: what a step does.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import final

import torch
from torch.profiler import ProfilerActivity, profile, schedule

log = logging.getLogger(__name__)

_SKIPPED = 2
"""Steps before the recorded ones: the first of a run are slower than those that follow."""
_ROWS = 40
"""Operations in the summary."""


@final
class Tracer:
    """Records steps 3 to 2 + `steps` after the start, once; writes `rankN.json.gz` (for Perfetto or chrome://tracing)
    and `rankN.txt` (sums by operation) into `folder`. Use as a context manager: leaving it early writes what there is.

    Args:
        steps: 0 = records nothing and costs nothing.
    """

    def __init__(self, folder: Path, steps: int, rank: int, device: torch.device) -> None:
        self._folder, self._rank = folder, rank
        self._left = _SKIPPED + steps if steps else 0
        self._profile: profile | None = None
        if steps:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
            plan = schedule(wait=_SKIPPED - 1, warmup=1, active=steps, repeat=1)
            self._profile = profile(activities=kinds, schedule=plan, record_shapes=True, on_trace_ready=self._write)
        self._by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"

    def __enter__(self) -> Tracer:
        if self._profile is not None:
            self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def step(self) -> None:
        """To be called after every step."""
        if self._profile is None:
            return
        self._profile.step()
        self._left -= 1
        if self._left <= 0:
            self._end()

    def _end(self) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, found: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"rank{self._rank}.json.gz"
        found.export_chrome_trace(str(trace))
        table = found.key_averages().table(sort_by=self._by, row_limit=_ROWS)
        trace.with_name(f"rank{self._rank}.txt").write_text(table + "\n", encoding="utf-8")
        log.info("a trace of the recorded steps: %s (open it in https://ui.perfetto.dev)", trace)
