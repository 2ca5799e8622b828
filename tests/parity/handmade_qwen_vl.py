"""Small Qwen-VL models, random sequences for them, and pictures cut up by hand."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from parity.handmade import randomise
from qvl.batch import Batch
from qvl.inputs.sequence import Sequence, next_token_labels, pack
from qvl.layers.decoder import BeyondTraining, DecoderConfig
from qvl.media.load import Visual
from qvl.models.qwen_vl.config import AdapterConfig, QwenVLConfig, TokenIds, VisionConfig
from qvl.models.qwen_vl.model import QwenVL

IDS = TokenIds(image_start=301, bos=300, eos=300)
Part = int | tuple[int, int]
"""Number of random text tokens, or a picture's (height, width) in patches."""
_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)[:, None, None]
_STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)[:, None, None]


def small_config(
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    mlp: int = 48,
    vision: tuple[int, int, int, int] = (24, 2, 3, 40),
    queries: int = 16,
    adapter_heads: int = 2,
    table_side: int = 4,
    patch: int = 3,
    trained_len: int = 2048,
    tied: bool = False,
) -> QwenVLConfig:
    """`vision`: width, layers, heads, mlp width. `patch` is small to keep rows short."""
    v_width, v_layers, v_heads, v_mlp = vision
    text = DecoderConfig(
        width,
        layers,
        heads,
        heads,
        width // heads,
        mlp,
        rope_theta=1e4,
        rope_float32=True,
        beyond=BeyondTraining(trained_len),
    )
    return QwenVLConfig(
        text,
        VisionConfig(v_width, v_layers, v_heads, v_mlp, patch, image_px=patch * table_side, table_side=table_side),
        AdapterConfig(queries, adapter_heads),
        vocab_size=320,
        tie_embeddings=tied,
        ids=IDS,
    )


def made(config: QwenVLConfig, seed: int = 0) -> QwenVL:
    """In evaluation mode, with weights large enough for every part to matter."""
    model = QwenVL(config).eval()
    randomise(model, seed)
    return model


def sequence(seed: int, parts: Seq[Part], config: QwenVLConfig, labels: bool = False) -> Sequence:
    """A sequence of random tokens and random pictures; with `labels`, every second text token is supervised."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    rows: list[int] = []
    visuals = []
    for part in parts:
        if isinstance(part, int):
            tokens += rng.integers(0, 300, part).tolist()
            continue
        queries = config.adapter.queries
        rows += range(len(tokens) + 1, len(tokens) + 1 + queries)
        tokens += [IDS.image_start, *[IDS.image_pad] * queries, IDS.image_end]
        h, w = part
        pixels = rng.standard_normal((h * w, config.vision.patch_values), dtype=np.float32)
        hw_px = (h * config.vision.patch, w * config.vision.patch)
        visuals.append(Visual(torch.from_numpy(pixels), (1, h, w), hw_px, hw_px))
    tokens_T = np.asarray(tokens, np.int64)
    supervised_T = (tokens_T < 300) & (np.arange(len(tokens_T)) % 2 == 1)
    return Sequence(
        tokens_T=tokens_T,
        positions_RT=np.arange(len(tokens_T))[None],
        vision_rows_M=np.asarray(rows, np.int64),
        visuals=tuple(visuals),
        next_position=len(tokens_T),
        labels_T=next_token_labels(tokens_T, supervised_T) if labels else None,
    )


def batch_of(sequences: Seq[Sequence], config: QwenVLConfig) -> Batch:
    return pack(sequences, config.vision.patch_values, merge=1)


def square_patches(path: Path, side: int = 448, patch: int = 14) -> Tensor:
    """float32 [P, C] of a picture squashed to a square: rows in raster order, values over (channel, y, x)."""
    resized = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    pixels_CHW = (np.asarray(resized, np.float32).transpose(2, 0, 1) / np.float32(255) - _MEAN) / _STD
    grid = side // patch
    cut = pixels_CHW.reshape(3, grid, patch, grid, patch).transpose(1, 3, 0, 2, 4)
    return torch.from_numpy(np.ascontiguousarray(cut.reshape(grid * grid, 3 * patch * patch)))


def batch_from_ids(ids: Seq[Seq[int]], pictures: Seq[Tensor], image_start: int = 151857, queries: int = 256) -> Batch:
    """Packs given ids; every `image_start` is followed by `queries` rows for the next of the square `pictures`."""
    flat = torch.tensor([i for one in ids for i in one])
    starts = (flat == image_start).nonzero().squeeze(1)
    side = int(len(pictures[0]) ** 0.5) if pictures else 0
    places = torch.stack([torch.arange(side**2) // max(side, 1), torch.arange(side**2) % max(side, 1)])
    return Batch(
        tokens_T=flat,
        positions_RT=torch.cat([torch.arange(len(one)) for one in ids])[None],
        seq_lens=tuple(len(one) for one in ids),
        patches_PC=torch.cat(list(pictures)) if pictures else torch.zeros(0, 588),
        patch_hw_2P=places.repeat(1, len(pictures)),
        segment_lens=(side**2,) * len(pictures),
        grids=((1, side, side),) * len(pictures),
        vision_rows_M=(starts[:, None] + 1 + torch.arange(queries)).flatten(),
    )
