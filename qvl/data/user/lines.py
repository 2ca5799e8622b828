"""The entries of a file of conversations, read one at a time from where they lie.

Knows: where every line of a .jsonl file, or every object of a .json list, begins and ends.
Does not know: what an entry says.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 24
_JSON_MARKS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
"""Strings (so that brackets inside them do not count) and brackets."""
_SUFFIXES = (".jsonl", ".json")


@final
class EntryFile:
    """`file[i]` is entry i, parsed. Held in memory: 24 bytes per entry, not the entries.

    The file is opened lazily and read by position, so that forked or unpickled copies do not disturb each other.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or a list in it is cut off.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no data file {self.path}")
        with self.path.open("rb") as file:
            self._listed = _begins_a_list(file)
            self._starts, self._sizes, self._numbers = (_list_entries if self._listed else _lines)(file)
        if not len(self._starts):
            raise ValueError(f"{self.path} holds no samples ({self.path.stat().st_size} bytes)")
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def name(self, index: int) -> str:
        """Where entry `index` stands, for messages: `my.jsonl:17`, in a list `my.json entry 17` (both from 1)."""
        return f"{self.path.name}{' entry ' if self._listed else ':'}{self._numbers[index]}"

    def __getitem__(self, index: int) -> Any:
        """Raises `ValueError` if the entry is not JSON."""
        if self._file is None:
            self._file = self.path.open("rb")
        data = os.pread(self._file.fileno(), int(self._sizes[index]), int(self._starts[index]))
        try:
            return json.loads(data)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"not valid JSON ({error}): {data[:60]!r}") from None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}


def data_files(path: str | Path) -> list[Path]:
    """The file itself, or the .jsonl and .json files of a folder by name.

    Raises:
        FileNotFoundError: neither is there, or the folder holds no such file.
    """
    place = Path(path)
    if not place.is_dir():
        return [place]
    found = sorted(p for p in place.iterdir() if p.suffix in _SUFFIXES)
    if not found:
        raise FileNotFoundError(f"the folder {place} holds no {' or '.join(_SUFFIXES)} file")
    return found


_Entries = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""First byte, length in bytes, and number (from 1) of each entry."""


def _begins_a_list(file: BinaryIO) -> bool:
    first = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    file.seek(0)
    return first == b"["


def _lines(file: BinaryIO) -> _Entries:
    """Lines that are not empty; a last one without its line break counts."""
    ends, at = [], 0
    while block := file.read(_BLOCK):
        ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + at)
        at += len(block)
    stops = np.concatenate([*ends, [at]]).astype(np.int64)
    starts = np.concatenate([[0], stops[:-1] + 1]).astype(np.int64)
    sizes = stops - starts
    # A line of one byte is a lone carriage return or nothing that could be a sample.
    kept = sizes > 1
    return starts[kept], sizes[kept], (np.flatnonzero(kept) + 1).astype(np.int64)


def _list_entries(file: BinaryIO) -> _Entries:
    """The objects of one JSON list, found by their brackets without parsing."""
    starts: list[int] = []
    sizes: list[int] = []
    depth = 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for mark in _JSON_MARKS.finditer(data):
            match mark.group()[:1]:
                case b"{" | b"[":
                    if depth == 1:
                        starts.append(mark.start())
                    depth += 1
                case b"}" | b"]":
                    depth -= 1
                    if depth == 1:
                        sizes.append(mark.end() - starts[-1])
    if depth != 0:
        raise ValueError(f"{file.name} is cut off: its list is not closed; copy the file again")
    return _whole(starts), _whole(sizes), np.arange(1, len(starts) + 1, dtype=np.int64)


def _whole(values: Sequence[int]) -> NDArray[np.int64]:
    return np.asarray(values, np.int64)
