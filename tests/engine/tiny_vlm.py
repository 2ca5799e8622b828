"""A model small enough for tests of milliseconds, and short ways to write requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from qvl.engine.vlm import VLM
from qvl.inputs.processor import Processor
from qvl.layers.decoder import DecoderConfig
from qvl.models.qwen2_vl.config import Qwen2VLConfig, VisionConfig, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.models.vlm import VisionLanguageModel
from qvl.text.tokenizer import Tokenizer
from qvl.train.build import build, token_ids
from qvl.train.config import StageConfig, TrainConfig

SIZES = Qwen2VLConfig(
    DecoderConfig(48, 2, 4, 2, 12, 64, rope_theta=20.0, rope_sections=(2, 2, 2)),
    VisionConfig(width=32, layers=2, heads=2, mlp_hidden=64),
    max_positions=512,
)


def small_tokenizer() -> Tokenizer:
    return Tokenizer.reduced(["the red circle is left of the blue square"], base_ranks=64)


def loud(model: VisionLanguageModel, seed: int = 1) -> VisionLanguageModel:
    """Random, and loud: at the usual initialisation a small model says one token for ever."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5, generator=generator)
    return model.eval()


def small_model(tokenizer: Tokenizer, max_positions: int = 512) -> Qwen2VL:
    sizes = replace(SIZES, max_positions=max_positions)
    model = Qwen2VL(with_vocabulary(sizes, tokenizer.vocab_size, token_ids(tokenizer)))
    model.init_weights(0)
    loud(model)
    return model


def small_vlm(family: str) -> VLM:
    """ "qwen2-vl" or "qwen-vl"."""
    if family == "qwen2-vl":
        tokenizer = small_tokenizer()
        return VLM(small_model(tokenizer, max_positions=2048), Processor(tokenizer))
    built = build(TrainConfig("unused", (StageConfig("one", trains=("text",), share=1),), model="tiny-qwen-vl"))
    return VLM(loud(built.model), built.processor.with_options(resize="exact", chat_format="chatml"))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3] noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def user(*parts: object) -> list[dict]:
    """One user turn; arrays are pictures, lists of arrays clips, strings text."""
    return [{"role": "user", "content": [_part(p) for p in parts]}]


def _part(part: object) -> dict | str:
    if isinstance(part, np.ndarray):
        return {"type": "image", "image": part}
    if isinstance(part, list):
        height, width, _ = part[0].shape
        return {"type": "video", "video": part, "resized_height": height, "resized_width": width}
    return str(part)


def clip(frames: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of noise."""
    return [picture(height, width, 100 * seed + i) for i in range(frames)]
