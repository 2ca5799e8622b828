"""Smallest writers of GGUF and ONNX files, for the readers' tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> tuple[int, bytes]:
    if isinstance(value, str):
        return 8, _text(value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, list):
        kinds = [_value(item) for item in value]
        return 9, struct.pack("<IQ", kinds[0][0] if kinds else 4, len(kinds)) + b"".join(raw for _, raw in kinds)
    return 4, struct.pack("<I", value)


def write_gguf(
    file: Path, fields: Mapping[str, Any], tensors: Mapping[str, tuple[Sequence[int], int, bytes]], version: int = 3
) -> Path:
    """`tensors`: name -> (shape rows first, type number, data)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields))
    for key, value in fields.items():
        kind, raw = _value(value)
        head += _text(key) + struct.pack("<I", kind) + raw
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        head += _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, len(data))
        data += raw
    file.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return file


def float32(tensor: Tensor) -> tuple[list[int], int, bytes]:
    return list(tensor.shape), 0, tensor.detach().numpy().astype("<f4").tobytes()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, payload: bytes | int) -> bytes:
    if isinstance(payload, int):
        return _varint(number << 3) + _varint(payload)
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def write_onnx(file: Path, initializers: Mapping[str, np.ndarray], nodes: Sequence[tuple[str, Sequence[str]]]) -> Path:
    """`nodes`: (name, inputs)."""
    graph = b""
    for name, inputs in nodes:
        graph += _field(1, b"".join(_field(1, i.encode()) for i in inputs) + _field(3, name.encode()))
    for name, array in initializers.items():
        kind = {"float32": 1, "int64": 7}[array.dtype.name]
        body = b"".join(_field(1, n) for n in array.shape) + _field(2, kind) + _field(8, name.encode())
        graph += _field(5, body + _field(9, array.tobytes()))
    file.write_bytes(_field(1, 7) + _field(7, graph))
    return file
