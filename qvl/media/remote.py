"""Fetching a picture or clip from the network, for programs that must not be talked into fetching anything else.

Knows: which hosts are allowed, which addresses are public, redirects, size and time limits.
Does not know: what the bytes are.

The name is resolved once, every address it has must be public, and the connection goes to the address that was checked:
a name that changes its mind between check and use gains nothing. Redirects are followed a few times, each checked like
the first address. Proxies of the environment are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

_CHUNK = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class RemotePolicy:
    """What may be fetched. Without domains: nothing."""

    domains: tuple[str, ...] = ()
    """Host names, compared whole ("example.com" does not allow "www.example.com"); "*" = any public host."""
    max_bytes: int = 64 * 2**20
    timeout_s: float = 20.0
    """For everything together, redirects included."""
    max_redirects: int = 3

    def __post_init__(self) -> None:
        for domain in self.domains:
            if domain != "*" and (not domain or any(c in domain for c in "/:*@ ")):
                raise ValueError(f"an allowed domain is a host name such as example.com (or *), got {domain!r}")


Resolve = Callable[..., Sequence[tuple[Any, ...]]]


def fetch(url: str, policy: RemotePolicy, *, resolve: Resolve = socket.getaddrinfo) -> bytes:
    """The bytes behind an `http(s)://` address.

    Raises:
        ValueError: the address is not allowed, not public, too slow, too large, or does not answer with 200.
    """
    deadline = time.monotonic() + policy.timeout_s
    for _ in range(policy.max_redirects + 1):
        parts = _checked(url, policy)
        address = _public_address(parts, resolve)
        try:
            answer = _get(parts, address, policy, deadline)
        except TimeoutError as error:
            raise ValueError(f"cannot fetch {_short(url)}: it is not there within {policy.timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"cannot fetch {_short(url)}: {error or type(error).__name__}") from error
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer.location)
    raise ValueError(f"cannot fetch {_short(url)}: more than {policy.max_redirects} redirects")


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet could reach: not private, loopback, link-local,
    multicast, reserved, and no IPv6 address that hides an IPv4 one which is."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:  # how an IPv6-only network writes an IPv4 address
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        hidden = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if (hidden and not is_public(str(hidden))) or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _checked(url: str, policy: RemotePolicy) -> SplitResult:
    if not policy.domains:
        raise ValueError(
            f"{_short(url)} is an address, and this server fetches none; send the file as a data URI or upload it "
            "(the server's owner can allow hosts with --allowed-media-domains)"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{_short(url)} is not a valid address: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{_short(url)}: only http:// and https:// addresses can be fetched")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"an address with a user name in it is not fetched: {parts.scheme}://...@{host}")
    if "*" not in policy.domains and host.lower() not in {d.lower() for d in policy.domains}:
        raise ValueError(f"host {host!r} is not among the allowed media domains: {', '.join(policy.domains)}")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _public_address(parts: SplitResult, resolve: Resolve) -> str:
    host = parts.hostname or ""
    try:
        found = resolve(host, _port(parts), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"host {host!r} cannot be resolved: {error}") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses:
        raise ValueError(f"host {host!r} has no address")
    if not all(map(is_public, addresses)):
        raise ValueError(f"host {host!r} is not a public one: private, loopback and link-local addresses are refused")
    return addresses[0]


@dataclass(frozen=True)
class _Redirect:
    location: str


def _get(parts: SplitResult, address: str, policy: RemotePolicy, deadline: float) -> bytes | _Redirect:
    connection = _PinnedConnection(parts, address, _left(deadline))
    watchdog = threading.Timer(_left(deadline), connection.abort)  # a socket's own limit is per read, not for all
    watchdog.start()
    try:
        # As browsers do: what an address may not hold is escaped, and what is escaped already stays as it is.
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe="/?%:@!$&'()*+,;=~")
        connection.request("GET", path, headers={"User-Agent": "qvl", "Accept": "image/*, video/*, */*;q=0.1"})
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in _REDIRECTS and location:
            return _Redirect(location)
        if response.status != 200:
            raise ValueError(f"{_short(parts.geturl())} answers with status {response.status}")
        return _read(response, policy.max_bytes, deadline, _short(parts.geturl()))
    finally:
        watchdog.cancel()
        connection.close()


def _read(response: http.client.HTTPResponse, max_bytes: int, deadline: float, name: str) -> bytes:
    body = bytearray()
    while piece := response.read1(_CHUNK):
        body += piece
        if len(body) > max_bytes:
            raise ValueError(f"{name} is larger than {max_bytes:,} bytes, the limit for fetched files")
        _left(deadline)
    _left(deadline)
    if response.length:
        raise ValueError(f"{name} ended {response.length:,} bytes early")
    return bytes(body)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("it takes too long")
    return left


@final
class _PinnedConnection(http.client.HTTPConnection):
    """Connects to an address that was checked, and speaks to the host that was asked for."""

    def __init__(self, parts: SplitResult, address: str, timeout_s: float) -> None:
        super().__init__(parts.hostname or "", _port(parts), timeout=timeout_s)
        self._address = address
        self._tls = parts.scheme == "https"
        self.default_port = 443 if self._tls else 80
        self._plain: socket.socket | None = None

    def connect(self) -> None:
        plain = self._plain = socket.create_connection((self._address, self.port), self.timeout)
        try:
            self.sock = (
                ssl.create_default_context().wrap_socket(plain, server_hostname=self.host) if self._tls else plain
            )
            self._plain = self.sock
        except BaseException:
            plain.close()
            raise

    def abort(self) -> None:
        """Ends whatever read is going on; called from another thread."""
        if self._plain is not None:
            with contextlib.suppress(OSError):  # closed already
                self._plain.shutdown(socket.SHUT_RDWR)


def _short(url: str) -> str:
    return repr(url if len(url) <= 200 else f"{url[:197]}...")
