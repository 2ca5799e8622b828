"""Files that clients uploaded, so that a picture need not travel with every turn of a conversation.

Knows: how long files stay and how much they may take. Does not know: HTTP, what the bytes are.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

PREFIX = "file-"


@dataclass(frozen=True)
class Upload:
    id: str
    owner: str
    name: str
    data: bytes
    created: float
    """Seconds since the epoch."""


@final
class Uploads:
    """In memory: nothing is left behind on a disk. Thread-safe."""

    def __init__(self, total_bytes: int, keep_s: float, *, clock: Callable[[], float] = time.time) -> None:
        self._total_bytes = total_bytes
        self._keep_s = keep_s
        self._clock = clock
        self._lock = threading.Lock()
        self._files: OrderedDict[str, Upload] = OrderedDict()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def add(self, owner: str, name: str, data: bytes) -> Upload:
        """Keeps a file; the oldest make room.

        Raises:
            ValueError: it is empty, or larger than all uploads together may be.
        """
        if not data:
            raise ValueError(f"the uploaded file {name[:100]!r} is empty (0 bytes)")
        if len(data) > self._total_bytes:
            raise ValueError(f"the file has {len(data):,} bytes; all uploads together may have {self._total_bytes:,}")
        upload = Upload(f"{PREFIX}{secrets.token_urlsafe(18)}", owner, name, data, self._clock())
        with self._lock:
            self._forget_old()
            self._files[upload.id] = upload
            self._used_bytes += len(data)
            while self._used_bytes > self._total_bytes:
                self._drop(next(iter(self._files)))
        return upload

    def get(self, owner: str, file_id: str) -> Upload | None:
        """The file, if this owner uploaded it and it is still there."""
        with self._lock:
            self._forget_old()
            found = self._files.get(file_id)
        return found if found is not None and found.owner == owner else None

    def list(self, owner: str) -> list[Upload]:
        with self._lock:
            self._forget_old()
            return [upload for upload in self._files.values() if upload.owner == owner]

    def delete(self, owner: str, file_id: str) -> bool:
        if self.get(owner, file_id) is None:
            return False
        with self._lock:
            self._drop(file_id)
        return True

    def _forget_old(self) -> None:
        limit = self._clock() - self._keep_s
        while self._files and (first := next(iter(self._files.values()))).created < limit:
            self._drop(first.id)

    def _drop(self, file_id: str) -> None:
        gone = self._files.pop(file_id, None)
        self._used_bytes -= len(gone.data) if gone else 0
