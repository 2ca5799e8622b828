"""The C library's allocator in small, against the C library."""

from __future__ import annotations

import json
import platform
import random
import subprocess
import sys

import pytest

from qvl.train.heap import Heap

_REAL = """
import ctypes, json, sys
class Told(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split())]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Told
libc.memalign.restype = ctypes.c_void_p
libc.memalign.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def held():
    told = libc.mallinfo2()
    return told.arena + told.hblkhd
moves = json.loads(sys.stdin.read())
libc.free(libc.memalign(64, (32 << 20) - 8192))  # the threshold has grown, as before a training's first step
places, found, before = {}, [], held()
for name, size in moves:
    if size:
        places[name] = libc.memalign(64, size)
    else:
        libc.free(places.pop(name))
    found.append(held() - before)
print(json.dumps(found))
"""


def moves(count: int, seed: int) -> list[tuple[int, int]]:
    """(name, size) of blocks that are taken, (name, 0) of blocks that are given back: of few sizes, most of them short
    of life, as tensors of a step are."""
    rng = random.Random(seed)
    sizes = [int(2 ** rng.uniform(16, 25.5)) for _ in range(40)]
    alive: list[int] = []
    made: list[tuple[int, int]] = []
    for name in range(count):
        made.append((name, rng.choice(sizes)))
        alive.append(name)
        while len(alive) > 30 or (alive and rng.random() < 0.45):
            made.append((alive.pop(rng.choice((-1, -1, rng.randrange(len(alive))))), 0))
    return made


def played(made: list[tuple[int, int]]) -> tuple[int, int]:
    """The most that the heap held, and the most that was in use."""
    heap, blocks, sizes = Heap(), {}, {}
    held = used = 0
    for name, size in made:
        if size:
            blocks[name], sizes[name] = heap.take(size), size
        else:
            heap.give(blocks.pop(name))
            del sizes[name]
        held, used = max(held, heap.held), max(used, sum(sizes.values()))
    return held, used


def real(made: list[tuple[int, int]]) -> int:
    """The most that a process of its own held, one without glibc's pool of small blocks, which may lie anywhere."""
    command, alone = [sys.executable, "-S", "-c", _REAL], {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    done = subprocess.run(command, input=json.dumps(made), env=alone, capture_output=True, text=True, check=True)
    return max(json.loads(done.stdout))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of another C library")
def test_it_holds_what_glibc_holds() -> None:
    found = [(*played(made), real(made)) for made in (moves(1500, seed) for seed in range(8))]
    # Measured (glibc 2.36): 0.93 to 1.02 times as much, on average 1.00; what is in use is 0.84 to 0.94 of it.
    assert all(0.88 * told < held < 1.1 * told for held, _, told in found), found
    assert sum(held / told for held, _, told in found) / len(found) == pytest.approx(1, abs=0.04)
    assert sum(used / told for _, used, told in found) / len(found) < 0.93


def test_what_lies_between_two_blocks_fits_nothing_larger() -> None:
    heap, mib = Heap(), 1 << 20
    a, b, c, d = (heap.take(8 * mib) for _ in range(4))
    full = heap.held
    heap.give(a)
    heap.give(c)
    assert heap.held == full
    heap.take(9 * mib)
    assert heap.held > full + 8 * mib, "16 MiB are free, but not in one piece"
    heap.give(b)
    grown = heap.held
    heap.take(23 * mib)
    assert heap.held == grown, "neighbours grow together"
    heap.give(heap.take(40 * mib))
    assert heap.held == grown, "so large a block comes from the system and goes back"
    heap.give(d)
