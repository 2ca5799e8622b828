"""GGUF: numbers by hand, and every way a file can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoint.containers import float32, write_gguf
from qvl.checkpoint.gguf import GGUF
from qvl.checkpoint.language_part import read_language_part

HALF = np.array([0.5], "<f2").tobytes()
ONE = np.array([1.0], "<f2").tobytes()
# Byte i of a block of four-bit numbers holds number i (low) and number 16 + i (high).
NIBBLES = bytes((15 - i) << 4 | i for i in range(16))
LOW, HIGH = list(range(16)), list(range(15, -1, -1))


@pytest.mark.parametrize(
    ("kind", "raw", "wanted"),
    [
        (2, HALF + NIBBLES, [0.5 * (n - 8) for n in LOW + HIGH]),
        (3, HALF + ONE + NIBBLES, [0.5 * n + 1 for n in LOW + HIGH]),
        (8, HALF + bytes(n % 256 for n in range(-16, 16)), [0.5 * n for n in range(-16, 16)]),
        (0, np.arange(32, dtype="<f4").tobytes(), list(range(32))),
        (1, np.arange(32, dtype="<f2").tobytes(), list(range(32))),
        (30, b"".join(np.array([n], "<f4").tobytes()[2:] for n in range(32)), list(range(32))),
    ],
    ids=["Q4_0", "Q4_1", "Q8_0", "F32", "F16", "BF16"],
)
def test_storage_by_hand(kind: int, raw: bytes, wanted: list[float], tmp_path: Path) -> None:
    # Against the package `gguf` 0.19, all 272 tensors of SmolLM2-135M (Q4_1, Q8_0, F32) come out equal to the bit.
    file = write_gguf(tmp_path / "a.gguf", {}, {"first": ((2, 32), kind, 2 * raw), "second": ((32,), kind, raw)})
    opened = GGUF(file)
    assert opened.shapes() == {"first": (2, 32), "second": (32,)}
    assert opened.get("second").tolist() == wanted
    assert opened.get("first").tolist() == [wanted, wanted]


def test_fields(tmp_path: Path) -> None:
    fields = {"general.architecture": "llama", "n": 7, "eps": 0.5, "words": ["a", "ü"], "kinds": [1, 3]}
    opened = GGUF(write_gguf(tmp_path / "a.gguf", fields, {}))
    assert dict(opened.fields) == fields
    with pytest.raises(ValueError, match=r"does not say llama\.block_count"):
        opened.field("llama.block_count")


def test_files_that_are_wrong(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        GGUF(file)
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="does not begin with GGUF"):
        GGUF(file)
    with pytest.raises(ValueError, match="GGUF version 1; versions 2 and 3"):
        GGUF(write_gguf(file, {}, {}, version=1))
    with pytest.raises(ValueError, match="w is stored as Q4_K; read are F32, F16, BF16, Q4_0, Q4_1 and Q8_0"):
        GGUF(write_gguf(file, {}, {"w": ((256,), 12, bytes(144))}))
    whole = write_gguf(file, {"words": ["abc"] * 5}, {"w": float32(torch.ones(4, 4))}).read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="cut off: w needs bytes up to"):
        GGUF(file)
    file.write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"damaged or cut off in its header"):
        GGUF(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, "rope.scaling.type is 'linear'"),
        ({"llama.rope.dimension_count": 8}, "8 of a head's 16 channels turn"),
    ],
)
def test_rotary_positions_that_are_not_implemented(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    fields = {"general.architecture": "llama", "llama.embedding_length": 64, "llama.attention.head_count": 4}
    plain = {"llama.rope.scaling.type": "none", "llama.rope.dimension_count": 16}
    with pytest.raises(ValueError, match=message):
        read_language_part(write_gguf(tmp_path / "a.gguf", fields | plain | change, {}))
    with pytest.raises(ValueError, match=r"does not say llama\.block_count"):
        read_language_part(write_gguf(tmp_path / "a.gguf", fields | plain, {}))
