"""The worker that prepares packs lives as long as the trainer wants it to."""

import logging
import multiprocessing
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qvl.data import loader
from qvl.data.loader import background

LIMIT = loader._SMALL


def numbers():
    for number in range(200):
        time.sleep(0.01)
        yield number


@pytest.fixture(params=["forked", "new"])
def begun(request, monkeypatch):
    """Packs of which the first was taken, and the process that prepares the others."""
    monkeypatch.setattr(loader, "_SMALL", 1 << 40 if request.param == "forked" else 0)
    packs = background(numbers, prefetch=2)
    assert next(packs) == 0
    (worker,) = multiprocessing.active_children()
    return packs, worker


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS cannot tell who sent a signal")
def test_a_signal_to_the_whole_job_leaves_the_worker_to_the_trainer(begun) -> None:
    packs, worker = begun
    for name in ("-TERM", "-INT"):
        subprocess.run(["kill", name, str(worker.pid)], check=True)  # not from this process
    assert list(packs) == list(range(1, 200))


@pytest.mark.slow
def test_the_worker_ends_when_its_parent_says_so(begun) -> None:
    packs, worker = begun
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0
    with pytest.raises(RuntimeError, match="worker"):
        list(packs)


@pytest.mark.slow
def test_no_worker_is_left_behind(begun) -> None:
    packs, worker = begun
    packs.close()
    worker.join(timeout=20)
    assert not worker.is_alive()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_worker_of_a_large_process_does_not_hold_its_memory(monkeypatch) -> None:
    """Once training writes to it, what a fork holds is there twice."""
    monkeypatch.setattr(loader, "_SMALL", LIMIT)
    weights = torch.ones(300 << 20)
    packs = background(numbers, prefetch=2)
    assert next(packs) == 0
    (worker,) = multiprocessing.active_children()
    told = Path(f"/proc/{worker.pid}/status").read_text()
    assert int(re.search(r"RssAnon:\s+(\d+) kB", told)[1]) << 10 < weights.nbytes / 2


def test_what_cannot_go_to_a_new_process_is_said(monkeypatch) -> None:
    monkeypatch.setattr(loader, "_SMALL", 0)
    with pytest.raises(ValueError, match=r"cannot be handed to a new process.*in a module"):
        next(background(lambda: numbers()))


def complain():
    logging.getLogger("qvl.data.packing").warning("left out %s", "a.jpg")
    yield 0


@pytest.mark.slow
def test_what_a_new_worker_leaves_out_is_said(monkeypatch, capfd) -> None:
    monkeypatch.setattr(loader, "_SMALL", 0)
    assert list(background(complain)) == [0]
    assert "left out a.jpg" in "".join(capfd.readouterr())
