"""A prompt with a picture and a video, end to end, against values that transformers 4.57.1 computed.

Also the flat generation of config.json and the old tensor names: the folder is written here from the fixture's own.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from parity.handmade import relative
from qvl.batch import Batch
from qvl.checkpoint.folder import load_model
from qvl.inputs.processor import Processor
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen2_vl_video"


def weight(name: str, shape: list[int]) -> torch.Tensor:
    """The rule of the golden folder's readme."""
    w = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        norm = name.endswith("weight") and ("norm" in name or name.endswith("ln_q.weight"))
        return torch.from_numpy(1 + 0.1 * w if norm else 0.05 * w)
    return torch.from_numpy(
        0.7 * w if "embed_tokens" in name else w * np.float32(1.2 / math.sqrt(math.prod(shape[1:])))
    )


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return json.loads((GOLDEN / "fixture.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "expected.npz"))


@pytest.fixture(scope="module")
def model(fixture: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Qwen2VL:
    folder = tmp_path_factory.mktemp("golden")
    (folder / "config.json").write_text(json.dumps(fixture["config"]))
    save_file({name: weight(name, shape) for name, shape in fixture["tensors"].items()}, folder / "model.safetensors")
    return load_model(folder)


@pytest.fixture(scope="module")
def batch() -> Batch:
    frames = [Image.open(path) for path in sorted(GOLDEN.glob("frame*.png"))]
    content = [
        {"type": "text", "text": "See "},
        {"type": "image", "image": str(GOLDEN / "picture.png")},
        {"type": "text", "text": " and then "},
        {"type": "video", "video": frames, "min_pixels": 3136},
        {"type": "text", "text": ", what moves? 什么在动？"},
    ]
    processor = Processor(Tokenizer.qwen2_vl())
    return processor([[{"role": "user", "content": content}]], generation_prompt=True)


def test_ids_grids_positions_patches(batch: Batch, expected: dict[str, np.ndarray]) -> None:
    assert batch.tokens_T.tolist() == expected["input_ids"].tolist()
    assert batch.grids == (tuple(expected["image_grid"]), tuple(expected["video_grid"]))
    assert batch.positions_RT.tolist() == expected["positions"].tolist()
    assert int(batch.positions_RT.max()) + 1 - len(batch.tokens_T) == expected["rope_delta"].item()
    video = batch.patches_PC[-math.prod(expected["video_grid"]) :][::7]
    assert (video - torch.from_numpy(expected["video_patches"])).abs().max() < 1e-6  # measured: 0


@pytest.mark.slow
@torch.no_grad()
def test_logits(batch: Batch, model: Qwen2VL, fixture: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    logits = model(batch)
    assert (
        relative(logits[:, fixture["columns"]], torch.from_numpy(expected["logits"])) < 2e-5
    )  # measured worst: 1.8e-6
    assert logits.argmax(-1).tolist() == expected["argmax"].tolist()
