"""Files straight into memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qvl.checkpoint.reading import read_at
from qvl.checkpoint.tensor_files import open_tensors
from qvl.checkpoint.weights import WeightFiles


def test_parts_of_a_large_file(tmp_path: Path) -> None:
    values = torch.arange(6 << 20, dtype=torch.int32)  # three pieces
    (tmp_path / "f").write_bytes(b"abc" + values.numpy().tobytes())
    into = torch.zeros_like(values)
    read_at(tmp_path / "f", 3, into)
    assert torch.equal(into, values)
    few = torch.zeros(2, 5, dtype=torch.int32)
    read_at(tmp_path / "f", 3 + 4 * 1000, few)
    assert torch.equal(few.flatten(), values[1000:1010])
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'f'} is cut off: it ends 37 bytes early")):
        read_at(tmp_path / "f", 3 + values.nbytes - 3, few)


def test_stored_tensors_into_views(tmp_path: Path) -> None:
    stored = {
        "b": torch.randn(4, 6).bfloat16(),
        "f": torch.randn(3, 6),
        "h": torch.randn(2, 6).half(),
        "i": torch.arange(12).view(2, 6),
    }
    save_file(stored, tmp_path / "model.safetensors")
    place = open_tensors(tmp_path / "model.safetensors").place("b")
    assert place is not None
    assert (place.dtype, place.bytes) == (torch.bfloat16, 48)
    assert open_tensors(tmp_path / "model.safetensors").place("i") is None
    files = WeightFiles.find(tmp_path)
    for dtype in (torch.bfloat16, torch.float32):
        for transposed in (False, True):
            for name, value in stored.items():
                memory = torch.zeros(value.T.shape if transposed else value.shape, dtype=dtype)
                files.fill(name, memory.T if transposed else memory)
                assert torch.equal(memory, (value.T if transposed else value).to(dtype)), (name, dtype)
