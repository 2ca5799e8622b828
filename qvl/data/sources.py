"""Indexed WebDataset tar shards: many small files as one, read at random without unpacking.

Knows: where every member of a plain (uncompressed) tar starts, and that members `KEY.a`, `KEY.b` are one sample.
Does not know: what the members hold.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Extent:
    """Where a member's bytes lie in its tar."""

    offset: int
    size: int


class TarSource:
    """Random access to the samples of one uncompressed tar.

    The headers are read once, on construction (512 bytes a member); the bytes of a member only when asked for.
    The file is opened lazily and again after pickling or forking into a worker, so that two processes never share
    a file position.

    Raises:
        FileNotFoundError: no such tar.
        ValueError: not a tar, compressed, or cut off in the middle (names the member and both sizes).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no tar shard at {self.path}")
        self._extents = _index(self.path)
        self._keys = tuple(self._extents)
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> tuple[str, ...]:
        """Sample keys in the order of the tar."""
        return self._keys

    def extensions(self, key: str) -> tuple[str, ...]:
        return tuple(self._sample(key))

    def read(self, key: str, extension: str) -> bytes:
        """The bytes of member `KEY.EXTENSION`.

        Raises:
            ValueError: no such key or extension; the message says what there is.
        """
        members = self._sample(key)
        if extension not in members:
            raise ValueError(f"{self.path}: sample {key!r} has no .{extension}; it has {sorted(members)}")
        extent = members[extension]
        if self._file is None:
            self._file = self.path.open("rb")
        # Not seek and read: a forked worker shares the file's position with its parent.
        data = os.pread(self._file.fileno(), extent.size, extent.offset)
        if len(data) != extent.size:
            raise ValueError(
                f"{self.path}: {key}.{extension} should be {extent.size} bytes but only {len(data)} are there; "
                "the file was cut after it was indexed"
            )
        return data

    def __getitem__(self, key: str | int) -> dict[str, bytes]:
        """All members of one sample by key or by position: extension -> bytes."""
        name = self._keys[key] if isinstance(key, int) else key
        return {extension: self.read(name, extension) for extension in self._sample(name)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}

    def _sample(self, key: str) -> dict[str, Extent]:
        if key not in self._extents:
            raise ValueError(f"{self.path} has no sample {key!r}; it holds {len(self._keys)} samples")
        return self._extents[key]


def _index(path: Path) -> dict[str, dict[str, Extent]]:
    """key -> extension -> extent. The key ends at the first dot of the file name, as in WebDataset."""
    length = path.stat().st_size
    samples: dict[str, dict[str, Extent]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > length:
                    raise ValueError(
                        f"{path} is cut off: {member.name} needs bytes up to {member.offset_data + member.size}, "
                        f"the file has {length}; copy the shard again"
                    )
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                samples.setdefault(key, {})[extension] = Extent(member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a readable, uncompressed tar ({error}); it has {length} bytes") from error
    if not samples:
        raise ValueError(f"{path} holds no samples ({length} bytes)")
    return samples
