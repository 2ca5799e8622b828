"""ONNX files: names that the exporter lost are found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpoint.containers import write_onnx
from qvl.checkpoint.onnx import ONNX


def test_names_and_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kept, linear, table = (rng.standard_normal(s, dtype=np.float32) for s in ((3,), (2, 300), (1, 5, 2)))
    file = write_onnx(
        tmp_path / "a.onnx",
        {"fc.bias": kept, "onnx::MatMul_12": linear, "onnx::Reshape_3": table, "onnx::Slice_1": np.arange(3)},
        [
            ("/body/layer.0/fc/MatMul", ["x", "onnx::MatMul_12"]),
            ("/body/layer.0/fc/Add", ["fc.bias", "y"]),
            ("/embeddings/Reshape_1", ["onnx::Reshape_3", "shape"]),
        ],
    )
    opened = ONNX(file)
    assert opened.shapes() == {
        "fc.bias": (3,),
        "body.layer.0.fc.weight": (300, 2),
        "embeddings.Reshape_1": (1, 5, 2),
    }
    assert np.array_equal(opened.get("body.layer.0.fc.weight").numpy(), linear.T)
    assert np.array_equal(opened.get("embeddings.Reshape_1").numpy(), table)


def test_files_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ONNX(tmp_path / "a.onnx")
    whole = write_onnx(tmp_path / "a.onnx", {"w": np.ones(9, np.float32)}, []).read_bytes()
    (tmp_path / "a.onnx").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="not an ONNX file, or it is cut off"):
        ONNX(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="holds no float32 weights"):
        ONNX(write_onnx(tmp_path / "b.onnx", {"w": np.arange(3)}, []))
