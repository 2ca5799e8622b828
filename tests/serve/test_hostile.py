"""What careless and hostile clients do: a clear 4xx, the server stays up, nothing leaks."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zlib

import httpx2
import pytest
from canned_live import CannedLive
from live_server import Live, ask, data_uri, error_of, picture, png, serving

from qvl.serve.config import Limits, ServeConfig


@pytest.fixture(scope="module")
def engine() -> CannedLive:
    return CannedLive()


@pytest.fixture(scope="module")
def live(engine: CannedLive):
    limits = Limits(body_bytes=600_000, messages=100, media=5, source_pixels=10_000_000)
    with serving(engine, ServeConfig(port=0, limits=limits)) as server:
        yield server


@pytest.fixture(autouse=True)
def stays_up(live: Live, engine: CannedLive):
    """After each attack: the server answers, no request hangs in the engine, no file is open that was not before."""
    assert live.post(ask("hi")).status_code == 200
    before = open_files()
    yield
    engine.gate.set()
    assert live.post(ask("hi")).status_code == 200
    deadline = time.monotonic() + 60
    while (open_files() > before or engine.open_tickets) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.open_tickets == 0
    assert open_files() <= before


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
PICTURES = {
    "a bomb": (data_uri(bomb()), "50000 x 50000 = 2,500,000,000 pixels"),
    "wrong base64": ("data:image/png;base64,@@@@", "invalid base64"),
    "no base64": ("data:image/png,abc", "must be base64"),
    "svg": (data_uri(SVG, "image/svg+xml"), "not a picture in any accepted format"),
    "svg that says png": (data_uri(SVG), "not a picture in any accepted format"),
    "html": (data_uri(b"<html></html>", "text/html"), "declares 'text/html'"),
    "cut short": (data_uri(png()[:20]), "cannot decode picture"),
    "nothing": ("data:image/png;base64,", "is empty"),
    "a file": ("file:///etc/passwd", "files of the server are not open"),
    "a path": ("/etc/passwd", "files of the server are not open"),
    "metadata of a cloud": ("http://169.254.169.254/latest/meta-data/", "this server fetches none"),
    "itself": ("http://localhost:22/", "this server fetches none"),
    "another scheme": ("gopher://x/", "files of the server are not open"),
    "an upload of nobody": ("file-none", "there is no uploaded file"),
    "a number": (7, "must be a text"),
    "empty": ("", "must be a text"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_bad_pictures(live, name):
    url, message = PICTURES[name]
    answer = live.post(ask(picture(url), "What is it?"))
    assert answer.status_code == 400
    error = error_of(answer)
    assert message in error["message"]
    assert error["param"] == "messages.0.content.0.image_url"
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 600


def without(body: dict, key: str) -> dict:
    return {k: v for k, v in body.items() if k != key}


def talk(*messages: object) -> dict:
    return {"model": "canned", "messages": list(messages)}


BODIES = {
    "not json": (b"{", None, "not JSON"),
    "not an object": (b"[]", None, "valid dictionary"),
    "deeply nested": (b'{"model":' + b"[" * 100_000, None, ""),
    "no messages": (without(ask("hi"), "messages"), "messages", "required"),
    "empty messages": (talk(), "messages", "at least 1"),
    "many messages": (talk(*[{"role": "user", "content": "x"}] * 10_000), "messages", "10,000 messages"),
    "many pictures": (ask(*[picture("x")] * 6), "messages", "6 pictures"),
    "an unknown field": (ask("hi", top_kk=3), "top_kk", "is not a field"),
    "a penalty": (ask("hi", presence_penalty=1.5), "presence_penalty", "not implemented here"),
    "an unknown role": (talk({"role": "boss", "content": "x"}), "messages", "role 'boss'"),
    "a message that is text": (talk("hi"), "messages.0", "dictionary"),
    "an unknown part": (ask({"type": "input_audio", "input_audio": {}}), "messages", "type 'input_audio'"),
    "content of a number": (talk({"role": "user", "content": 3}), "messages", "content must be"),
    "too hot": (ask("hi", temperature=-1), "temperature", "greater than or equal to 0"),
    "not a number": (json.dumps(ask("hi", temperature=float("nan"))).encode(), "temperature", ""),
    "no tokens": (ask("hi", max_tokens=0), "max_tokens", "greater than or equal to 1"),
    "many choices": (ask("hi", n=1000), "n", "n is 1000; the limit is 8"),
    "an empty stop": (ask("hi", stop=[""]), "stop", "not empty"),
    "another model": (ask("hi") | {"model": "gpt"}, "model", "no model 'gpt'"),
    "half a character": (talk({"role": "user", "content": "\ud800"}) | {"top": 1}, "top", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies(live, name):
    body, param, message = BODIES[name]
    answer = live.post(body)
    assert answer.status_code in (400, 404), answer.text
    error = error_of(answer)
    assert error["param"] == param
    assert message in error["message"]
    assert len(error["message"]) < 600


def test_bodies_that_are_too_large_are_not_read_into_memory(live):
    answer = live.post(b" " * 700_000)
    assert answer.status_code == 413
    assert "700,000 bytes or more; the limit is 600,000" in error_of(answer)["message"]
    with live.connect() as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 413")

    def pieces():
        for _ in range(80):
            yield b" " * 10_000

    try:
        answer = httpx2.post(f"{live.url}/v1/chat/completions", content=pieces(), timeout=20)
        assert answer.status_code == 413
    except httpx2.TransportError:
        pass  # the connection may be closed before the client has looked


def test_a_form_must_be_json(live):
    """A page of another site can send forms, but not JSON, without being asked."""
    answer = live.post(json.dumps(ask("hi")).encode(), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400


def test_pages_of_other_sites_and_other_names_are_turned_away(live):
    assert live.post(ask("hi"), headers={"Origin": "https://evil.example"}).status_code == 403
    assert live.post(ask("hi"), headers={"Host": "evil.example"}).status_code == 403
    assert live.post(ask("hi"), headers={"Origin": live.url}).status_code == 200


def test_clients_that_say_nothing_are_let_go():
    with serving(CannedLive(), ServeConfig(port=0, limits=Limits(header_s=0.3, body_s=0.3))) as hasty:
        with hasty.connect() as sock:
            sock.sendall(b"POST /v1/chat")
            assert sock.recv(1000) == b""
        with hasty.connect() as sock:
            assert sock.recv(1000) == b""
        with hasty.connect() as sock:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            sock.sendall(head + b"Content-Length: 100\r\n\r\n{")
            assert sock.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_client_that_goes_away_ends_its_request(live, engine):
    engine.answer = lambda request: "word " * 1000
    engine.gate.clear()
    for stream in (False, True):
        before = engine.cancelled
        body = json.dumps(ask("hi", stream=stream, max_tokens=1000)).encode()
        with live.connect() as sock:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            sock.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: engine.open_tickets == 1)
        wait_for(lambda n=before + 1: engine.cancelled == n and engine.open_tickets == 0)
    engine.gate.set()
    before = engine.cancelled
    engine.pause_s = 0.01
    with httpx2.stream(
        "POST", f"{live.url}/v1/chat/completions", json=ask("hi", stream=True, max_tokens=1000)
    ) as answer:
        next(answer.iter_lines())
    wait_for(lambda: engine.cancelled == before + 1 and engine.open_tickets == 0)
    engine.pause_s = 0.0
    engine.answer = lambda request: "a cat"


def wait_for(true, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


def test_bad_uploads(live):
    answer = httpx2.post(f"{live.url}/v1/files", files={"other": ("a.png", png())})
    assert answer.status_code == 400
    assert "in the field 'file'" in error_of(answer)["message"]
    answer = httpx2.post(f"{live.url}/v1/files", files={"file": ("a.png", b"")})
    assert "is empty" in error_of(answer)["message"]
    answer = httpx2.post(f"{live.url}/v1/files", content=b"nonsense", headers={"Content-Type": "multipart/form-data"})
    assert answer.status_code == 400
    error_of(answer)
    answer = httpx2.post(f"{live.url}/v1/files", files={"file": ("../../etc/passwd", io.BytesIO(png()))})
    assert answer.json()["filename"]


def test_unknown_paths_and_methods_answer_in_the_same_shape(live):
    for path in ("/v1/nothing", "/page/../app.py", "/page/nothing.js", "/v1/files/file-none"):
        answer = httpx2.get(live.url + path)
        assert answer.status_code == 404
        error_of(answer)
    answer = httpx2.get(f"{live.url}/v1/chat/completions")
    assert answer.status_code == 405
    error_of(answer)
