"""How long training stands still for a saved state: written in the background, against torch.save.

    python -m bench.checkpoint                   # the `small` model: weights and AdamW's two moments, float32
    python -m bench.checkpoint --model tiny      # seconds instead of minutes

Both write the same tensors to the same disk and sync them. While torch.save writes, training waits. Saving in the
background stops it twice, as briefly as possible: to name the tensors, and, before the optimizer changes them, for what
of the copy the forward and backward pass were too short to hide. The writer then shares cores and memory with
training; what that costs is told as seconds by which all steps until its end took longer than steps alone. A save
counts until the end of the step in which it ends. Medians of the rounds; of the memory the most, since the first copy's
is used again by the next.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.record import record
from bench.train_sides import sample
from qvl.inputs.sequence import pack
from qvl.models.qwen2_vl.config import TokenIds, preset, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.runtime import resident_memory_bytes
from qvl.train.config import OptimConfig
from qvl.train.loss import token_losses
from qvl.train.optim import Optimizers
from qvl.train.ranks import Ranks
from qvl.train.saved import Point, read_saved
from qvl.train.saver import Saver
from qvl.train.state import named_tensors

POINT = Point(("bench",), 0, True, 1, 0.0, 0.0, ((0, ()),))
ALONE = 3
PICTURE = (8, 8)
"""Rows and columns of vision tokens in a step."""


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def blocking(folder: Path, model: Qwen2VL, optimizers: Optimizers) -> tuple[float, int]:
    """Seconds of torch.save into one file, synced and put in its place, and the file's bytes."""

    def save() -> None:
        with (folder / "state.partial").open("wb") as file:
            torch.save(named_tensors(model, optimizers.all), file)
            file.flush()
            os.fsync(file.fileno())
        (folder / "state.partial").replace(folder / "state.pt")

    seconds = timed(save)
    size = (folder / "state.pt").stat().st_size
    (folder / "state.pt").unlink()
    return seconds, size


class Bench:
    def __init__(self, name: str, text: int) -> None:
        config = preset(name)
        words = config.vocab_size
        config = with_vocabulary(config, words, TokenIds(*(words - i for i in range(1, 7))))
        self.model = Qwen2VL(config)
        self.model.init_weights(0)
        self.optimizers = Optimizers(self.model, ("vision", "merger", "text"), OptimConfig(name="adamw", lr=1e-5))
        rng = np.random.default_rng(0)
        self.batch = pack([sample(rng, config, PICTURE, text)], config.vision.patch_values, config.vision.merge)
        self.peak = 0

    def step(self, before_update: Callable[[], object] = lambda: None) -> tuple[float, float]:
        """Seconds of a step, and of `before_update` within it."""
        started = time.perf_counter()
        token_losses(self.model, self.batch)[0].mean().backward()
        waited = timed(before_update)
        self.optimizers.step(0.5)
        self.peak = max(self.peak, resident_memory_bytes())
        return time.perf_counter() - started, waited

    def background(self, checkpoint: Path, alone: float) -> dict[str, float]:
        """One save beside training: seconds of standing still, of the write, and lost to sharing the machine."""
        with Saver(checkpoint, Ranks(), keep=1) as saver:
            started = time.perf_counter()
            still = timed(lambda: saver.save(self.model, self.optimizers.all, POINT))
            steps, waits = [], []
            while saver.busy or not steps:
                step, wait = self.step(saver.copied)
                steps.append(step)
                waits.append(wait)
            write = time.perf_counter() - started
            saver.finish(must=True)
        still += sum(waits)
        slower = sum(steps) - sum(waits) - alone * len(steps)
        return {"still": still, "write": write, "slower": slower, "steps": float(len(steps))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", choices=("tiny", "small"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=int, default=64, help="text tokens of a step, beside a picture of 64 tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: the temporary folder)")
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.model, arguments.text)
    bench.step()
    held = sum(t.nbytes for t in named_tensors(bench.model, bench.optimizers.all).values())
    alone, blocked, found = [], [], []
    size = plain_size = 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for number in range(arguments.rounds):
            bench.peak = 0
            alone += [bench.step()[0] for _ in range(ALONE)]
            memory = bench.peak
            seconds, plain_size = blocking(Path(folder), bench.model, bench.optimizers)
            blocked.append(seconds)
            bench.peak = 0
            found.append(bench.background(Path(folder) / "checkpoint", statistics.median(alone)))
            found[-1]["memory"] = (bench.peak - memory) / 1e6
            print(f"round {number}: step alone {alone[-1]:.2f} s, torch.save {blocked[-1]:.2f} s, {found[-1]}")
            state = read_saved(Path(folder) / "checkpoint" / f"{number + 1:06d}").folder
            size = sum(file.stat().st_size for file in state.iterdir())
    middle = {key: statistics.median(row[key] for row in found) for key in found[0]}
    row = {
        "case": f"{arguments.model}, {held / 1e6:.0f} MB of state",
        "torch.save, s": statistics.median(blocked),
        "background: training stands still, s": middle["still"],
        "times shorter": statistics.median(blocked) / middle["still"],
        "written after, s": middle["write"],
        "still, share of the save": middle["still"] / middle["write"],
        "file of torch.save, MB": plain_size / 1e6,
        "files, MB": size / 1e6,
        "steps meanwhile": middle["steps"],
        "a step alone, s": statistics.median(alone),
        "steps meanwhile were longer by, s": middle["slower"],
        "memory for the copy, MB": max(row["memory"] for row in found),
        "load of the machine": os.getloadavg()[0],
        "rounds": arguments.rounds,
    }
    print(row)
    if not arguments.no_record:
        record("checkpoint", row)


if __name__ == "__main__":
    main()
