"""Keys, rates, queues, time limits, health, metrics, the page's headers, a calm end; allowed files."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import openai
import pytest
from canned_live import CannedLive
from live_server import ask, error_of, picture, png, serving

from qvl.serve.config import Limits, ServeConfig
from qvl.serve.server import listen
from qvl.serve.uploads import Uploads


@pytest.mark.slow
def test_keys():
    config = ServeConfig(port=0, api_keys=("secret-1", "secret-2"))
    with serving(CannedLive(), config) as live:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-1"}):
            answer = live.post(ask("hi"), headers=headers)
            assert answer.status_code == 401
            assert (error_of(answer)["type"], error_of(answer)["code"]) == ("authentication_error", "invalid_api_key")
            assert httpx2.get(f"{live.url}/metrics", headers=headers).status_code == 401
        assert live.post(ask("hi"), headers={"Authorization": "Bearer secret-2"}).status_code == 200
        assert httpx2.get(f"{live.url}/health", timeout=60).json() == {"status": "ok"}
        assert httpx2.head(f"{live.url}/health", timeout=60).status_code == 200
        assert httpx2.get(live.url).status_code == 200
        # What one key uploads, another does not see.
        one, two = ({"Authorization": f"Bearer secret-{n}"} for n in (1, 2))
        file = httpx2.post(f"{live.url}/v1/files", files={"file": ("a.png", png())}, headers=one).json()["id"]
        assert live.post(ask(picture(file), "?"), headers=one).status_code == 200
        assert live.post(ask(picture(file), "?"), headers=two).status_code == 400
        assert httpx2.get(f"{live.url}/v1/files", headers=two).json()["data"] == []


def test_rates_of_a_key():
    config = ServeConfig(port=0, api_keys=("a", "b"), limits=Limits(requests_per_minute=2))
    with serving(CannedLive(), config) as live:
        a, b = {"Authorization": "Bearer a"}, {"Authorization": "Bearer b"}
        assert [live.post(ask("hi"), headers=a).status_code for _ in range(3)] == [200, 200, 429]
        answer = live.post(ask("hi"), headers=a)
        assert "2 requests in the last minute; the limit is 2" in error_of(answer)["message"]
        assert 0 < int(answer.headers["Retry-After"]) <= 60
        assert live.post(ask("hi"), headers=b).status_code == 200


def test_requests_of_a_key_under_way_and_a_full_queue():
    engine = CannedLive(max_waiting=2)
    engine.gate.clear()
    with serving(engine, ServeConfig(port=0, limits=Limits(concurrent=1))) as live:
        first = threading.Thread(target=live.post, args=(ask("hi"),))
        first.start()
        wait_for(lambda: engine.open_tickets == 1)
        answer = live.post(ask("hi"))
        assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
        engine.gate.set()
        first.join()
    engine = CannedLive(max_waiting=1)
    with serving(engine) as live:
        answer = live.post(ask("hi", n=2))
        assert (answer.status_code, error_of(answer)["code"]) == (503, "queue_full")
        assert error_of(answer)["type"] == "server_error"
        assert answer.headers["Retry-After"]
        assert (engine.asked, engine.open_tickets) == ([], 0)  # the first of the two is not left behind


def wait_for(true) -> None:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


@pytest.mark.slow
def test_what_is_there_when_time_is_over_is_the_reply():
    engine = CannedLive(answer=lambda request: "word " * 1000, pause_s=0.02)
    with serving(engine, ServeConfig(port=0, limits=Limits(request_s=0.4))) as live:
        choice = live.post(ask("hi", max_tokens=1000)).json()["choices"][0]
        assert choice["message"]["content"].startswith("word")
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "time_limit")
        engine.gate.clear()
        for stream in (False, True):
            answer = live.post(ask("hi", stream=stream))
            assert answer.status_code == 503
            assert "waited too long" in error_of(answer)["message"]
        engine.gate.set()


def test_metrics_and_page():
    engine = CannedLive()
    with serving(engine) as live:
        live.post(ask("hi"))
        live.post(ask("hi", nonsense=1))
        text = httpx2.get(f"{live.url}/metrics", timeout=60).text
        assert 'qvl_http_responses_total{path="/v1/chat/completions",status="200"} 1\n' in text
        assert 'qvl_http_responses_total{path="/v1/chat/completions",status="400"} 1\n' in text
        assert 'qvl_request_seconds_bucket{le="+Inf"} 1\n' in text
        assert "qvl_engine_requests_total 1\n" in text
        for line in text.splitlines():
            assert line.startswith("# TYPE ") or float(line.rsplit(" ", 1)[1]) >= 0
        page = httpx2.get(live.url)
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for name in ("app.js", "style.css", "icon.svg"):
            assert httpx2.get(f"{live.url}/page/{name}", timeout=60).status_code == 200


def test_the_page_loads_nothing_from_elsewhere():
    folder = Path(__file__).parents[2] / "qvl/serve/page"
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
        assert "innerHTML" not in text
        if file.suffix in (".html", ".css"):
            assert "//" not in text.replace("://127.0.0.1", ""), file
            assert "style=" not in text


@pytest.mark.slow
def test_files_of_an_allowed_folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a b.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    engine = CannedLive()
    with serving(engine, ServeConfig(port=0, allowed_local_path=folder)) as live:
        for url in ("a b.png", f"{folder}/a b.png", f"file://{folder}/a%20b.png".replace(" ", "%20")):
            assert live.post(ask(picture(url), "?")).status_code == 200, url
        for url in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "nothing.png", ".", "a\0b"):
            answer = live.post(ask(picture(url), "?"))
            assert answer.status_code == 400, url
        assert "is not a file in the folder" in error_of(live.post(ask(picture("../secret.png"), "?")))["message"]
        (folder / "circle.png").symlink_to(folder / "circle.png")
        for url in ("a" * 5000, "circle.png"):
            answer = live.post(ask(picture(url), "?"))
            assert (answer.status_code, error_of(answer)["param"]) == (400, "messages.0.content.0.image_url")
            assert "cannot be opened" in error_of(answer)["message"]


SERVER = """
import sys, threading
sys.path[:0] = {paths!r}
from canned_live import CannedLive
from qvl.serve.config import ServeConfig
from qvl.serve.server import listen, make_server, run
engine = CannedLive(answer=lambda request: "word " * 12, pause_s=0.1)
config = ServeConfig(port=0, drain_s=60)
sock = listen(config)
server = make_server(engine, config)
print(sock.getsockname()[1], flush=True)
run(server, sock)
print("closed" if engine.closed else "open", engine.cancelled, flush=True)
"""


@pytest.mark.slow
def test_told_to_stop_it_finishes_what_runs():
    root = Path(__file__).parents[2]
    code = SERVER.format(paths=[str(Path(__file__).parent), str(root)])
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=3)
        stream = client.chat.completions.create(
            model="canned", messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=100
        )
        text = ""
        for n, chunk in enumerate(stream):
            text += chunk.choices[0].delta.content or ""
            if n == 2:
                process.send_signal(signal.SIGTERM)
        assert text == "word " * 12
        assert process.stdout.read() == "closed 0\n"
        assert process.wait(60) == 0


def test_a_taken_port_is_named():
    with listen(ServeConfig(port=0)) as sock:
        sock.listen()
        with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:\d+: .*choose another --port"):
            listen(ServeConfig(port=sock.getsockname()[1]))


def test_freed_memory_is_given_back_now_and_then(monkeypatch):
    from qvl.serve import app

    calls: list[int] = []
    monkeypatch.setattr(app, "_TRIM_S", 0.02)
    monkeypatch.setattr(app, "trim_memory", lambda: calls.append(1))
    with serving(CannedLive()):
        wait_for(lambda: len(calls) > 2)
    before = len(calls)
    time.sleep(0.2)
    assert len(calls) <= before + 1  # it ends with the server


def test_uploads_make_room_and_are_forgotten():
    now = [0.0]
    uploads = Uploads(10, 60.0, clock=lambda: now[0])
    a, b = uploads.add("me", "a", b"12345"), uploads.add("me", "b", b"12345")
    c = uploads.add("me", "c", b"1")
    assert [uploads.get("me", u.id) is not None for u in (a, b, c)] == [False, True, True]
    assert uploads.used_bytes == 6
    now[0] = 61.0
    assert uploads.list("me") == []
    assert uploads.used_bytes == 0
    with pytest.raises(ValueError, match="11 bytes; all uploads together may have 10"):
        uploads.add("me", "d", b"x" * 11)


@pytest.mark.parametrize(
    "bad",
    [
        {"port": 70000},
        {"api_keys": ("two words",)},
        {"default_max_tokens": 0},
        {"default_temperature": 200.0},
        {"default_temperature": float("nan")},
        {"allowed_local_path": Path("nowhere")},
    ],
)
def test_settings_are_checked(bad):
    with pytest.raises(ValueError):
        ServeConfig(**bad)
