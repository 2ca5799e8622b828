"""A server on a real socket, in a thread."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import numpy as np
from PIL import Image

from qvl.engine.api import LiveEngine
from qvl.serve.config import ServeConfig
from qvl.serve.server import listen, make_server


@dataclass(frozen=True)
class Live:
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, body: object, **kwargs: object) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **kwargs.pop("headers", {})}
        return httpx2.post(f"{self.url}/v1/chat/completions", content=content, headers=headers, timeout=60, **kwargs)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextmanager
def serving(engine: LiveEngine, config: ServeConfig | None = None) -> Iterator[Live]:
    config = config or ServeConfig(port=0)
    sock = listen(config)
    server = make_server(engine, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    assert server.started
    try:
        yield Live(sock.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)
        sock.close()
        assert not thread.is_alive()


def png(height: int = 40, width: int = 60) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(url: str, **options: object) -> dict:
    return {"type": "image_url", "image_url": {"url": url, **options}}


def ask(*parts: object, **fields: object) -> dict:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"model": "canned", "messages": [{"role": "user", "content": content}], **fields}


def error_of(response: httpx2.Response) -> dict:
    """The error of a response in OpenAI's shape."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
