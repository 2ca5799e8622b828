"""What careless and hostile clients do: a clear 4xx, the server stays up, nothing leaks."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import os
import re
import struct
import threading
import time
import zlib

import httpx2
import pytest
from canned_live import CannedLive
from clips import clip_file
from live_server import Live, ask, data_uri, error_of, picture, png, serving

from qvl.media.remote import RemotePolicy
from qvl.serve.config import Limits, ServeConfig


@pytest.fixture(scope="module")
def engine() -> CannedLive:
    return CannedLive()


@pytest.fixture(scope="module")
def live(engine: CannedLive):
    limits = Limits(body_bytes=600_000, messages=100, media=5, source_pixels=10_000_000, clip_pixels=200_000)
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


def clip(data: bytes) -> dict:
    return {"type": "video_url", "video_url": {"url": data_uri(data, "video/mp4")}}


PLAYLIST = b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"garbage" * 100, "cannot be read as a video"),
        (png(), "cannot be read as a video"),
        (PLAYLIST, "cannot be read as a video"),
        (clip_file()[:700], "cannot be read as a video"),
        (clip_file(frames=60), "60 frames of 60 x 80 pixels, together 288,000; the limit is 200,000"),
    ],
)
def test_bad_clips(live, data, message):
    answer = live.post(ask(clip(data), "What is it?"))
    assert answer.status_code == 400
    assert message in error_of(answer)["message"]
    assert error_of(answer)["param"] == "messages.0.content.0.video_url"


@pytest.mark.parametrize(
    "part",
    [
        {**picture(data_uri(png())), "image": "/etc/hostname"},
        {**picture(data_uri(png())), "video": "/etc/hostname"},
        picture(data_uri(png()), image="/etc/hostname"),
        picture(data_uri(png()), type="video", video="/etc/hostname"),
        {"type": "image", "image": {"url": data_uri(png()), "image": "/etc/hostname"}},
        {"type": "image", "image": {"url": data_uri(png()), "image_url": "/etc/hostname"}},
        {"type": "image", "image": "/etc/hostname"},
        {"type": "video", "video": ["/etc/hostname"]},
    ],
)
def test_nothing_but_the_checked_address_says_what_is_opened(live, engine, part):
    before = len(engine.asked)
    answer = live.post(ask(part, "What is it?"))
    assert answer.status_code == 400
    assert "address" in error_of(answer)["message"] or "not open to requests" in error_of(answer)["message"]
    assert len(engine.asked) == before


def without(body: dict, key: str) -> dict:
    return {k: v for k, v in body.items() if k != key}


def talk(*messages: object) -> dict:
    return {"model": "canned", "messages": list(messages)}


TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def called(key: object, result: object) -> dict:
    """A body in which a tool was called and gave a result."""
    return talk({"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": key, "content": result})


BODIES = {
    "not json": (b"{", None, "not JSON"),
    "not an object": (b"[]", None, "valid dictionary"),
    "deeply nested": (b'{"model":' + b"[" * 100_000, None, "the body is not JSON in UTF-8: maximum recursion depth"),
    "a number without end": (b'{"seed": ' + b"9" * 5000 + b"}", None, "not JSON in UTF-8: Exceeds the limit"),
    "no messages": (without(ask("hi"), "messages"), "messages", "required"),
    "empty messages": (talk(), "messages", "at least 1"),
    "many messages": (talk(*[{"role": "user", "content": "x"}] * 10_000), "messages", "10,000 messages"),
    "many pictures": (ask(*[picture("x")] * 6), "messages", "6 pictures"),
    "an unknown field": (ask("hi", top_kk=3), "top_kk", "is not a field"),
    "a penalty": (ask("hi", presence_penalty=1.5), "presence_penalty", "not implemented here"),
    "an unknown role": (talk({"role": "boss", "content": "x"}), "messages", "role 'boss'"),
    "a message that is text": (talk("hi"), "messages.0", "dictionary"),
    "an unknown part": (ask({"type": "input_audio", "input_audio": {}}), "messages", "type 'input_audio'"),
    "a part whose type is a list": (ask({"type": []}), "messages", "has type []"),
    "a message without a role": (talk({"content": "x"}), "messages", "message 0 must be an object with 'role'"),
    "content of a number": (talk({"role": "user", "content": 3}), "messages", "content must be"),
    "tools, and nothing said": (talk({"role": "system"}) | {"tools": TOOLS}, "messages", "not NoneType"),
    "a result that is a number": (called("c", 5), "messages", "message 1: content must be"),
    "a result that is an object": (called("c", {"text": "x"}), "messages", "message 1: content must be"),
    "a result of a list": (called(["c"], "x"), "messages", "answers tool call ['c'], which no message"),
    "a number as text": (ask("hi", temperature="0.5"), "temperature", "valid number"),
    "true for a number": (ask("hi", max_tokens=True), "max_tokens", "valid integer"),
    "yes for true": (ask("hi", stream="yes"), "stream", "valid boolean"),
    "another encoding": (b'{"model": "canned", "messages": [{"role": "user", "content": "\xe9"}]}', None, "UTF-8"),
    "packed": (gzip.compress(json.dumps(ask("hi")).encode()), None, "UTF-8"),
    "too hot": (ask("hi", temperature=-1), "temperature", "greater than or equal to 0"),
    "not a number": (json.dumps(ask("hi", temperature=float("nan"))).encode(), "temperature", ""),
    "no tokens": (ask("hi", max_tokens=0), "max_tokens", "greater than or equal to 1"),
    "many choices": (ask("hi", n=1000), "n", "n is 1000; the limit is 8"),
    "an empty stop": (ask("hi", stop=[""]), "stop", "not empty"),
    "a stop of numbers": (ask("hi", stop=[3]), "stop.0", "valid string"),
    "a tool that is not there": (
        ask("hi", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "none"}}),
        "tool_choice", "tool_choice names 'none', but the tools are: f",
    ),
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


def test_what_was_sent_is_not_sent_back_whole(live):
    answer = live.post(talk({"role": "x" * 100_000, "content": "y"}))
    assert answer.status_code == 400
    assert len(error_of(answer)["message"]) < 1100


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


def test_bodies_that_are_too_much_together():
    engine = CannedLive()
    engine.gate.clear()
    with serving(engine, ServeConfig(port=0, limits=Limits(bodies_total_bytes=150_000))) as live:
        first = threading.Thread(target=live.post, args=(ask("x" * 100_000),))
        first.start()
        wait_for(lambda: engine.open_tickets == 1)
        answer = live.post(ask("x" * 100_000))
        assert (answer.status_code, error_of(answer)["code"]) == (503, "queue_full")
        assert "the limit is 150,000" in error_of(answer)["message"]
        engine.gate.set()
        first.join()
        assert live.post(ask("x" * 100_000)).status_code == 200  # what is over is let go
        assert live.post(ask("x" * 200_000)).status_code == 200  # one alone is bounded by its own limit


@pytest.mark.slow
def test_whoever_watches_the_server_gets_an_answer_while_pictures_are_opened():
    """More requests than there are threads wait for their pictures."""
    engine, go_on = CannedLive(), threading.Event()
    submit = engine.submit
    engine.submit = lambda request: go_on.wait(60) and submit(request)  # type: ignore[method-assign]
    with serving(engine) as live:
        waiting = [threading.Thread(target=live.post, args=(ask("hi"),)) for _ in range(60)]
        for thread in waiting:
            thread.start()
        wait_for(lambda: "qvl_http_in_flight 61" in httpx2.get(f"{live.url}/metrics", timeout=20).text)
        for path in ("/health", "/v1/models", "/", "/page/app.js"):
            assert httpx2.get(live.url + path, timeout=20).status_code == 200
        go_on.set()
        for thread in waiting:
            thread.join()
    assert engine.open_tickets == 0


@pytest.fixture
def private_web():
    """A server on this machine that nobody outside may talk to, and what it was asked."""
    asked: list[str] = []

    class Web(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png())

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], asked
    server.shutdown()
    thread.join()
    server.server_close()


DISGUISES = ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]")


def test_addresses_of_this_machine_are_not_fetched_in_any_disguise(private_web):
    port, asked = private_web
    engine = CannedLive()
    with serving(engine, ServeConfig(port=0, remote=RemotePolicy(("*",)))) as live:
        for host in DISGUISES:
            answer = live.post(ask(picture(f"http://{host}:{port}/a.png"), "?"))
            assert answer.status_code == 400, host
            assert "not a public one" in error_of(answer)["message"]
        for url in ("http://169.254.169.254/latest/", "http://0/", "https://[fec0::1]/", f"http://a@127.0.0.1:{port}/"):
            assert live.post(ask(picture(url), "?")).status_code == 400, url
            assert live.post(ask({"type": "video_url", "video_url": {"url": url}}, "?")).status_code == 400, url
    assert asked == []
    assert engine.asked == []


def test_a_form_must_be_json(live):
    """A page of another site can send forms, but not JSON, without being asked."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = live.post(json.dumps(ask("hi")).encode(), headers={"Content-Type": kind})
        assert answer.status_code == 400
        assert "send it with the header 'Content-Type: application/json'" in error_of(answer)["message"]


def test_pages_of_other_sites_and_other_names_are_turned_away(live):
    assert live.post(ask("hi"), headers={"Origin": "https://evil.example"}).status_code == 403
    assert live.post(ask("hi"), headers={"Origin": "http://["}).status_code == 403
    assert live.post(ask("hi"), headers={"Host": "evil.example"}).status_code == 403
    assert live.post(ask("hi"), headers={"Origin": live.url}).status_code == 200


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "size"), [(False, 4_000_000), (True, 40_000_000)])
def test_a_client_that_reads_nothing_is_let_go(stream, size):
    """Its answer is larger than all buffers on the way."""
    engine = CannedLive(answer=lambda request: "x" * size, piece=size // 40)
    with serving(engine, ServeConfig(port=0, limits=Limits(write_s=1.0))) as live:
        body = json.dumps(ask("hi", stream=stream, max_tokens=1000)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with live.connect() as sock:
            sock.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: engine.asked and engine.open_tickets == 0)
            wait_for(lambda: "qvl_http_in_flight 1\n" in httpx2.get(f"{live.url}/metrics", timeout=60).text)
            if not stream:
                time.sleep(3)  # its whole body is with the transport at once
            got = b""
            try:
                while piece := sock.recv(1 << 20):
                    got += piece
            except ConnectionError:
                pass
            head, _, came = got.partition(b"\r\n\r\n")
            if stream:
                assert not came.endswith(b"0\r\n\r\n")
            elif head:
                declared = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                assert declared is not None
                assert len(came) < int(declared[1])
        # Slow is not nothing: whoever reads on gets everything.
        with httpx2.stream("POST", f"{live.url}/v1/chat/completions", content=body, headers=JSON, timeout=60) as answer:
            slowly = 0
            for number, piece in enumerate(answer.iter_bytes(2_000_000)):
                slowly += len(piece)
                if number < 4:
                    time.sleep(0.15)
        assert slowly > size


JSON = {"Content-Type": "application/json"}


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


def test_whoever_leaves_in_the_middle_of_an_upload_is_no_failure():
    with serving(CannedLive()) as live:
        head = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + b"y" * 1000
        with live.connect() as sock:
            sock.sendall(head + b"Content-Length: 9999\r\n\r\n" + part)
            wait_for(lambda: "qvl_http_in_flight 2\n" in httpx2.get(f"{live.url}/metrics", timeout=60).text)
        counted = 'qvl_http_responses_total{path="/v1/files",status='
        wait_for(lambda: counted in httpx2.get(f"{live.url}/metrics", timeout=60).text)
        assert f'{counted}"499"}} 1\n' in httpx2.get(f"{live.url}/metrics", timeout=60).text


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
