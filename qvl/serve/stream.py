"""Server-sent events.

Knows: the event format. Does not know: what the events say, clients that read nothing (`server`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qvl.serve.errors import ApiError, error_body


@final
class EventStream(Response):
    """Sends each item as `data: {json}`, at last `data: [DONE]`; an exception becomes a last event with an error."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[dict[str, Any]]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(body: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            try:
                async for event in self._events:
                    await write(_event(event))
            except ApiError as error:
                await write(_event(error_body(error.status_code, error.detail, error.param, error.code)))
            except Exception as error:
                await write(_event(error_body(500, f"the reply broke off: {error or type(error).__name__}")))
            await write(b"data: [DONE]\n\n")
            await write(b"", more=False)
        finally:
            await self._events.aclose()


def _event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
