"""GGUF files, as llama.cpp writes them: settings, vocabulary and tensors in one file.

Knows: the container (versions 2 and 3) and six ways of storing numbers, which it turns into float32.
Does not know: what the settings and tensors mean (`language_part` does).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvl.checkpoint.tensor_files import TensorFile

_ALIGNMENT = 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TYPE_NAMES = {6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
"""Common types that are not read, for the message."""

Bytes = NDArray[np.uint8]


def _nibbles(packed_B16: Bytes) -> NDArray[np.uint8]:
    """Sixteen bytes hold 32 numbers of four bits: the low halves are numbers 0 to 15, the high halves 16 to 31."""
    return np.concatenate((packed_B16 & 15, packed_B16 >> 4), axis=1).astype(np.uint8, copy=False)


def _half(blocks: Bytes, at: int) -> NDArray[np.float32]:
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _q4_0(blocks: Bytes) -> NDArray[np.float32]:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> NDArray[np.float32]:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> NDArray[np.float32]:
    return _half(blocks, 0) * blocks[:, 2:].copy().view(np.int8)


def _bf16(blocks: Bytes) -> NDArray[np.float32]:
    return (blocks.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class _Storage:
    """How numbers of one type lie in the file: blocks of `numbers` in `bytes`, and what they decode to."""

    numbers: int
    bytes: int
    decode: Callable[[Bytes], NDArray[np.float32]]


_STORAGE = {
    0: _Storage(1, 4, lambda blocks: blocks.copy().view(np.float32)),
    1: _Storage(1, 2, lambda blocks: _half(blocks, 0)),
    2: _Storage(32, 18, _q4_0),
    3: _Storage(32, 20, _q4_1),
    8: _Storage(32, 34, _q8_0),
    30: _Storage(1, 2, _bf16),
}
"""`ggml_type` number -> storage: F32, F16, Q4_0, Q4_1, Q8_0, BF16 (ggml's `dequantize_row_*`)."""


@final
class GGUF(TensorFile):
    """An opened file. Its tensors are decoded when asked for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not GGUF, cut off, or a tensor of a type that is not read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {self.path}")
        with self.path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError(f"{self.path} is not a GGUF file: it does not begin with GGUF")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = _Reader(self._data, 4)
        try:
            version, tensors, keys = reader.number("I"), reader.number("Q"), reader.number("Q")
            if version not in (2, 3):
                raise ValueError(f"{self.path} is GGUF version {version}; versions 2 and 3 are read")
            self.fields: Mapping[str, Any] = {reader.text(): reader.value(reader.number("I")) for _ in range(keys)}
            """Settings by key, such as `llama.block_count`."""
            self._tensors = {reader.text(): reader.tensor() for _ in range(tensors)}
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"{self.path} is damaged or cut off in its header ({error}); download it again") from None
        alignment = int(self.fields.get("general.alignment", _ALIGNMENT))
        self._start = -(-reader.at // alignment) * alignment
        self._check()

    def field(self, key: str) -> Any:
        """The setting `key`. Raises `ValueError` if the file has none of that name."""
        if key not in self.fields:
            raise ValueError(f"{self.path} does not say {key}; a complete GGUF file does")
        return self.fields[key]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (shape, _, _) in self._tensors.items()}

    def get(self, name: str) -> Tensor:
        """Float32, whatever the file's storage."""
        shape, kind, offset = self._tensors[name]
        storage = _STORAGE[kind]
        blocks = prod(shape) // storage.numbers
        raw = np.frombuffer(self._data, np.uint8, blocks * storage.bytes, self._start + offset)
        return torch.from_numpy(storage.decode(raw.reshape(blocks, storage.bytes)).reshape(shape))

    def _check(self) -> None:
        for name, (shape, kind, offset) in self._tensors.items():
            if kind not in _STORAGE:
                raise ValueError(
                    f"{self.path}: {name} is stored as {_TYPE_NAMES.get(kind, f'type {kind}')}; read are F32, F16, "
                    "BF16, Q4_0, Q4_1 and Q8_0. Take a file of one of those"
                )
            storage = _STORAGE[kind]
            end = self._start + offset + prod(shape) // storage.numbers * storage.bytes
            if end > len(self._data):
                raise ValueError(
                    f"{self.path} is cut off: {name} needs bytes up to {end:,}, the file has {len(self._data):,}; "
                    "download it again"
                )


@final
class _Reader:
    """Reads the header from `at` on."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data = data
        self.at = at

    def number(self, code: str) -> Any:
        form = f"<{code}"
        (value,) = struct.unpack_from(form, self._data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = self.number("Q")
        if self.at + length > len(self._data):
            raise struct.error(f"a text of {length} bytes at byte {self.at}")
        self.at += length
        return self._data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            item, count = self.number("I"), self.number("Q")
            return [self.value(item) for _ in range(count)]
        return self.number(_SCALARS[kind])

    def tensor(self) -> tuple[tuple[int, ...], int, int]:
        """Shape (rows first; the file says columns first), type number and offset of a tensor."""
        dims = [self.number("Q") for _ in range(self.number("I"))]
        return tuple(reversed(dims)), self.number("I"), self.number("Q")
