"""Does a step become dearer the more requests have been answered before it?

    python -m bench.steady

A small random model, eight rows that are being answered all the time, and beside them short requests that come and
go: 1, 1,000 and 10,000 of them before each look. `bookkeeping` is a decoding step without the model's own passes
(scheduler, pages, choosing, text), `step` the whole of it; both in milliseconds of processor time of one thread,
medians with the lowest and the highest. Every request ends in the prefix cache, which is full after about a thousand
and lets go of a page for every new one.
"""

from __future__ import annotations

import statistics
import time

import torch

from bench.decode_step import made, show
from bench.record import record
from qvl.engine.api import Request, Sampling
from qvl.engine.limits import Limits
from qvl.engine.session import Session

LOOKS = (1, 1000, 10_000)
ROWS = 8
STEPS = 60
ROUND = STEPS + 200
"""Tokens that each of the long rows still has to go when a look begins."""


class Watched:
    """A session whose model's time is told apart."""

    def __init__(self) -> None:
        model, processor = made()
        self.session = Session(model, processor, Limits(max_rows=ROWS + 8, cache_tokens=32 * 1024))
        self._model_s = 0.0
        for name in ("hidden", "head"):
            self._time(model, name)

    def _time(self, model: torch.nn.Module, name: str) -> None:
        call = getattr(model, name).forward if name == "head" else getattr(model, name)

        def timed(*args: object) -> torch.Tensor:
            before = time.thread_time()
            result = call(*args)
            self._model_s += time.thread_time() - before
            return result

        if name == "head":
            model.get_submodule("head").forward = timed
        else:
            setattr(model, name, timed)

    def start(self, text: str, tokens: int) -> None:
        sampling = Sampling(max_new_tokens=tokens, stop_on_repetition=False)
        request = Request([{"role": "user", "content": text}], sampling)
        self.session.add(self.session.prepare(request), lambda item: None)

    def step(self) -> tuple[float, float]:
        """Milliseconds of a whole step, and of what is not the model."""
        self._model_s, before = 0.0, time.thread_time()
        self.session.step()
        whole = time.thread_time() - before
        return 1000 * whole, 1000 * (whole - self._model_s)

    def look(self) -> tuple[list[float], list[float]]:
        for row in range(ROWS):
            self.start(f"row {row} of those that are watched", ROUND)
        while self.session.stats().running < ROWS or self.session.stats().waiting:
            self.session.step()
        for _ in range(40):  # prompts are through, the contexts are alike at every look
            self.session.step()
        steps, books = zip(*(self.step() for _ in range(STEPS)), strict=True)
        while self.session.busy:
            self.session.step()
        return list(steps), list(books)


def main() -> None:
    torch.set_num_threads(1)
    watched, answered, first = Watched(), 0, 0.0
    for count in LOOKS:
        while answered < count:
            for _ in range(min(8, count - answered)):
                watched.start(f"a short question, number {answered}, about a few words", 2)
                answered += 1
            while watched.session.busy:
                watched.session.step()
        steps, books = watched.look()
        first = first or statistics.median(books)
        row = {
            "case": f"after {count} requests",
            "step ms": show(steps),
            "bookkeeping ms": show(books),
            "bookkeeping, times the first": round(statistics.median(books) / first, 2),
            "steps": STEPS,
        }
        print(record("steady", row))


if __name__ == "__main__":
    main()
