"""Requests being answered, step by step: schedule, compute, choose, hand out.

Knows: the parts (scheduler, runner, sampler, answers) and the order in which they act; who gets what was made.
Does not know: threads, how many callers there are, how any of the parts works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from qvl.engine.answer import Answer, open_prompt
from qvl.engine.api import Delta, EngineStats, Reply, Request
from qvl.engine.grammar import Grammars
from qvl.engine.kv_pool import PagePool
from qvl.engine.limits import Limits
from qvl.engine.native.pages import CellStore
from qvl.engine.paged import PagedStore
from qvl.engine.runner import Model, Runner
from qvl.engine.sampler import choose_tokens
from qvl.engine.scheduler import Piece, Scheduler, Track
from qvl.engine.seeing import Seeing
from qvl.engine.vision_cache import VisionCache
from qvl.inputs.processor import Processor
from qvl.layers.decoder import DecoderConfig
from qvl.layers.rope import ntk_alpha

Sink = Callable[[Delta | Reply], None]
_DEFAULT_CACHE_BYTES = 4 << 30


@dataclass
class Counters:
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    vision_tokens: int = 0
    prefix_hits: int = 0
    vision_hits: int = 0
    cancelled: int = 0

    def count(self, answer: Answer, reply: Reply) -> None:
        usage = reply.usage
        self.requests += 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.vision_tokens += usage.vision_tokens
        self.prefix_hits += usage.cached_tokens > 0
        self.vision_hits += usage.cache_hits
        self.cancelled += reply.finish_reason == "cancelled" and answer.error is None


@final
class Session:
    """Not for several threads at once, except `prepare`."""

    def __init__(self, model: Model, processor: Processor, limits: Limits) -> None:
        self._model = model
        self._processor = processor
        self._limits = limits
        self._grammars = Grammars(processor.tokenizer)
        self._answers: dict[Track, tuple[Answer, Sink]] = {}
        self._added = 0
        self._preempted_before = 0
        self.counters = Counters()
        self._build()

    def _build(self) -> None:
        """Empty caches for the model as it is now."""
        text, weight, limits = self._model.config.text, self._model.embed.weight, self._limits
        pages = _cache_pages(self._model, limits)
        self._weights = _fingerprint(self._model)
        fits = CellStore.fits(text, limits.page_tokens, weight.dtype, weight.device)
        self._store = (CellStore if fits else PagedStore)(text, pages, limits.page_tokens, weight.dtype, weight.device)
        self._pool = PagePool(pages)
        vision = VisionCache(limits.vision_cache_mib << 20)
        merge = self._processor.config.geometry.merge
        seeing = Seeing(
            self._model.see,
            vision,
            rope_axes=text.rope_axes,
            merge=merge,
            device=weight.device,
            kernels=weight.dtype == torch.bfloat16,
        )
        self._runner = Runner(self._model, self._store, seeing)
        self._scheduler = Scheduler(limits, self._pool, vision.__contains__)

    def _rebuild(self) -> None:
        self._preempted_before += self._scheduler.preemptions
        self._build()

    @property
    def busy(self) -> bool:
        """There is something left to do."""
        return bool(self._answers)

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting)

    def prepare(self, request: Request) -> Answer:
        """Opens and cuts up the request's pictures and checks that it can be answered. May run in any thread.

        Raises:
            ValueError, FileNotFoundError: it cannot be answered, and why.
        """
        return self.prepare_all([request])[0]

    def prepare_all(self, requests: Sequence[Request]) -> list[Answer]:
        """The same for requests that ask the same messages: their pictures are opened once and held once.

        Raises: as `prepare`.
        """
        first = requests[0]
        assert all(r.messages is first.messages and r.chat_format == first.chat_format for r in requests)
        longest = max(requests, key=lambda r: r.sampling.max_new_tokens)
        prompt = open_prompt(longest, self._processor, self._model.config.max_positions)
        answers = []
        for request in requests:
            answer = Answer(
                request,
                prompt,
                self._processor,
                self._grammars,
                page_tokens=self._limits.page_tokens,
                salt=lambda tokens: _salt(self._model.config.text, tokens),
            )
            self._scheduler.check(answer.track)
            answer.held_bytes = 0 if answers else answer.held_bytes
            answers.append(answer)
        return answers

    def add(self, answer: Answer, sink: Sink) -> None:
        """Queues a prepared request. `sink` gets its pieces and at last, whatever happens, its reply.

        Raises:
            ValueError: it does not fit into the cache.
        """
        if not self._answers and _fingerprint(self._model) != self._weights:
            self._rebuild()  # what the caches hold was computed by other weights
        answer.added = time.perf_counter()
        answer.track.number = self._added
        self._scheduler.add(answer.track)
        self._added += 1
        self._answers[answer.track] = answer, sink

    def cancel(self, answer: Answer) -> None:
        """Ends a request, wherever it is; nothing happens if it is finished."""
        if answer.track in self._answers:
            _, sink = self._answers[answer.track]
            if (rest := answer.call_off()) is not None:
                sink(rest)
            self._end(answer)

    def fail_all(self, error: Exception) -> None:
        """Ends every request because of an error that belongs to none of them, and begins with empty caches."""
        for answer, _ in list(self._answers.values()):
            answer.fail(error)
            self._end(answer)
        self._rebuild()

    @torch.inference_mode()
    def step(self) -> None:
        """Computes one step and hands out what it brought."""
        pieces = self._scheduler.plan()
        assert pieces or not self._answers, "requests wait, but none can go on"
        now = time.perf_counter()
        for piece in pieces:
            answer, _ = self._answers[piece.track]
            if not answer.ms["queue"]:
                answer.ms["queue"] = 1000 * (now - answer.added)
        if pieces:
            self._compute(pieces)

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages_used=self._pool.used,
            pages_total=self._pool.pages,
            preemptions=self._preempted_before + scheduler.preemptions,
            **vars(self.counters),
        )

    def _compute(self, pieces: list[Piece]) -> None:
        """Runs the pieces; if that goes wrong, each on its own, so that only those fail that cannot go on."""
        work = [(self._answers[piece.track][0], piece) for piece in pieces]
        try:
            last, logits_BV = self._runner.run(work)
            answers = [work[i][0] for i in last]
            choices = choose_tokens(logits_BV, [answer.sampler for answer in answers])
        except Exception as error:
            if len(pieces) > 1:
                for piece in pieces:
                    self._compute([piece])
            else:
                self._fail(work[0][0], error)
            return
        self._scheduler.done(pieces)
        for answer, choice in zip(answers, choices, strict=True):
            if choice.problem:
                self._fail(answer, ValueError(choice.problem))
                continue
            delta = answer.push(choice)
            if delta is not None:
                self._answers[answer.track][1](delta)
            if answer.finish:
                self._end(answer)

    def _fail(self, answer: Answer, error: Exception) -> None:
        answer.fail(error)
        self._store.scrub(self._scheduler.discard(answer.track))
        self._end(answer)

    def _end(self, answer: Answer) -> None:
        _, sink = self._answers.pop(answer.track)
        self._scheduler.drop(answer.track)
        reply = answer.reply()
        self.counters.count(answer, reply)
        sink(reply)


def _cache_pages(model: Model, limits: Limits) -> int:
    if limits.cache_tokens is not None:
        return -(-limits.cache_tokens // limits.page_tokens)
    tokens = model.config.max_positions + 1024 * (limits.max_rows - 1)
    page_bytes = PagedStore.page_bytes(model.config.text, limits.page_tokens, model.embed.weight.dtype)
    return max(1, min(-(-tokens // limits.page_tokens), _DEFAULT_CACHE_BYTES // page_bytes))


def _salt(text: DecoderConfig, prompt_tokens: int) -> bytes:
    """What keys and values depend on besides the tokens before them: Qwen-VL's angles follow the prompt's length."""
    if text.beyond is None or not text.beyond.dynamic_ntk:
        return b""
    return str(ntk_alpha(prompt_tokens, text.beyond.trained_len)).encode()


def _fingerprint(model: Model) -> list[tuple[int, int, torch.dtype]]:
    """Changes when weights are trained, loaded, moved or cast: where they lie and how often they were written."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype) for p in model.parameters()]
