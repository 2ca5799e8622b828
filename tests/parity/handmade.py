"""Random small models and random sequences, for the oracle (transformers) and for this package alike."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qvl.batch import Batch
from qvl.inputs.positions import Run, TextRun, VisionRun, linear_positions, mrope_positions
from qvl.inputs.sequence import Sequence, next_token_labels, pack
from qvl.layers.decoder import DecoderConfig
from qvl.media.load import Visual
from qvl.models.qwen2_vl.config import Qwen2VLConfig, TokenIds, VisionConfig

IDS = TokenIds(image_pad=301, video_pad=302, vision_start=303, vision_end=304, bos=305, eos=306)
VOCAB = 320
MERGE = 2
Grid = tuple[int, int, int]
Part = int | tuple[str, Grid]
"""Number of random text tokens, or ("image" | "video", grid in patches)."""


def small_config(
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    mlp: int = 96,
    theta: float = 1e6,
    sections: tuple[int, ...] = (2, 3, 3),
    eps: float = 1e-6,
    vision: tuple[int, int, int, int] = (32, 2, 2, 4),
    patch: int = 4,
    tied: bool = False,
) -> Qwen2VLConfig:
    """`vision`: width, layers, heads, mlp ratio. `patch` is small to keep rows short."""
    v_width, v_layers, v_heads, v_ratio = vision
    return Qwen2VLConfig(
        text=DecoderConfig(width, layers, heads, kv_heads, width // heads, mlp, eps, theta, sections),
        vision=VisionConfig(v_width, v_layers, v_heads, v_ratio * v_width, patch=patch),
        vocab_size=VOCAB,
        tie_embeddings=tied,
        ids=IDS,
    )


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Weights large enough for every part to matter: logits of size about 1, attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        p.normal_(generator=generator)
        if p.ndim > 1:
            p.mul_(0.7 if "embed" in name and "patch" not in name else 1.2 / math.sqrt(p[0].numel()))
        elif name.endswith("weight"):
            p.mul_(0.1).add_(1)
        else:
            p.mul_(0.1)


def visual(rng: np.random.Generator, grid: Grid, config: VisionConfig) -> Visual:
    t, h, w = grid
    hw = (h * config.patch, w * config.patch)
    rows = rng.standard_normal((t * h * w, config.patch_values), dtype=np.float32)
    return Visual(torch.from_numpy(rows), grid, hw, hw)


def sequence(seed: int, parts: Seq[Part], config: Qwen2VLConfig, labels: bool = False, rope_axes: int = 3) -> Sequence:
    """A sequence of random tokens and random pictures; with `labels`, every second text token is supervised."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    rows: list[int] = []
    runs: list[Run] = []
    visuals: list[Visual] = []
    text = 0
    for part in parts:
        if isinstance(part, int):
            tokens += rng.integers(0, 300, part).tolist()
            text += part
            continue
        kind, (t, h, w) = part
        merged = (t, h // MERGE, w // MERGE)
        count = math.prod(merged)
        rows += range(len(tokens) + 1, len(tokens) + 1 + count)
        pad = IDS.image_pad if kind == "image" else IDS.video_pad
        tokens += [IDS.vision_start, *[pad] * count, IDS.vision_end]
        runs += [TextRun(text + 1), VisionRun(merged)]
        text = 1
        visuals.append(visual(rng, (t, h, w), config.vision))
    positions_RT, following = (mrope_positions if rope_axes == 3 else linear_positions)([*runs, TextRun(text)])
    tokens_T = np.asarray(tokens, np.int64)
    supervised_T = (tokens_T < 300) & (np.arange(len(tokens_T)) % 2 == 1)
    return Sequence(
        tokens_T=tokens_T,
        positions_RT=positions_RT,
        vision_rows_M=np.asarray(rows, np.int64),
        visuals=tuple(visuals),
        next_position=following,
        labels_T=next_token_labels(tokens_T, supervised_T) if labels else None,
    )


def batch_of(sequences: Seq[Sequence], config: Qwen2VLConfig) -> Batch:
    return pack(sequences, config.vision.patch_values, MERGE)


@dataclass(frozen=True)
class OracleInputs:
    """The same sequences as transformers wants them: padded on the left, pictures and videos apart."""

    arguments: dict[str, Tensor]
    pads: tuple[int, ...]
    """Padding before each row."""


def oracle_inputs(sequences: Seq[Sequence]) -> OracleInputs:
    longest = max(len(s.tokens_T) for s in sequences)
    pads = tuple(longest - len(s.tokens_T) for s in sequences)
    padded = [np.pad(s.tokens_T, (n, 0), constant_values=IDS.bos) for s, n in zip(sequences, pads, strict=True)]
    ids = torch.from_numpy(np.stack(padded))
    mask = torch.from_numpy(np.stack([np.arange(longest) >= n for n in pads]).astype(np.int64))
    arguments = {"input_ids": ids, "attention_mask": mask}
    visuals = {"image": [], "video": []}
    for s in sequences:
        starts = s.vision_rows_M[np.isin(s.vision_rows_M - 1, s.vision_rows_M, invert=True)]
        for v, row in zip(s.visuals, starts, strict=True):
            visuals["image" if s.tokens_T[row] == IDS.image_pad else "video"].append(v)
    if any(visuals.values()):
        arguments["mm_token_type_ids"] = (ids == IDS.image_pad).int() + 2 * (ids == IDS.video_pad).int()
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if visuals[kind]:
            arguments[pixels] = torch.cat([v.patches_PC for v in visuals[kind]])
            arguments[f"{kind}_grid_thw"] = torch.tensor([v.grid for v in visuals[kind]])
    return OracleInputs(arguments, pads)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).abs().max() / theirs.abs().max())
