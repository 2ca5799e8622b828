"""What a run says while it learns: a progress bar, a line of JSON per interval, TensorBoard.

Knows: numbers and where they are written. Does not know: how they came about.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any, final

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from qvl.runtime import console
from qvl.train.tally import Tally

log = logging.getLogger(__name__)


@final
class RunLog:
    """Averages per interval. Use as a context manager: it owns the progress bar and the open files.

    Args:
        writes: False on every rank but the first: all calls are welcome, nothing is shown or written.
    """

    def __init__(self, folder: Path, total_seconds: float, writes: bool = True) -> None:
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8") if writes else None
        self._board = _tensorboard(folder / "tensorboard") if writes else None
        self._total = total_seconds
        self._bar = Progress(
            TextColumn("[bold]{task.fields[stage]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("left {task.fields[left]}"),
            console=console(),
            refresh_per_second=2,
            disable=not writes,
        )
        self._task: TaskID | None = None
        self._reset()

    def __enter__(self) -> RunLog:
        self._bar.start()
        self._task = self._bar.add_task("", total=1.0, stage="starting", loss="-", speed="", left=clock(self._total))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _reset(self) -> None:
        self._since = time.perf_counter()
        self._sum = Tally()

    def add(self, step: Tally) -> None:
        """Adds one step, summed over packs and ranks."""
        total = self._sum
        total.loss, total.items = total.loss + step.loss, total.items + step.items
        total.tokens, total.samples = total.tokens + step.tokens, total.samples + step.samples
        total.wait += step.wait
        for task, (loss, items) in step.tasks.items():
            total.add_task(task, loss, items)

    def show(self, stage: str, progress: float, seconds_left: float) -> None:
        """Moves the bar."""
        assert self._task is not None
        seconds = max(1e-9, time.perf_counter() - self._since)
        self._bar.update(
            self._task,
            completed=progress,
            stage=stage,
            loss=f"{self._sum.loss / self._sum.items:.3f}" if self._sum.items else "-",
            speed=f"{self._sum.tokens / seconds:,.0f} tokens/s {self._sum.samples / seconds:.0f} samples/s",
            left=clock(seconds_left),
        )

    def write(self, stage: str, step: int, elapsed: float, **extra: float) -> dict[str, Any]:
        """Writes the interval's averages and starts a new interval."""
        seconds = max(1e-9, time.perf_counter() - self._since)
        row: dict[str, Any] = {
            "stage": stage,
            "step": step,
            "elapsed_s": round(elapsed, 2),
            "loss": self._sum.loss / max(1.0, self._sum.items),
            "tokens_per_s": self._sum.tokens / seconds,
            "samples_per_s": self._sum.samples / seconds,
            "data_wait": self._sum.wait / seconds,
            "task_loss": {t: s / n for t, (s, n) in sorted(self._sum.tasks.items()) if n},
            **extra,
        }
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if self._board is not None:
            for key, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{stage}/{key}", value, step)
            for task, value in row["task_loss"].items():
                self._board.add_scalar(f"{stage}/task/{task}", value, step)
        self._reset()
        return row


def forget_after(folder: Path, done: Collection[str], stage: str, step: int) -> None:
    """Drops rows of steps that a resumed run will do again: keeps the stages in `done`, and `stage` up to `step`."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
    kept = [line for line, r in rows if r["stage"] in done or (r["stage"] == stage and r["step"] <= step)]
    if len(kept) < len(lines):
        partial = file.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(file)


def clock(seconds: float) -> str:
    """`75` -> `1:15`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("no TensorBoard log: pip install qvl[log] adds it (metrics.jsonl is written in any case)")
        return None
    return SummaryWriter(str(folder))
