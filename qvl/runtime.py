"""The machine: device, dtype, threads, seeds, logging. The only reader of environment variables.

Knows: what hardware offers. Does not know: models, data.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import random
import shutil
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.logging import RichHandler


@functools.cache
def console() -> Console:
    """The terminal that progress and log lines go to (stderr, so that results can be piped).

    One object for all, so that a log line and an evaluation's bar find their place beside a running progress bar.
    """
    return Console(stderr=True)


def debug_wanted() -> bool:
    """`QVL_DEBUG=1`: show where an error comes from instead of one line."""
    return os.environ.get("QVL_DEBUG", "") not in ("", "0")


def terminal_pictures() -> Literal["kitty", "iterm"] | None:
    """The protocol by which this terminal shows pictures; None = it does not, as far as one can tell."""
    program = os.environ.get("TERM_PROGRAM", "").lower()
    if os.environ.get("KITTY_WINDOW_ID") or os.environ.get("TERM", "") == "xterm-kitty" or program == "ghostty":
        return "kitty"
    return "iterm" if program in ("iterm.app", "wezterm") else None


def set_up_logging(level: int = logging.INFO) -> None:
    """Readable log lines on the terminal."""
    logging.basicConfig(
        level=level,
        format="%(message)s",
        datefmt="%H:%M:%S",
        handlers=[RichHandler(console=console(), show_path=False, markup=False)],
        force=True,
    )


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries still draw from it
    torch.manual_seed(seed)


def set_threads(threads: int = 0) -> int:
    """Uses `threads` CPU threads, or all usable cores for 0. Returns the number in force."""
    import torch

    torch.set_num_threads(threads or usable_cores())
    return torch.get_num_threads()


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu_name() -> str:
    """The processor's model name, for reports."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    import resource

    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def free_disk_bytes(path: str | Path) -> int:
    """Free space on the file system that holds `path` (or its nearest existing parent)."""
    p = Path(path).resolve()
    while not p.exists():
        p = p.parent
    return shutil.disk_usage(p).free
