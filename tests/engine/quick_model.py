"""A small model in bfloat16 whose heads the kernels can attend (tiny_vlm's are too small for them)."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from qvl.engine.native import ops
from qvl.engine.native.packing import Quantize
from qvl.engine.quicken import quicken
from qvl.layers.decoder import DecoderConfig
from qvl.models.qwen2_vl.config import Qwen2VLConfig, TokenIds, VisionConfig, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.tokenizer import Tokenizer

SIZES = Qwen2VLConfig(
    DecoderConfig(96, 2, 6, 2, 16, 100, rope_theta=20.0, rope_sections=(2, 3, 3)),
    VisionConfig(width=64, layers=2, heads=2, mlp_hidden=128),
    max_positions=1024,
    tie_embeddings=True,
)
needs_kernels = pytest.mark.skipif(not ops.available(), reason="no compiler, or neither AVX512-bf16 nor AVX2")


def made(tokenizer: Tokenizer) -> Qwen2VL:
    """float32, random and loud."""
    s = tokenizer.special
    pads = {"image_pad": s("<|image_pad|>"), "video_pad": s("<|video_pad|>")}
    marks = {"vision_start": s("<|vision_start|>"), "vision_end": s("<|vision_end|>")}
    ids = TokenIds(**pads, **marks, bos=s("<|endoftext|>"), eos=s("<|im_end|>"))
    model = Qwen2VL(with_vocabulary(SIZES, tokenizer.vocab_size, ids)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.init_weights(0)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5, generator=generator)
            else:
                parameter.normal_(1.0, 0.1, generator=generator)
    return model


def quick(model: Qwen2VL, quantize: Quantize | None = None) -> Qwen2VL:
    """A copy in bfloat16 with its layers exchanged."""
    copy = deepcopy(model).to(torch.bfloat16)
    quicken(copy, quantize)
    return copy
