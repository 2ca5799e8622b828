"""Everything that can be set about a server.

Knows: the options and their bounds. Does not know: how they are carried out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from qvl.engine.api import Sampling
from qvl.media.remote import RemotePolicy

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one request, one key and one slow client may cost."""

    body_bytes: int = 64 * MIB
    bodies_total_bytes: int = 1024 * MIB
    """All bodies of requests under way together; a request on top of that is told to come again (503)."""
    upload_bytes: int = 64 * MIB
    """One uploaded file."""
    uploads_total_bytes: int = 512 * MIB
    """All uploads together; the oldest go first."""
    upload_keep_s: float = 3600.0
    messages: int = 1000
    media: int = 64
    """Pictures and clips in one request."""
    source_pixels: int = 64_000_000
    """Of one picture or frame as stored, read from its header."""
    clip_pixels: int = 100_000_000_000
    """Of all frames of one clip as stored: 27 minutes of 1920 x 1080 at 30 frames a second."""
    choices: int = 8
    """`n` of a request."""
    requests_per_minute: int = 0
    """Of one key; 0 = any number."""
    concurrent: int = 0
    """Requests of one key under way at once; 0 = any number."""
    header_s: float = 10.0
    """A connection that has sent no whole request head by then is closed."""
    body_s: float = 60.0
    request_s: float = 600.0
    """From the whole body to the end of the reply; what there is by then is the reply."""
    write_s: float = 60.0
    """A client that takes nothing of its answer for so long is let go."""

    def __post_init__(self) -> None:
        may_be_zero = ("requests_per_minute", "concurrent")
        for f in fields(self):
            value = getattr(self, f.name)
            if value < 0 or (value == 0 and f.name not in may_be_zero):
                raise ValueError(f"limit {f.name} must be positive, got {value}")


@dataclass(frozen=True)
class ServeConfig:
    host: str = "127.0.0.1"
    port: int = 8000
    """0 = any free one."""
    api_keys: tuple[str, ...] = ()
    """Bearer keys; without any, nobody is asked for one."""
    default_max_tokens: int = 256
    """Where a request says nothing."""
    default_temperature: float = 0.0
    allowed_local_path: Path | None = None
    """A folder whose files may be named in requests."""
    remote: RemotePolicy = field(default_factory=RemotePolicy)
    """Addresses that may be fetched; by default none."""
    limits: Limits = field(default_factory=Limits)
    drain_s: float = 30.0
    """After SIGTERM: how long requests under way may take to finish."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 (any free one) to 65535, got {self.port}")
        if any(not key or not key.isascii() or not key.isprintable() or " " in key for key in self.api_keys):
            raise ValueError("an API key must be printable ASCII without blanks, and not empty")
        Sampling(self.default_max_tokens, self.default_temperature)  # what no request may ask is no default either
        if self.allowed_local_path is not None and not self.allowed_local_path.is_dir():
            raise ValueError(f"allowed_local_path {self.allowed_local_path} is not a folder")
