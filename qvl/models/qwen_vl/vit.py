"""Qwen-VL's vision tower: pictures of any grids, packed, in; a fixed number of vision tokens per picture out.

Knows: patch rows, learned absolute positions, attention confined to one picture, the adapter at the end.
Does not know: files, resizing of pixels, text.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.layers.attention import AttnContext
from qvl.layers.linear import FusedLinear
from qvl.layers.places import Grids, PatchPlaces
from qvl.models.qwen_vl.adapter import Adapter
from qvl.models.qwen_vl.config import AdapterConfig, VisionConfig

_NORM_EPS = 1e-6


@final
class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attn_norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.qkv = FusedLinear(config.width, (config.width,) * 3, bias=True)
        self.out = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.fc1 = nn.Linear(config.width, config.mlp_hidden)
        self.fc2 = nn.Linear(config.mlp_hidden, config.width)

    def forward(self, x_PE: Tensor, attn: AttnContext) -> Tensor:
        q_PNH, k_PNH, v_PNH = self.qkv(self.attn_norm(x_PE)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        x_PE = x_PE + self.out(attn.vision(q_PNH, k_PNH, v_PNH).flatten(1))
        return x_PE + self.fc2(F.gelu(self.fc1(self.mlp_norm(x_PE))))


@final
class VisionTower(nn.Module):
    """`patches_PC`, `patch_hw_2P`, `grids` of a batch -> vision tokens [M, D], M = pictures * Q."""

    def __init__(self, config: VisionConfig, adapter: AdapterConfig, text_width: int) -> None:
        super().__init__()
        # A convolution whose kernel equals its stride is a linear map of the flattened patch.
        self.patch_embed = nn.Linear(config.patch_values, config.width, bias=False)
        self.position_embed = nn.Parameter(torch.zeros(config.table_side**2, config.width))
        self.pre_norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))
        self.adapter = Adapter(adapter, config.width, text_width)

    def forward(self, patches_PC: Tensor, patch_hw_2P: Tensor, grids: Grids, attn: AttnContext) -> Tensor:
        places = PatchPlaces.of(grids, patch_hw_2P)
        x_PE = self.patch_embed(patches_PC.to(self.patch_embed.weight.dtype))
        x_PE = self.pre_norm(x_PE + places.look_up(self.position_embed))
        for block in self.blocks:
            x_PE = block(x_PE, attn)
        return self.adapter(x_PE, places)
