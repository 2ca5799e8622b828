"""Clients of all kinds, for the load test: what they ask, how they go away, and whether they were answered rightly.

Knows: OpenAI's requests and streams over HTTP. Does not know: how the server was started, what is measured.
"""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import av
import httpx2
import numpy as np
from PIL import Image

WORDS = ("red", "blue", "circle", "square", "left", "right", "of", "the", "a", "few", "words", "about")
SIZES = ((60, 90), (112, 112), (84, 140), (168, 112))


@dataclass(frozen=True)
class Question:
    body: dict[str, Any]
    greedy: bool
    key: int | None = None
    """Its number in the pool of questions whose answers are known; None = asked only once."""


def pool(rng: random.Random, count: int) -> list[Question]:
    """Questions that are asked again and again; all greedy."""
    return [question(rng, greedy=True, key=number) for number in range(count)]


def question(rng: random.Random, *, greedy: bool, key: int | None = None) -> Question:
    """Text, one or two pictures, or a clip; 4 to 48 tokens of reply."""
    kind = rng.choices(("text", "picture", "pictures", "clip"), weights=(4, 3, 1, 2))[0]
    shown = {"text": 0, "picture": 1, "pictures": 2, "clip": 0}[kind]
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _picture(rng.randrange(2**32), rng.choice(SIZES))}}
        for _ in range(shown)
    ]
    if kind == "clip":
        url = _clip(rng.randrange(2**32), rng.choice((4, 8)))
        parts.append({"type": "video_url", "video_url": {"url": url, "max_pixels": 12544}})
    words = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
    sampling = {} if greedy else {"temperature": 1.0, "seed": rng.randrange(2**31)}
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}],
        "max_tokens": rng.randint(4, 48),
        "stream": True,
        "stop_on_repetition": False,
        **sampling,
    }
    return Question(body, greedy, key)


def _picture(seed: int, hw: tuple[int, int]) -> str:
    file = io.BytesIO()
    blocks = np.random.default_rng(seed).integers(0, 256, (hw[0] // 14 + 1, hw[1] // 14 + 1, 3), np.uint8)
    pixels = blocks.repeat(14, 0).repeat(14, 1)[: hw[0], : hw[1]]
    Image.fromarray(pixels).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _clip(seed: int, frames: int) -> str:
    colours = np.random.default_rng(seed).integers(0, 256, (frames, 4, 4, 3), np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=4, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 112, 112, "yuv420p"
        for number, blocks in enumerate(colours):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(blocks.repeat(28, 0).repeat(28, 1)), format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return f"data:video/mp4;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass
class Tally:
    """What became of the requests."""

    sent: int = 0
    whole: int = 0
    left: int = 0
    """Clients that went away in the middle."""
    compared: int = 0
    wrong: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


def _pieces(client: httpx2.Client, url: str, body: dict[str, Any]) -> Iterator[str]:
    """Pieces of text. Ends normally only after the stream's own end.

    Raises:
        RuntimeError: anything but a whole stream.
    """
    with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            answer.read()
            raise RuntimeError(f"status {answer.status_code}: {answer.text[:200]}")
        finished = False
        for line in answer.iter_lines():
            data = line.removeprefix("data: ")
            if not line or data == line:
                continue
            if data == "[DONE]":
                if not finished:
                    raise RuntimeError("a stream ended without a finish_reason")
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            for choice in chunk["choices"]:
                finished = finished or choice["finish_reason"] is not None
                yield choice["delta"].get("content") or ""
    raise RuntimeError("a stream broke off")


def _client() -> httpx2.Client:
    """A connection for every request: one that is kept may be closed by the server just when the next is sent."""
    return httpx2.Client(timeout=900, limits=httpx2.Limits(max_keepalive_connections=0))


def answers_to(url: str, questions: Sequence[Question], clients: int = 1) -> dict[int, str]:
    """The answers to questions that are asked one after the other, or by so many clients at once."""

    def answer(mine: Sequence[Question]) -> dict[int, str]:
        with _client() as client:
            return {q.key: "".join(_pieces(client, url, q.body)) for q in mine if q.key is not None}

    with ThreadPoolExecutor(clients) as crowd:
        shares = crowd.map(answer, [questions[first::clients] for first in range(clients)])
        return {key: text for share in shares for key, text in share.items()}


def traffic(
    url: str,
    clients: int,
    seconds: float,
    rng: random.Random,
    *,
    known: Sequence[Question],
    answers: dict[int, str],
    leave: float,
    new: float,
) -> Tally:
    """`clients` clients, each asking the next question as soon as it has its answer.

    Args:
        known, answers: questions to choose from, and what was said to them alone.
        leave: share of requests whose client goes away after a few pieces.
        new: share of questions that were never asked before (half of them greedy).
    """
    tally, until = Tally(), time.monotonic() + seconds
    seeds = [rng.randrange(2**32) for _ in range(clients)]

    def run(seed: int) -> None:
        own = random.Random(seed)
        with _client() as client:
            while time.monotonic() < until:
                fresh = not known or own.random() < new
                asked = question(own, greedy=own.random() < 0.5) if fresh else own.choice(known)
                stop_after = own.randint(1, 12) if own.random() < leave else None
                _ask(client, url, asked, stop_after, answers, tally)

    threads = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def _ask(
    client: httpx2.Client, url: str, asked: Question, stop_after: int | None, answers: dict[int, str], tally: Tally
) -> None:
    tally.add(sent=1)
    said: list[str] = []
    gone = False
    pieces = _pieces(client, url, asked.body)
    try:
        for piece in pieces:
            said.append(piece)
            if len(said) == stop_after:
                gone = True
                pieces.close()
                break
    except (RuntimeError, httpx2.HTTPError) as error:
        tally.problems.append(f"{type(error).__name__}: {error}")
        return
    tally.add(left=gone, whole=not gone)
    if asked.key is None:
        return
    tally.add(compared=1)
    text, wanted = "".join(said), answers[asked.key]
    if not (wanted.startswith(text) if gone else text == wanted):
        tally.wrong.append(f"{text!r} instead of {wanted!r}")
