"""The process: a socket, uvicorn, and a calm end.

Knows: connections that never say anything, SIGTERM. Does not know: paths, requests.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any, final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from qvl.engine.api import LiveEngine
from qvl.serve.app import create_app
from qvl.serve.config import ServeConfig

_MAX_CONNECTIONS = 1000


def make_server(engine: LiveEngine, config: ServeConfig) -> uvicorn.Server:
    """A server that is not listening yet; `run` it.

    On SIGTERM or Ctrl-C it takes no new connection, lets requests under way finish for `config.drain_s` seconds,
    cancels the rest, and closes the engine.
    """

    @final
    class Patient(_PatientProtocol):
        header_s = config.limits.header_s
        write_s = config.limits.write_s

    return uvicorn.Server(
        uvicorn.Config(
            create_app(engine, config),
            http=Patient,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=max(1, round(config.drain_s)),
        )
    )


def listen(config: ServeConfig) -> socket.socket:
    """The bound socket, so that port 0 has a number before the server runs.

    Raises:
        OSError: the address is taken or not of this machine; the message names it.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen on {config.host}:{config.port}: {error}; choose another --port") from error
    return sock


def run(server: uvicorn.Server, sock: socket.socket) -> None:
    """Serves in the main thread until told to stop, and returns when that is done.

    Raises:
        KeyboardInterrupt: it was told by Ctrl-C.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn raises the signal once more at its end
    try:
        server.run(sockets=[sock])
    finally:
        signal.signal(signal.SIGTERM, before)


class _PatientProtocol(H11Protocol):
    """Ends connections that uvicorn itself would keep for ever: those that have not sent a whole request head in time,
    and those that take nothing of their answer, be it under way or said to the end."""

    header_s: float
    write_s: float
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _full = False
    """The client takes less than is written: nothing more is until it does."""
    _unsent = 0
    """Bytes that waited at the last look."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()
        self._look_at_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._full = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self._full = False

    def _look_at_writing(self) -> None:
        """While a connection is full or closing nothing is added, so bytes that do not become fewer are not taken."""
        stuck = self._full or self.transport.is_closing()
        unsent = self.transport.get_write_buffer_size() if stuck else 0
        if unsent and unsent == self._unsent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._write_timer = self.loop.call_later(self.write_s, self._look_at_writing)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_is_missing():
            self._await_head()
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _head_is_missing(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _await_head(self) -> None:
        """The clock starts with the first byte and is not wound up again by further ones."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.header_s, self._close_if_silent)

    def _close_if_silent(self) -> None:
        self._head_timer = None
        if self._head_is_missing() and not self.transport.is_closing():
            self.transport.close()
