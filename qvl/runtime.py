"""The machine: device, dtype, threads, seeds, logging. The only reader of environment variables.

Knows: what hardware offers. Does not know: models, data.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Place:
    """Which of several processes this one is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on its own machine."""
    local_size: int = 1


def place_given() -> Place | None:
    """The place that torchrun gives this process through the environment, if it does."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return None
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = (int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    return Place(rank, size, *local)


@functools.cache
def console() -> Console:
    """The terminal that progress and log lines go to (stderr, so that results can be piped).

    One object for all, so that a log line and an evaluation's bar find their place beside a running progress bar.
    """
    from rich.console import Console  # a tenth of what loading a model imports

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


def cache_folder() -> Path:
    """Where fetched packages are kept: `$QVL_CACHE`, else `$XDG_CACHE_HOME/qvl`, else `~/.cache/qvl`."""
    if own := os.environ.get("QVL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qvl"


def kernels_wanted() -> str:
    """`QVL_KERNELS`: the instruction set of the kernels that are compiled on first use (`avx512`, `avx2`); `0` to
    compute by torch alone; empty for the best the processor has."""
    return os.environ.get("QVL_KERNELS", "")


def set_up_logging(level: int = logging.INFO) -> None:
    """Readable log lines on the terminal."""
    from rich.logging import RichHandler

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


def set_threads(threads: int = 0, ranks: int = 1) -> int:
    """Uses `threads` CPU threads, or for 0 this rank's share of the usable cores. Returns the number in force."""
    import torch

    torch.set_num_threads(threads or max(1, usable_cores() // ranks))
    return torch.get_num_threads()


def trim_memory() -> None:
    """Gives memory that was freed back to the system, where the C library can do that. glibc otherwise keeps much of
    it, in a pool for every thread: a server that many threads work for would grow for hours."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def fast_bfloat16(device: str = "cpu") -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones (a CPU needs units for it)."""
    import torch

    if device == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device != "cuda" or torch.cuda.is_bf16_supported()


@functools.cache
def cpu_name() -> str:
    """The processor's model name, for reports."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the processor can do, in Linux' words (`avx2`, `avx512_bf16`); empty where nobody says."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def ask_for_huge_pages(address: int, size: int) -> None:
    """Asks the system to back fresh memory with pages of 2 MiB instead of 4 KiB, which are found and faulted in with
    much less effort. Where it cannot, nothing happens."""
    if platform.system() != "Linux":
        return
    huge, will_need_huge = 1 << 21, 14  # MADV_HUGEPAGE
    begin, end = -(-address // huge) * huge, (address + size) // huge * huge
    if begin < end:
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), will_need_huge)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    import resource

    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def resident_memory_bytes() -> int:
    """Memory that this process holds now (where the system does not tell: the largest so far)."""
    told = Path("/proc/self/statm")
    return int(told.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if told.exists() else peak_memory_bytes()


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_disk_bytes(path: str | Path) -> int:
    """Free space on the file system that holds `path` (or its nearest existing parent)."""
    p = Path(path).resolve()
    while not p.exists():
        p = p.parent
    return shutil.disk_usage(p).free
