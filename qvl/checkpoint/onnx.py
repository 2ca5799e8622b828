"""The weights in an ONNX file, under the names that the exported PyTorch model gave them.

Knows: enough of the protobuf format to find initializers and the operations that use them.
Does not know: what the graph computes; external data, other number formats than float32 (both are refused).

The exporter keeps most parameters' names but stores the weight of a linear layer transposed, called `onnx::MatMul_1966`
or the like. The operation that uses it still says where it belongs: `/encoder/layer.0/mlp/fc1/MatMul` is the weight of
`encoder.layer.0.mlp.fc1`. Other nameless constants get the name of their operation.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from qvl.checkpoint.tensor_files import TensorFile

_FLOAT = 1
_NAMELESS = "onnx::"
# Field numbers of onnx.proto
_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_NODE_INPUT, _NODE_NAME = 1, 3
_DIMS, _DATA_TYPE, _NAME, _RAW = 1, 2, 8, 9


@dataclass(frozen=True)
class _Stored:
    shape: tuple[int, ...]
    start: int
    transposed: bool = False


@final
class ONNX(TensorFile):
    """An opened file; float32 initializers only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not ONNX, cut off, or without initializers.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {self.path}")
        with self.path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._tensors = self._named(*self._read())
        except (IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path} is not an ONNX file, or it is cut off ({error})") from None
        if not self._tensors:
            raise ValueError(
                f"{self.path} holds no float32 weights; it is no ONNX file, or its data lie in another one"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: t.shape[::-1] if t.transposed else t.shape for name, t in self._tensors.items()}

    def get(self, name: str) -> Tensor:
        stored = self._tensors[name]
        values = np.frombuffer(self._data, np.float32, prod(stored.shape), stored.start).reshape(stored.shape).copy()
        return torch.from_numpy(values.T if stored.transposed else values)

    def _read(self) -> tuple[dict[str, _Stored], dict[str, str]]:
        """Initializers by name, and which operation uses each (the first one that does)."""
        tensors: dict[str, _Stored] = {}
        user: dict[str, str] = {}
        for number, start, end in self._fields(0, len(self._data)):
            if number != _GRAPH:
                continue
            for kind, first, last in self._fields(start, end):
                if kind == _INITIALIZER:
                    tensors |= self._initializer(first, last)
                elif kind == _NODE:
                    inputs, name = self._node(first, last)
                    user = dict.fromkeys(inputs, name) | user
        return tensors, user

    def _named(self, tensors: dict[str, _Stored], user: dict[str, str]) -> dict[str, _Stored]:
        named = {}
        for name, stored in tensors.items():
            if not name.startswith(_NAMELESS):
                named[name] = stored
                continue
            path, _, operation = user.get(name, name).strip("/").replace("/", ".").rpartition(".")
            if operation == "MatMul":
                named[f"{path}.weight"] = _Stored(stored.shape, stored.start, transposed=True)
            else:
                named[f"{path}.{operation}"] = stored
        return named

    def _initializer(self, start: int, end: int) -> dict[str, _Stored]:
        dims: list[int] = []
        name, kind, data = "", 0, (0, 0)
        for number, first, last in self._fields(start, end):
            if number == _DIMS:
                dims += self._integers(first, last)
            elif number == _DATA_TYPE:
                kind = self._varint(first)[0]
            elif number == _NAME:
                name = self._data[first:last].decode("utf-8")
            elif number == _RAW:
                data = first, last
        if kind != _FLOAT or data[1] - data[0] != 4 * prod(dims):
            return {}
        return {name: _Stored(tuple(dims), data[0])}

    def _node(self, start: int, end: int) -> tuple[list[str], str]:
        inputs, name = [], ""
        for number, first, last in self._fields(start, end):
            if number == _NODE_INPUT:
                inputs.append(self._data[first:last].decode("utf-8"))
            elif number == _NODE_NAME:
                name = self._data[first:last].decode("utf-8")
        return inputs, name

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, first byte, last byte + 1) of every field between two places of the file."""
        while at < end:
            key, at = self._varint(at)
            wire = key & 7
            if wire == 0:
                last = self._varint(at)[1]
            elif wire == 2:
                length, at = self._varint(at)
                last = at + length
            elif wire in (1, 5):
                last = at + (8 if wire == 1 else 4)
            else:
                raise IndexError(f"wire type {wire} at byte {at}")
            if last > end:
                raise IndexError(f"a field at byte {at} ends at {last}, behind {end}")
            yield key >> 3, at, last
            at = last

    def _integers(self, at: int, end: int) -> list[int]:
        found = []
        while at < end:
            value, at = self._varint(at)
            found.append(value)
        return found

    def _varint(self, at: int) -> tuple[int, int]:
        """A whole number of seven bits per byte, and where the next thing begins."""
        value = shift = 0
        while True:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
