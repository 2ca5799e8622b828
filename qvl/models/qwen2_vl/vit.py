"""Qwen2-VL's vision tower: any number of patches of any grids, packed, in; merged vision tokens out.

Knows: patch rows in 2x2 merge order, their row and column, attention confined to one temporal patch.
Does not know: pictures, resizing, text.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.layers.attention import AttnContext
from qvl.layers.linear import FusedLinear
from qvl.layers.rope import cos_sin, rotate, vision_angles
from qvl.models.qwen2_vl.config import VisionConfig

_NORM_EPS = 1e-6


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): the activation inside the blocks (the merger uses exact GELU)."""
    return x * torch.sigmoid(1.702 * x)


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

    def forward(self, x_PE: Tensor, cos: Tensor, sin: Tensor, attn: AttnContext) -> Tensor:
        q_PNH, k_PNH, v_PNH = self.qkv(self.attn_norm(x_PE)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        y_PNH = attn.vision(rotate(q_PNH, cos, sin), rotate(k_PNH, cos, sin), v_PNH)
        x_PE = x_PE + self.out(y_PNH.flatten(1))
        return x_PE + self.fc2(quick_gelu(self.fc1(self.mlp_norm(x_PE))))


@final
class Merger(nn.Module):
    """Four neighbouring patches (consecutive rows, thanks to merge order) become one token of the text width."""

    def __init__(self, config: VisionConfig, text_width: int) -> None:
        super().__init__()
        self.group = config.merge**2
        hidden = config.width * self.group
        self.norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.fc1 = nn.Linear(hidden, hidden)
        self.fc2 = nn.Linear(hidden, text_width)

    def forward(self, x_PE: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x_PE).view(-1, self.group * x_PE.shape[-1]))))


@final
class VisionTower(nn.Module):
    """`patches_PC`, `patch_hw_2P` -> vision tokens [M, D], M = P / merge^2."""

    def __init__(self, config: VisionConfig, text_width: int) -> None:
        super().__init__()
        self.config = config
        # A Conv3d whose kernel equals its stride is a linear map of the flattened patch.
        self.patch_embed = nn.Linear(config.patch_values, config.width, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))
        self.merger = Merger(config, text_width)

    def forward(self, patches_PC: Tensor, patch_hw_2P: Tensor, attn: AttnContext) -> Tensor:
        c = self.config
        x_PE = self.patch_embed(patches_PC.to(self.patch_embed.weight.dtype))
        # The reference rotates vision queries and keys in float32 whatever the model's dtype.
        cos, sin = cos_sin(vision_angles(patch_hw_2P, c.width // c.heads, c.rope_theta), torch.float32)
        for block in self.blocks:
            x_PE = block(x_PE, cos, sin, attn)
        return self.merger(x_PE)
