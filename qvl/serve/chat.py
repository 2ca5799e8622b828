"""`/v1/chat/completions`: from a checked body to an answer, streamed or whole.

Knows: the order of things. Does not know: what messages mean (`conversation`), how chunks look (`replies`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qvl.engine.api import Delta, LiveEngine, QueueFull, Reply
from qvl.serve.config import ServeConfig
from qvl.serve.conversation import Question, read_question
from qvl.serve.errors import ApiError
from qvl.serve.metrics import Metrics
from qvl.serve.relay import Relay
from qvl.serve.replies import Choice, Envelope, usage_of
from qvl.serve.schema import ChatRequest
from qvl.serve.sources import Sources
from qvl.serve.stream import EventStream

CLIENT_GONE = 499
"""Nobody reads it; it is what the metrics count."""


@final
class ChatEndpoint:
    def __init__(self, engine: LiveEngine, config: ServeConfig, sources: Sources, metrics: Metrics) -> None:
        self._engine = engine
        self._config = config
        self._sources = sources
        self._metrics = metrics

    async def answer(self, body: ChatRequest, request: Request) -> Response:
        """
        Raises:
            ApiError: it cannot be answered.
        """
        if body.model != self._engine.model_name:
            raise ApiError(
                f"there is no model {body.model[:100]!r} here; this server has {self._engine.model_name!r}",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip
        started = time.monotonic()
        owner: str = request.state.owner
        question = await run_in_threadpool(
            read_question, body, lambda url, kind: self._sources.load(url, kind, owner), self._config
        )
        relay = await self._submit(question)
        answer = _Answer(body, question, relay, Envelope(self._engine.model_name))
        items = self._timed(relay.items(request.receive, self._config.limits.request_s), started)
        if body.stream:
            try:
                first = await anext(items)
                answer.refuse_early(first[1])
            except BaseException:
                await items.aclose()
                raise
            return EventStream(answer.events(first, items))
        async with aclosing(items):
            async for number, item in items:
                answer.take(number, item)
        if relay.why == "gone":
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(answer.completion())

    async def _submit(self, question: Question) -> Relay:
        try:
            return await run_in_threadpool(Relay.submit, self._engine, question.requests)
        except QueueFull as error:
            raise ApiError(
                str(error) or "too many requests wait; try again later", status=503, code="queue_full", retry_after_s=2
            ) from error
        except (ValueError, FileNotFoundError) as error:
            raise ApiError(str(error)) from error

    async def _timed(
        self, items: AsyncGenerator[tuple[int, Delta | Reply]], started: float
    ) -> AsyncGenerator[tuple[int, Delta | Reply]]:
        first = True
        async with aclosing(items):
            async for item in items:
                if first:
                    self._metrics.took("time_to_first_token", time.monotonic() - started)
                    first = False
                yield item
        self._metrics.took("request", time.monotonic() - started)


@final
class _Answer:
    """The choices of one request, as they come."""

    def __init__(self, body: ChatRequest, question: Question, relay: Relay, envelope: Envelope) -> None:
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._relay = relay
        self._envelope = envelope
        self._choices = [Choice(i, question) for i in range(body.n)]

    def refuse_early(self, item: Delta | Reply) -> None:
        """Before anything was said, what went wrong can still be a status.

        Raises:
            ApiError: the reply failed, or its time was over before it began.
        """
        if not isinstance(item, Reply):
            return
        if item.problem:
            raise ApiError(item.problem, status=500, code="not_answered")
        if item.finish_reason == "cancelled" and self._relay.why == "time_limit" and not item.token_ids:
            raise ApiError("the request waited too long for its turn; try again later", status=503, retry_after_s=5)

    def take(self, number: int, item: Delta | Reply) -> list[dict[str, Any]]:
        if isinstance(item, Reply):
            self.refuse_early(item)
            return self._choices[number].finish(item, self._relay.why)
        return self._choices[number].push(item)

    def completion(self) -> dict[str, Any]:
        return self._envelope.completion([choice.whole(self._relay.why) for choice in self._choices], self._usage())

    async def events(
        self, first: tuple[int, Delta | Reply], rest: AsyncGenerator[tuple[int, Delta | Reply]]
    ) -> AsyncGenerator[dict[str, Any]]:
        async with aclosing(rest):
            for choice in range(len(self._choices)):
                start = {"index": choice, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield self._envelope.chunk([start | {"logprobs": None}])
            for piece in self.take(*first):
                yield self._envelope.chunk([piece])
            async for number, item in rest:
                for piece in self.take(number, item):
                    yield self._envelope.chunk([piece])
        if self._with_usage:
            yield self._envelope.chunk([], self._usage())

    def _usage(self) -> dict[str, Any]:
        return usage_of([choice.reply for choice in self._choices if choice.reply is not None])
