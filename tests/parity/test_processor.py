"""Messages to logits: this package's processor and model against transformers' template, image processor, model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from parity.handmade import randomise, relative
from qvl.checkpoint.folder import load_model, save_model
from qvl.checkpoint.hf_settings import PREPROCESSOR_FILE, Preprocessing, preprocessing_json, read_preprocessing
from qvl.checkpoint.jsonfile import dump
from qvl.inputs.processor import Processor
from qvl.layers.decoder import DecoderConfig
from qvl.media.resize import PixelBudget
from qvl.models.qwen2_vl.config import Qwen2VLConfig, VisionConfig
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

BUDGET = PixelBudget(min_pixels=3136, max_pixels=60_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder as this package writes it, with the real vocabulary."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    model = Qwen2VL(
        Qwen2VLConfig(
            DecoderConfig(64, 2, 4, 2, 16, 96, rope_sections=(2, 3, 3)), VisionConfig(32, 2, 2, 64), tie_embeddings=True
        )
    )
    randomise(model, 3)
    save_model(model, path)
    (path / PREPROCESSOR_FILE).write_text(dump(preprocessing_json(Preprocessing(budget=BUDGET))))
    Tokenizer.qwen2_vl().save(path)
    return path


def picture(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = [picture(0, 90, 120), picture(1, 56, 56), picture(2, 400, 333)]
MESSAGES = [
    {"role": "system", "content": "Count."},
    {
        "role": "user",
        "content": [
            {"type": "image", "image": PICTURES[0]},
            {"type": "image", "image": PICTURES[1]},
            {"type": "text", "text": "Which is larger? 哪个更大？"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "The first."}]},
    {"role": "user", "content": [{"type": "text", "text": "And this"}, {"type": "image", "image": PICTURES[2]}]},
]


def oracle(folder: Path) -> dict[str, torch.Tensor]:
    """Ids, grids, patches, positions and logits by transformers alone, from the folder's files."""
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    module = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl
    images = module.Qwen2VLImageProcessorPil.from_pretrained(folder)(images=PICTURES, return_tensors="pt")
    grids = images["image_grid_thw"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    first, *rest = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True).split(
        "<|image_pad|>"
    )
    counts = (grids.prod(1) // 4).tolist()
    text = first + "".join("<|image_pad|>" * n + piece for n, piece in zip(counts, rest, strict=True))
    ids = torch.tensor([tokenizer.encode(text)])
    types = (ids == model.config.image_token_id).int()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}
    logits = model(**inputs, pixel_values=images["pixel_values"], image_grid_thw=grids).logits[0]
    positions, _ = model.model.get_rope_index(ids, types, image_grid_thw=grids)
    return {
        "ids": ids[0],
        "grids": grids,
        "patches": images["pixel_values"],
        "positions": positions[:, 0],
        "logits": logits,
    }


@pytest.mark.slow
@torch.no_grad()
def test_from_messages_to_logits(folder: Path) -> None:
    settings = read_preprocessing(folder)
    assert settings.budget == BUDGET
    processor = Processor(Tokenizer.from_folder(folder)).with_options(
        pixels=settings.budget, geometry=settings.geometry
    )
    batch = processor([MESSAGES], generation_prompt=True)
    theirs = oracle(folder)
    assert batch.tokens_T.tolist() == theirs["ids"].tolist()
    assert [list(g) for g in batch.grids] == theirs["grids"].tolist()
    assert torch.equal(batch.patches_PC, theirs["patches"])
    assert torch.equal(batch.positions_RT, theirs["positions"])
    assert relative(load_model(folder)(batch), theirs["logits"]) < 2e-5  # measured: 3.2e-6
