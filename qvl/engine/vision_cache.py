"""Vision vectors of pictures that were seen, by content.

Knows: digests, how many bytes are kept, what was used longest ago. Does not know: pictures, models, requests.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import final

from torch import Tensor


@final
class VisionCache:
    """Keeps the vectors used last, up to `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self.bytes = 0

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._kept

    def get(self, digest: bytes) -> Tensor | None:
        """The vectors [M, D] of a look, if they are kept."""
        vectors_MD = self._kept.get(digest)
        if vectors_MD is not None:
            self._kept.move_to_end(digest)
        return vectors_MD

    def put(self, digest: bytes, vectors_MD: Tensor) -> None:
        """Keeps the vectors, and lets go of others that were not used for longer. Too large ones are not kept."""
        if vectors_MD.nbytes > self._max_bytes or digest in self._kept:
            return
        self._kept[digest] = vectors_MD
        self.bytes += vectors_MD.nbytes
        while self.bytes > self._max_bytes:
            _, oldest_MD = self._kept.popitem(last=False)
            self.bytes -= oldest_MD.nbytes
