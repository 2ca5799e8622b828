"""Many clients at once against `qvl serve`: nothing lost, no page leaked, memory flat, everyone answered as if alone.

    python -m bench.load_test --minutes 10                  # the official row
    python -m bench.load_test --minutes 0.5 --no-record     # a look

A small random model behind the real server (a process of its own), asked over HTTP about text, pictures and clips.
Three parts: one client alone, all clients at once (the same mix, other words and pixels, so that no cache knows them;
tokens per second of both), then the long part, in which 15 % of the clients go away in the middle,
three of ten questions are new, and the greedy answers to the others must be those that were given alone.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import torch

from bench.record import record
from bench.traffic import Tally, answers_to, pool, traffic
from qvl.engine.vlm import VLM
from qvl.inputs.processor import Processor
from qvl.models.qwen2_vl.config import preset, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.tokenizer import Tokenizer
from qvl.train.build import token_ids

QUESTIONS = 120
LEAVE = 0.15
NEW = 0.3


def write_model(folder: Path) -> None:
    """The tiny preset with random weights, louder than usual: at the usual ones it says one token for ever."""
    tokenizer = Tokenizer.reduced(["a few words about red and blue circles"], base_ranks=3000)
    model = Qwen2VL(with_vocabulary(preset("tiny"), tokenizer.vocab_size, token_ids(tokenizer))).eval()
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5, generator=generator)
    VLM(model, Processor(tokenizer)).save(folder)


class Server:
    """`qvl serve` in a process of its own, and what can be seen of it from outside."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self._proc = Path(f"/proc/{process.pid}")
        self.url = url

    def rss_mib(self) -> float:
        found = re.search(r"VmRSS:\s+(\d+) kB", (self._proc / "status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def open_files(self) -> int:
        return len(list((self._proc / "fd").iterdir()))

    def threads(self) -> int:
        return len(list((self._proc / "task").iterdir()))

    def metrics(self) -> dict[str, float]:
        lines = httpx2.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "qvl", "serve", str(folder), "--name", "tiny", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = ""
        while (address := re.search(r"(http://127\.0\.0\.1:\d+)/v1", told)) is None:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"the server did not start: {told}")
            told += line
        threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
        server = Server(process, address[1])
        while True:
            try:
                httpx2.get(f"{server.url}/health", timeout=60)
                break
            except httpx2.ConnectError:
                time.sleep(0.1)
        try:
            yield server
        finally:
            process.terminate()
            process.wait(60)


class MemoryWatch:
    """Samples a server's memory once a second."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self.samples: list[tuple[float, float]] = []
        """(seconds, MiB)."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        start = time.monotonic()
        while not self._over.wait(1.0):
            self.samples.append((time.monotonic() - start, self._server.rss_mib()))

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def slope_mib_per_minute(self) -> float:
        """Of a line through the second half: the first is the caches' and the allocator's."""
        half = self.samples[len(self.samples) // 2 :]
        return 60 * statistics.linear_regression(*zip(*half, strict=True)).slope if len(half) > 2 else 0.0


def idle(server: Server) -> dict[str, float]:
    """The server's figures once nothing is under way; waits up to ten seconds for clients that went away."""
    deadline = time.monotonic() + 10
    while True:
        figures = server.metrics()
        busy = figures["qvl_engine_running"] + figures["qvl_engine_waiting"] + figures["qvl_http_in_flight"] - 1
        if not busy or time.monotonic() > deadline:
            return figures
        time.sleep(0.1)


def tokens_per_second(server: Server, clients: int, questions: int, salt: str) -> float:
    """Of so many questions that were never asked before. They are made beforehand: encoding clips takes its time."""
    asked = pool(random.Random(salt), questions)
    before = server.metrics()["qvl_engine_completion_tokens_total"]
    start = time.monotonic()
    answers = answers_to(server.url, asked, clients)
    spent = time.monotonic() - start
    assert len(answers) == questions, "an answer was lost"
    return (server.metrics()["qvl_engine_completion_tokens_total"] - before) / spent


def check(tally: Tally, figures: dict[str, float]) -> None:
    assert not tally.problems, f"{len(tally.problems)} requests failed: {tally.problems[:3]}"
    assert not tally.wrong, f"{len(tally.wrong)} answers are not those given alone: {tally.wrong[:3]}"
    assert tally.sent == tally.whole + tally.left, "a request was lost"
    for name in ("qvl_engine_running", "qvl_engine_waiting", "qvl_engine_pages_used"):
        assert figures[name] == 0, f"{name} is {figures[name]} when nothing is asked"


def throughput(server: Server, clients: int, questions: int) -> dict[str, object]:
    """Tokens per second of one client after the other, and of all at once."""
    tokens_per_second(server, 1, 20, "warm")
    one = tokens_per_second(server, 1, questions, "one")
    many = tokens_per_second(server, clients, questions, "many")
    return {
        "case": f"throughput, {clients} clients",
        "requests": questions,
        "tokens/s alone": round(one),
        "tokens/s together": round(many),
        "together/alone": round(many / one, 2),
    }


def endurance(server: Server, clients: int, minutes: float) -> dict[str, object]:
    """What becomes of requests, pages and memory in so many minutes."""
    rng = random.Random(0)
    known = pool(rng, QUESTIONS)
    answers = answers_to(server.url, known)
    before = idle(server)
    watch = MemoryWatch(server)
    tally = traffic(server.url, clients, 60 * minutes, rng, known=known, answers=answers, leave=LEAVE, new=NEW)
    watch.stop()
    figures = idle(server)
    check(tally, figures)
    return {
        "case": f"{clients} clients, {minutes:g} minutes",
        "requests": tally.sent,
        "whole": tally.whole,
        "left on the way": tally.left,
        "compared with alone": tally.compared,
        "differed": len(tally.wrong),
        "failed": len(tally.problems),
        "preempted": int(figures["qvl_engine_preemptions_total"] - before["qvl_engine_preemptions_total"]),
        "pages left": int(figures["qvl_engine_pages_used"]),
        "MiB after a tenth": round(watch.samples[len(watch.samples) // 10][1]),
        "MiB at the end": round(watch.samples[-1][1]),
        "MiB per minute, second half": round(watch.slope_mib_per_minute(), 2),
        "open files at the end": server.open_files(),
        "threads at the end": server.threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of the long part; 0 = without it")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--questions", type=int, default=400, help="for each of the two throughputs; 0 = without them")
    parser.add_argument("--no-record", action="store_true", help="print the rows, do not keep them")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model")
        with served(Path(folder) / "model", "--vision-cache-mib", "8", "--cache-tokens", "16384") as server:
            if given.questions:
                rows.append(throughput(server, given.clients, given.questions))
            if given.minutes:
                rows.append(endurance(server, given.clients, given.minutes))
    for row in rows:
        print(row if given.no_record else record("load_test", row), flush=True)


if __name__ == "__main__":
    main()
