"""The two sides of `train_step`: the model, its samples, and one training step of ours and of transformers'.

Knows: how each library is used by its users. Does not know: clocks, rows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from qvl.batch import IGNORE
from qvl.checkpoint.folder import load_model, save_model
from qvl.inputs.positions import TextRun, VisionRun, mrope_positions
from qvl.inputs.sequence import Sequence, next_token_labels, pack
from qvl.layers.decoder import DecoderConfig
from qvl.media.load import Visual
from qvl.models.qwen2_vl.config import Qwen2VLConfig, TokenIds, VisionConfig
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.train.flops import FlopCount
from qvl.train.loss import token_losses

Name = Literal["transformers", "ours"]
Grid = tuple[int, int]
Step = Callable[[list[Sequence]], float]
_LEARNING_RATE = 1e-4


def model_config(vocab: int) -> Qwen2VLConfig:
    """About 15 million parameters without the embedding; the special tokens are the last ids."""
    return Qwen2VLConfig(
        DecoderConfig(384, 8, 6, 2, 64, 1024, rope_sections=(8, 12, 12)),
        VisionConfig(width=192, layers=6, heads=6, mlp_hidden=768),
        vocab_size=vocab,
        tie_embeddings=True,
        ids=TokenIds(*(vocab - i for i in range(1, 7))),
    )


def picture_of(tokens: int, index: int) -> Grid:
    """Rows and columns of a picture of about so many vision tokens; by `index` wide, square or tall."""
    columns = max(1, round(math.sqrt(tokens * (1.8, 1.0, 0.55)[index % 3])))
    return max(1, round(tokens / columns)), columns


def sample(rng: np.random.Generator, config: Qwen2VLConfig, picture: Grid, text: int) -> Sequence:
    """`<|vision_start|>` picture `<|vision_end|>` and `text` tokens, the second half supervised."""
    vision, ids = config.vision, config.ids
    merged = (1, *picture)
    count = int(np.prod(merged))
    grid = (1, picture[0] * vision.merge, picture[1] * vision.merge)
    words = rng.integers(0, config.vocab_size - 10, text)
    tokens_T = np.concatenate(([ids.vision_start], [ids.image_pad] * count, [ids.vision_end], words)).astype(np.int64)
    positions_RT, following = mrope_positions([TextRun(1), VisionRun(merged), TextRun(1 + text)])
    patches = rng.standard_normal((int(np.prod(grid)), vision.patch_values), dtype=np.float32)
    hw = (grid[1] * vision.patch, grid[2] * vision.patch)
    return Sequence(
        tokens_T=tokens_T,
        positions_RT=positions_RT,
        vision_rows_M=np.arange(1, 1 + count),
        visuals=(Visual(torch.from_numpy(patches), grid, hw, hw),),
        next_position=following,
        labels_T=next_token_labels(tokens_T, np.arange(len(tokens_T)) >= len(tokens_T) - text // 2),
    )


def flops_of(model: Qwen2VL, samples: list[Sequence]) -> int:
    """What a step means: real tokens, and logits where there is a label."""
    labelled = sum(int((s.labels_T != IGNORE).sum()) for s in samples if s.labels_T is not None)
    segments = [int(np.prod(v.grid)) for s in samples for v in s.visuals]
    return FlopCount(model).of([len(s.tokens_T) for s in samples], segments, labelled).total


@contextmanager
def folder_of(config: Qwen2VLConfig) -> Iterator[Path]:
    """A folder with fresh weights, from which both sides start."""
    first = Qwen2VL(config)
    first.init_weights(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        save_model(first, f"{folder}/model")
        del first
        yield Path(folder) / "model"


def import_side(name: Name) -> None:
    """What a side's user has imported before there is a model: not counted as its memory."""
    if name == "transformers":
        import transformers  # noqa: F401


def open_side(name: Name, folder: Path, precision: torch.dtype) -> tuple[Step, nn.Module]:
    """A side's training step (forward, backward, fused AdamW) over float32 weights, under autocast for bfloat16."""
    if name == "ours":
        model = load_model(folder)
        assert isinstance(model, Qwen2VL)
        return _our_step(model, precision), model
    from transformers import Qwen2VLForConditionalGeneration

    theirs = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    return _their_step(theirs, load_ids(theirs), precision), theirs


def load_ids(theirs: nn.Module) -> TokenIds:
    """The ids that samples are made with, from transformers' configuration."""
    config = theirs.config
    return TokenIds(
        image_pad=config.image_token_id,
        video_pad=config.video_token_id,
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        bos=config.text_config.bos_token_id,
    )


def _our_step(model: Qwen2VL, precision: torch.dtype) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)
    vision = model.config.vision

    def step(samples: list[Sequence]) -> float:
        batch = pack(samples, vision.patch_values, vision.merge)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            losses, _ = token_losses(model, batch)
            loss = losses.mean()
        return _update(loss, optimizer)

    return step


def _their_step(model: nn.Module, ids: TokenIds, precision: torch.dtype) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)

    def step(samples: list[Sequence]) -> float:
        inputs = padded(samples, ids)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = model(**inputs).loss
        return _update(loss, optimizer)

    return step


def _update(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def padded(samples: list[Sequence], ids: TokenIds) -> dict[str, Tensor]:
    """The same samples as a padded batch; their labels are not shifted (transformers shifts them itself)."""
    longest = max(len(s.tokens_T) for s in samples)

    def stack(rows: list[np.ndarray], fill: int) -> Tensor:
        return torch.from_numpy(np.stack([np.pad(r, (0, longest - len(r)), constant_values=fill) for r in rows]))

    input_ids = stack([s.tokens_T for s in samples], ids.bos)
    unshifted = [np.concatenate(([IGNORE], s.labels_T[:-1])) for s in samples if s.labels_T is not None]
    return {
        "input_ids": input_ids,
        "attention_mask": stack([np.ones_like(s.tokens_T) for s in samples], 0),
        "labels": stack(unshifted, IGNORE),
        "mm_token_type_ids": (input_ids == ids.image_pad).int(),
        "pixel_values": torch.cat([v.patches_PC for s in samples for v in s.visuals]),
        "image_grid_thw": torch.tensor([v.grid for s in samples for v in s.visuals]),
    }
