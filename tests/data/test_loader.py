"""The worker that prepares packs lives as long as the trainer wants it to."""

import multiprocessing
import subprocess
import sys
import time

import pytest

from qvl.data.loader import background


def numbers():
    for number in range(200):
        time.sleep(0.01)
        yield number


@pytest.fixture
def begun():
    """Packs of which the first was taken, and the process that prepares the others."""
    packs = background(numbers, prefetch=2)
    assert next(packs) == 0
    (worker,) = multiprocessing.active_children()
    return packs, worker


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS cannot tell who sent a signal")
def test_a_sigterm_to_the_whole_job_leaves_the_worker_to_the_trainer(begun) -> None:
    packs, worker = begun
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # not from this process
    assert list(packs) == list(range(1, 200))


@pytest.mark.slow
def test_the_worker_ends_when_its_parent_says_so(begun) -> None:
    packs, worker = begun
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0
    with pytest.raises(RuntimeError, match="worker"):
        list(packs)


def test_no_worker_is_left_behind(begun) -> None:
    packs, worker = begun
    packs.close()
    worker.join(timeout=20)
    assert not worker.is_alive()
