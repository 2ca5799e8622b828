"""What happens before a request is looked at: who asks, how often, how large, how slowly.

Knows: keys, hosts, rates, body sizes and times. Does not know: what is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from qvl.serve.config import Limits, ServeConfig
from qvl.serve.errors import ApiError, error_body
from qvl.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_OPEN = ("/", "/health", "/favicon.ico")
"""Paths that need no key; so does everything under /page/."""
_COSTLY = ("/v1/chat/completions", "/v1/files")


@final
class Gate:
    """ASGI middleware. Puts the asker's name (a hash of the key) into `scope["state"]["owner"]`."""

    def __init__(self, app: App, config: ServeConfig, metrics: Metrics) -> None:
        self._app = app
        self._config = config
        self._metrics = metrics
        self._keys = [_digest(key) for key in config.api_keys]
        self._rates = _Rates(config.limits)
        self._held = _Held()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        counted = path if path in (*_OPEN, *_COSTLY, "/v1/models", "/metrics") else "other"

        async def counting_send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._metrics.response(counted, message["status"])
            await send(message)

        body = _Body(receive, self._config.limits, self._held)
        self._metrics.in_flight += 1
        owner = ""
        entered = False
        try:
            self._check_host(headers)
            if path not in _OPEN and not path.startswith("/page/"):
                owner = self._owner(headers)
            if path in _COSTLY and scope["method"] == "POST":
                self._rates.enter(owner)
                entered = True
            await body.check_declared(headers)
            scope.setdefault("state", {})["owner"] = owner
            await self._app(scope, body.receive, counting_send)
        except ApiError as error:  # raised here; those of the app are answered by the app
            content = error_body(error.status_code, error.detail, error.param, error.code)
            close = {"Connection": "close"} if error.status_code in (408, 413) else {}
            answer = JSONResponse(content, error.status_code, {**(error.headers or {}), **close})
            await answer(scope, receive, counting_send)
        finally:
            self._metrics.in_flight -= 1
            body.let_go()
            if entered:
                self._rates.leave(owner)

    def _owner(self, headers: Headers) -> str:
        if not self._keys:
            return "everyone"
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        known = [hmac.compare_digest(given, own) for own in self._keys]  # all are compared: no early way out
        if kind.lower() != "bearer" or not any(known):
            raise ApiError(
                "a key is needed: send it as the header 'Authorization: Bearer KEY'", status=401, code="invalid_api_key"
            )
        return given.hex()[:16]

    def _check_host(self, headers: Headers) -> None:
        """A page of another site must not use a server that trusts everybody on this machine: neither directly (its
        `Origin` is another) nor under a name that it made point here (`Host` is not a name of this machine)."""
        if self._keys:
            return
        host = _host(headers.get("host", ""))
        if self._config.host in _LOOPBACK and host not in _LOOPBACK:
            raise ApiError(
                f"host {host!r} is not this machine; use 127.0.0.1, or start the server with a key", status=403
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            raise ApiError(f"pages of {origin} may not use this server; start it with a key", status=403)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host(header: str) -> str:
    """`127.0.0.1:8000` -> `127.0.0.1`, `[::1]:8000` -> `::1`."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


@final
class _Rates:
    """Requests of each owner in the last minute, and under way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._recent: dict[str, deque[float]] = {}
        self._under_way: Counter[str] = Counter()

    def enter(self, owner: str) -> None:
        per_minute, concurrent = self._limits.requests_per_minute, self._limits.concurrent
        if concurrent and self._under_way[owner] >= concurrent:
            raise ApiError(
                f"{self._under_way[owner]} requests of this key are under way; the limit is {concurrent}",
                status=429, code="rate_limit_exceeded", retry_after_s=1,
            )  # fmt: skip
        if per_minute:
            now, times = time.monotonic(), self._recent.setdefault(owner, deque())
            while times and times[0] <= now - 60:
                times.popleft()
            if len(times) >= per_minute:
                wait = int(times[0] + 60 - now) + 1
                raise ApiError(
                    f"this key has made {len(times)} requests in the last minute; the limit is {per_minute}. "
                    f"Try again in {wait} s",
                    status=429, code="rate_limit_exceeded", retry_after_s=wait,
                )  # fmt: skip
            times.append(now)
        self._under_way[owner] += 1

    def leave(self, owner: str) -> None:
        self._under_way[owner] -= 1
        if not self._under_way[owner]:
            del self._under_way[owner]


@final
class _Held:
    """Bytes of all bodies of requests under way."""

    def __init__(self) -> None:
        self.bytes = 0


@final
class _Body:
    """A request's body, refused when it is too large, comes too slowly, or finds too many others."""

    def __init__(self, receive: Receive, limits: Limits, held: _Held) -> None:
        self._receive = receive
        self._limits = limits
        self._held = held
        self._deadline = asyncio.get_running_loop().time() + limits.body_s
        self._got = 0
        self._whole = False

    async def check_declared(self, headers: Headers) -> None:
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._limits.body_bytes:
            await self._discard(int(declared))
            raise self._too_large(int(declared))

    async def receive(self) -> MutableMapping[str, Any]:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(
                f"the request's body was not there within {self._limits.body_s:g} s ({self._got:,} bytes came)",
                status=408,
            ) from None
        came = len(message.get("body", b""))
        self._got += came
        self._held.bytes += came
        self._whole = not message.get("more_body", False)
        if self._got > self._limits.body_bytes:
            raise self._too_large(self._got)
        if self._held.bytes > self._limits.bodies_total_bytes and self._held.bytes > self._got:
            raise ApiError(
                f"requests under way hold {self._held.bytes:,} bytes; the limit is "
                f"{self._limits.bodies_total_bytes:,}. Try again later",
                status=503, code="queue_full", retry_after_s=2,
            )  # fmt: skip
        return message

    def let_go(self) -> None:
        """The request is over."""
        self._held.bytes -= self._got
        self._got = 0

    def _too_large(self, size: int) -> ApiError:
        return ApiError(
            f"the request has {size:,} bytes or more; the limit is {self._limits.body_bytes:,}. Upload large files at "
            "/v1/files, or send smaller pictures",
            status=413, code="request_too_large",
        )  # fmt: skip

    async def _discard(self, declared: int) -> None:
        """Most clients read no answer before they have sent everything: bodies somewhat too large are let come."""
        if declared > 4 * self._limits.body_bytes:
            return
        try:
            async with asyncio.timeout(5):
                while (await self._receive()).get("more_body", False):
                    pass
        except TimeoutError:
            return
