"""One small model with every part, and what is needed to compare folders."""

from __future__ import annotations

from pathlib import Path

import torch

from qvl.layers.decoder import DecoderConfig
from qvl.models.qwen2_vl.config import Qwen2VLConfig, VisionConfig
from qvl.models.qwen2_vl.model import Qwen2VL

SHARD = 30_000
"""Bytes: makes several shards of the small model."""


def small(tied: bool = False) -> Qwen2VL:
    config = Qwen2VLConfig(
        DecoderConfig(48, 2, 3, 1, 16, 40, rope_sections=(2, 3, 3)),
        VisionConfig(16, 2, 2, 32, patch=2),
        vocab_size=70,
        tie_embeddings=tied,
    )
    model = Qwen2VL(config)
    model.init_weights(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


def assert_same(a: Qwen2VL, b: Qwen2VL) -> None:
    assert a.config == b.config
    for (name, p), (other, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(p, q), name


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}
