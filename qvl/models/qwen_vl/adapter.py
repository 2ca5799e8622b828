"""Qwen-VL's position-aware adapter: however many patches a picture has, it becomes the same number of tokens.

Knows: one cross-attention of learned queries over each picture's patches (paper section 2.1; `Resampler`).
Does not know: pixels, the vision tower's insides, text.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.layers.cross import attend_shared
from qvl.layers.linear import FusedLinear
from qvl.layers.places import PatchPlaces, sine_table
from qvl.models.qwen_vl.config import AdapterConfig

_NORM_EPS = 1e-6


@final
class Adapter(nn.Module):
    """Patches [P, E] -> vision tokens [pictures * Q, D]. Positions are in queries and keys, not in values."""

    def __init__(self, config: AdapterConfig, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Parameter(torch.zeros(config.queries, text_width))
        self.query_norm = nn.LayerNorm(text_width, eps=_NORM_EPS)
        # The reference has no projection where none is needed.
        same = vision_width == text_width
        self.kv_proj = nn.Identity() if same else nn.Linear(vision_width, text_width, bias=False)
        self.kv_norm = nn.LayerNorm(text_width, eps=_NORM_EPS)
        self.qkv = FusedLinear(text_width, (text_width,) * 3, bias=True)
        self.out = nn.Linear(text_width, text_width)
        self.post_norm = nn.LayerNorm(text_width, eps=_NORM_EPS)
        self.proj = nn.Linear(text_width, text_width, bias=False)
        # Not learned, but stored in checkpoints (rounded to their dtype) and read from there.
        self.register_buffer("places_QD", sine_table(config.side, text_width))

    def forward(self, x_PE: Tensor, places: PatchPlaces) -> Tensor:
        wq, wk, wv = self.qkv.weight.chunk(3)
        bq, bk, bv = self.qkv.bias.chunk(3)
        seen_PD = self.kv_norm(self.kv_proj(x_PE))
        q_QD = F.linear(self.query_norm(self.query) + self.places_QD, wq, bq)
        k_PD = F.linear(seen_PD + places.look_up(self.places_QD), wk, bk)
        v_PD = F.linear(seen_PD, wv, bv)
        q_QNH, k_PNH, v_PNH = (y.unflatten(-1, (self.heads, -1)) for y in (q_QD, k_PD, v_PD))
        y_MD = attend_shared(q_QNH, k_PNH, v_PNH, places.lens).flatten(1)
        return self.proj(self.post_norm(self.out(y_MD)))
