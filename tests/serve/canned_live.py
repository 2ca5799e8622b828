"""A `LiveEngine` that says what it is told to, at a pace that tests choose."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from qvl.engine.api import Box, Delta, EngineStats, QueueFull, Reply, Request, TokenLogprob, Usage
from qvl.media.image import image_hw
from qvl.text.grounding import Coordinates, parse_grounding
from qvl.text.messages import Image, Message, Text, Video, parse_messages


def words(request: Request) -> str:
    """Everything a request says, roles included."""
    turns = parse_messages(request.messages)
    return "\n".join(f"{t.role}: " + "".join(p.text for p in t.parts if isinstance(p, Text)) for t in turns)


@dataclass
class CannedLive:
    """Answers with `answer(request)`, `piece` characters at a time; `gate` stops it before every piece."""

    answer: Callable[[Request], str] = lambda request: "a cat"
    model_name: str = "canned"
    max_waiting: int = 1000
    refusal: str = ""
    problem: str = ""
    finish: str = "stop"
    pause_s: float = 0.0
    piece: int = 4
    """Characters."""
    asked: list[Request] = field(default_factory=list)
    cancelled: int = 0
    open_tickets: int = 0
    closed: bool = False
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()
        self._lock = threading.Lock()

    def submit(self, request: Request) -> CannedTicket:
        if self.refusal:
            raise ValueError(self.refusal)
        if self.open_tickets >= self.max_waiting:
            raise QueueFull(f"{self.open_tickets} requests wait")
        with self._lock:
            self.asked.append(request)
            self.open_tickets += 1
        return CannedTicket(self, request)

    def submit_all(self, requests: Sequence[Request]) -> list[CannedTicket]:
        if self.open_tickets + len(requests) > self.max_waiting:
            raise QueueFull(f"{self.open_tickets} requests wait")
        return [self.submit(request) for request in requests]

    def stats(self) -> EngineStats:
        return EngineStats(self.open_tickets, 0, 0, 0, len(self.asked), 0, 0, 0, 0, 0, 0, self.cancelled)

    def close(self, *, drain_s: float) -> None:
        self.closed = True


class CannedTicket:
    def __init__(self, engine: CannedLive, request: Request) -> None:
        self._engine = engine
        self._request = request
        self._cancelled = threading.Event()
        self._over = False

    def cancel(self) -> None:
        if not self._over and not self._cancelled.is_set():
            self._engine.cancelled += 1
        self._cancelled.set()

    def listen(self, sink: Callable[[Delta | Reply], None]) -> None:
        threading.Thread(target=lambda: [sink(item) for item in self], daemon=True).start()

    def __iter__(self) -> Iterator[Delta | Reply]:
        engine, sampling = self._engine, self._request.sampling
        text = "" if engine.problem else engine.answer(self._request)
        for stop in sampling.stop:
            text = text.partition(stop)[0]
        said, tokens = "", []
        for at in range(0, len(text), engine.piece):
            while not engine.gate.wait(0.01) and not self._cancelled.is_set():
                pass
            if self._cancelled.wait(engine.pause_s) or len(tokens) == sampling.max_new_tokens:
                break
            piece = text[at : at + engine.piece]
            said += piece
            token = TokenLogprob(
                at, piece.encode(), -0.5, ((at, piece.encode(), -0.5), (1, b"\xff", -1.5))[: sampling.top_logprobs]
            )
            tokens.append(token)
            yield Delta(piece, (token,) if sampling.logprobs else ())
        self._over = True
        engine.open_tickets -= 1
        yield self._reply(said, tokens, cut=len(said) < len(text))

    def _reply(self, said: str, tokens: list[TokenLogprob], cut: bool) -> Reply:
        messages: tuple[Message, ...] = parse_messages(self._request.messages)
        media = [p for m in messages for p in m.parts if isinstance(p, Image | Video)]
        sizes = [image_hw(p.source) if isinstance(p, Image) else (28, 28) for p in media]
        boxes = tuple(
            Box(found.label, Coordinates(sizes[0], sizes[0]).box_1000_to_px(box))
            for found in parse_grounding(said)
            for box in found.boxes_1000
            if sizes
        )
        finish = "cancelled" if self._cancelled.is_set() else "length" if cut else self._engine.finish
        ms = {"queue": 1.0, "prefill": 20.0, "generate": 30.0}
        usage = Usage(
            10 + len(media), 4 * len(media), len(tokens), tuple(sizes), cache_hits=1, cached_tokens=3, milliseconds=ms
        )
        ids = tuple(t.token_id for t in tokens)
        return Reply(said, ids, finish, boxes, usage, (), tuple(tokens), self._engine.problem)
