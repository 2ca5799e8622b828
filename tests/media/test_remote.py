"""The guard in front of the network: which addresses it refuses, and that it cannot be led astray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qvl.media import remote
from qvl.media.remote import RemotePolicy, fetch, is_public


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.0.1", "240.0.0.1"),
        *("::", "::1", "fec0::1", "fe80::1", "fe80::1%eth0", "fc00::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", "::7f00:1"),
    ],
)  # fmt: skip
def test_private_addresses_in_every_disguise(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808"]
)
def test_public_addresses(address):
    assert is_public(address)


ANY = RemotePolicy(("*",))


@pytest.mark.parametrize(
    ("url", "policy", "message"),
    [
        ("http://example.com/a.png", RemotePolicy(), "this server fetches none"),
        ("http://www.example.com/a.png", RemotePolicy(("example.com",)), "'www.example.com' is not among the allowed"),
        ("http://example.com.evil.org/", RemotePolicy(("example.com",)), "'example.com.evil.org' is not among"),
        ("http://example.com@evil.org/", RemotePolicy(("example.com",)), "user name"),
        ("ftp://example.com/", ANY, "only http:// and https://"),
        ("http:///a", ANY, "only http:// and https://"),
        ("http://[::1", ANY, "not a valid address"),
        ("http://example.com:99999/", ANY, "not a valid address"),
        ("http://127.0.0.1/", ANY, "is not a public one"),
        ("http://169.254.169.254/latest/meta-data/", ANY, "is not a public one"),
        ("http://localhost/", ANY, "is not a public one"),
        ("http://[::1]/", ANY, "is not a public one"),
        ("http://2130706433/", ANY, "is not a public one"),
        ("http://0x7f.1/", ANY, "is not a public one"),
        ("http://017700000001/", ANY, "is not a public one"),
        ("http://[::ffff:7f00:1]/", ANY, "is not a public one"),
    ],
)
def test_what_is_refused_before_anything_is_sent(url, policy, message):
    with pytest.raises(ValueError, match=message):
        fetch(url, policy)


def test_one_private_address_among_several_is_enough():
    def resolve(*_, **__):
        return [(0, 0, 0, "", (ip, 80)) for ip in ("93.184.216.34", "10.0.0.1")]

    with pytest.raises(ValueError, match="is not a public one"):
        fetch("http://two-faced.example/", ANY, resolve=resolve)


class Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
        elif self.path.startswith("/echo"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())
        elif self.path == "/missing":
            self.send_error(404)
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(10_000):
                self.wfile.write(b".")
                time.sleep(0.05)
        else:
            body = self.headers["Host"].encode() if self.path == "/host" else b"x" * 1000
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + (self.path == "/short")))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            return


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server whose own address counts as public, and no other private one."""
    real = is_public
    monkeypatch.setattr(remote, "is_public", lambda ip: ip == "127.0.0.1" or real(ip))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def here(*_, **__):
    return [(0, 0, 0, "", ("127.0.0.1", 80))]


def test_it_fetches_from_the_checked_address_in_the_name_of_the_host(web):
    assert fetch(f"http://pictures.example:{web}/host", ANY, resolve=here) == f"pictures.example:{web}".encode()


def test_addresses_in_any_script_are_escaped_as_browsers_do(web):
    base = f"http://pictures.example:{web}"
    assert fetch(f"{base}/echo/a b%20c/猫.png?q=ü&r=%2F", ANY, resolve=here) == (
        b"/echo/a%20b%20c/%E7%8C%AB.png?q=%C3%BC&r=%2F"
    )


def test_redirects_are_checked_like_the_first_address(web):
    base = f"http://pictures.example:{web}"
    assert len(fetch(f"{base}/to?/picture", ANY, resolve=here)) == 1000
    only = RemotePolicy(("pictures.example",))
    for target, message in [
        ("http://169.254.169.254/", "is not among the allowed"),
        ("file:///etc/passwd", "only http:// and https://"),
        (f"http://other.example:{web}/", "is not among the allowed"),
    ]:
        with pytest.raises(ValueError, match=message):
            fetch(f"{base}/to?{target}", only, resolve=here)
    with pytest.raises(ValueError, match="is not a public one"):
        fetch(f"http://127.0.0.1:{web}/to?http://10.0.0.1/", ANY)
    with pytest.raises(ValueError, match="more than 3 redirects"):
        fetch(f"{base}/to?/to?/to?/to?/to?/picture", ANY, resolve=here)


def test_large_slow_broken_and_missing_files(web):
    base = f"http://pictures.example:{web}"
    with pytest.raises(ValueError, match="larger than 999 bytes"):
        fetch(f"{base}/picture", RemotePolicy(("*",), max_bytes=999), resolve=here)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"not there within 0\.3 s"):
        fetch(f"{base}/drip", RemotePolicy(("*",), timeout_s=0.3), resolve=here)
    assert time.monotonic() - started < 60
    with pytest.raises(ValueError, match="status 404"):
        fetch(f"{base}/missing", ANY, resolve=here)
    with pytest.raises(ValueError, match=r"ended 1 bytes early|cannot fetch"):
        fetch(f"{base}/short", ANY, resolve=here)


@pytest.mark.parametrize("domain", ["http://a.com", "a.com/x", "*.a.com", ""])
def test_domains_are_names(domain):
    with pytest.raises(ValueError, match="host name such as"):
        RemotePolicy((domain,))
