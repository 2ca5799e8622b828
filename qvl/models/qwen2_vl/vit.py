"""Qwen2-VL's vision tower: any number of patches of any grids, packed, in; merged vision tokens out.

Knows: patch rows in 2x2 merge order, their row and column, attention confined to one temporal patch; what other ViTs,
from which a tower can begin, do differently.
Does not know: pictures, resizing, text.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.layers.attention import AttnContext
from qvl.layers.linear import FusedLinear
from qvl.layers.places import Grids, PatchPlaces
from qvl.layers.rope import cos_sin, rotate, vision_angles
from qvl.models.qwen2_vl.config import VisionConfig

_NORM_EPS = 1e-6
Turn = tuple[Tensor, Tensor]
"""Cosine and sine of each patch, [P, 1, H / 2]."""


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): the activation inside the blocks (the merger uses exact GELU)."""
    return x * torch.sigmoid(1.702 * x)


@final
class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.activation = quick_gelu if config.activation == "quick_gelu" else F.gelu
        self.attn_norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.qkv = FusedLinear(config.width, (config.width,) * 3, bias=True)
        self.out = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.fc1 = nn.Linear(config.width, config.mlp_hidden)
        self.fc2 = nn.Linear(config.mlp_hidden, config.width)

    def forward(self, x_PE: Tensor, turn: Turn | None, attn: AttnContext) -> Tensor:
        q_PNH, k_PNH, v_PNH = self.qkv(self.attn_norm(x_PE)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        if turn is not None:
            q_PNH, k_PNH = rotate(q_PNH, *turn), rotate(k_PNH, *turn)
        x_PE = x_PE + self.out(attn.vision(q_PNH, k_PNH, v_PNH).flatten(1))
        return x_PE + self.fc2(self.activation(self.fc1(self.mlp_norm(x_PE))))


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
    """`patches_PC`, `patch_hw_2P`, `grids` of a batch -> vision tokens [M, D], M = P / merge^2."""

    def __init__(self, config: VisionConfig, text_width: int) -> None:
        super().__init__()
        self.config = config
        # A Conv3d whose kernel equals its stride is a linear map of the flattened patch.
        self.patch_embed = nn.Linear(config.patch_values, config.width, bias=False)
        if config.table_side:
            self.position_embed = nn.Parameter(torch.zeros(config.table_side**2, config.width))
        if config.pre_norm:
            self.pre_norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))
        self.merger = Merger(config, text_width)

    def forward(self, patches_PC: Tensor, patch_hw_2P: Tensor, grids: Grids, attn: AttnContext) -> Tensor:
        c = self.config
        x_PE = self.patch_embed(patches_PC.to(self.patch_embed.weight.dtype))
        if c.table_side:
            x_PE = x_PE + PatchPlaces.of(grids, patch_hw_2P).look_up(self.position_embed)
        if c.pre_norm:
            x_PE = self.pre_norm(x_PE)
        turn = None
        if c.rope:
            # The reference rotates vision queries and keys in float32 whatever the model's dtype.
            turn = cos_sin(vision_angles(patch_hw_2P, c.width // c.heads, c.rope_theta), torch.float32)
        for block in self.blocks:
            x_PE = block(x_PE, turn, attn)
        return self.merger(x_PE)
