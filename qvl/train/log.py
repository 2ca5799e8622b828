"""What a run says while it learns: a progress bar, a line of JSON per interval, TensorBoard.

Knows: numbers and where they are written. Does not know: how they came about.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, final

import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from qvl.checkpoint.stage import write_whole
from qvl.runtime import console, resident_memory_bytes
from qvl.train.tally import Tally

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, or of the one that holds most. Data workers are processes of their own and not in it."""

    resident: int
    gpu_peak: int = 0
    """Most that tensors took on the GPU since this was asked last; 0 without one."""

    @classmethod
    def now(cls, device: torch.device) -> Memory:
        if device.type != "cuda":
            return cls(resident_memory_bytes())
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return cls(resident_memory_bytes(), peak)

    @classmethod
    def most(cls, ranks: Sequence[Memory]) -> Memory:
        return cls(max(m.resident for m in ranks), max(m.gpu_peak for m in ranks))

    def row(self) -> dict[str, float]:
        """In GB, for the log."""
        row = {"memory_gb": self.resident / 1e9}
        return row | {"gpu_memory_gb": self.gpu_peak / 1e9} if self.gpu_peak else row


@final
class RunLog:
    """Averages per interval. Use as a context manager: it owns the progress bar and the open files.

    Args:
        peak_flops: FLOP/s that all ranks together could do at most.
        writes: False on every rank but the first: all calls are welcome, nothing is shown or written.
    """

    def __init__(self, folder: Path, total_seconds: float, peak_flops: float, writes: bool = True) -> None:
        self._file = (folder / "metrics.jsonl").open("ab", buffering=0) if writes else None
        self._unwritten = b""
        self._board = _tensorboard(folder / "tensorboard") if writes else None
        self._total = total_seconds
        self._peak = peak_flops
        self._memory = ""
        self._bar = Progress(
            TextColumn("[bold]{task.fields[stage]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("left {task.fields[left]}"),
            TextColumn("{task.fields[machine]}"),
            console=console(),
            refresh_per_second=2,
            disable=not writes,
        )
        self._task: TaskID | None = None
        self._reset()

    def __enter__(self) -> RunLog:
        self._bar.start()
        left = clock(self._total)
        self._task = self._bar.add_task("", total=1.0, stage="starting", loss="-", speed="", left=left, machine="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._if_there_is_room("tensorboard", self._board.close)

    def _if_there_is_room(self, name: str, write: Callable[[], object]) -> bool:
        """A full disk costs the log, not the training: there may be room again before the next state is saved."""
        try:
            write()
        except OSError as error:
            log.warning("could not write %s: %s. Training goes on", name, error)
            return False
        return True

    def _reset(self) -> None:
        self._since = time.perf_counter()
        self._sum = Tally()

    def add(self, step: Tally) -> None:
        """Adds one step, summed over packs and ranks."""
        total = self._sum
        total.loss, total.items = total.loss + step.loss, total.items + step.items
        total.tokens, total.samples = total.tokens + step.tokens, total.samples + step.samples
        total.wait, total.flops = total.wait + step.wait, total.flops + step.flops
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
            machine=(
                f"{self._sum.flops / seconds / self._peak:.0%} of peak, {self._sum.wait / seconds:.0%} data wait"
                f"{self._memory}"
            ),
        )

    def write(self, stage: str, step: int, elapsed: float, memory: Memory, **extra: float) -> dict[str, Any]:
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
            "flops_per_s": self._sum.flops / seconds,
            "mfu": self._sum.flops / seconds / self._peak,
            **memory.row(),
            "task_loss": {t: s / n for t, (s, n) in sorted(self._sum.tasks.items()) if n},
            **extra,
        }
        self._memory = f", {max(memory.row().values()):.1f} GB"
        if self._file is not None:
            self._unwritten += json.dumps(row).encode() + b"\n"
            self._if_there_is_room("metrics.jsonl", self._write_rows)
        if self._board is not None:
            shown = partial(_show, self._board, stage, step, row)
            if not self._if_there_is_room("tensorboard", shown):
                self._board = None  # its writer does not recover
        self._reset()
        return row

    def _write_rows(self) -> None:
        """What there is no room for waits for the next call, so that no row is torn."""
        assert self._file is not None
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]


def forget_after(folder: Path, done: Collection[str], stage: str, step: int) -> None:
    """Drops rows of steps that a resumed run will do again: keeps the stages in `done`, and `stage` up to `step`."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    rows = [(line, row) for line in text.split("\n") if (row := _row(line))]
    kept = [line for line, r in rows if r["stage"] in done or (r["stage"] == stage and r["step"] <= step)]
    if (left := "".join(f"{line}\n" for line in kept)) != text:
        write_whole(file, left)


def _row(line: str) -> dict[str, Any] | None:
    """None for what a crash of the machine has left of a row, or put in its place."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def clock(seconds: float) -> str:
    """`75` -> `1:15`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _show(board: Any, stage: str, step: int, row: dict[str, Any]) -> None:
    """A row as TensorBoard's points."""
    for key, value in row.items():
        if isinstance(value, float):
            board.add_scalar(f"{stage}/{key}", value, step)
    for task, value in row["task_loss"].items():
        board.add_scalar(f"{stage}/task/{task}", value, step)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("no TensorBoard log: pip install qvl[log] adds it (metrics.jsonl is written in any case)")
        return None
    return SummaryWriter(str(folder))
