"""The causal decoder both language models are made of.

Knows: pre-norm blocks, grouped-query attention with rotary positions, gated feed-forward.
Does not know: vocabulary, vision, how attention is carried out (that is the `AttnContext`'s part).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from qvl.layers.attention import AttnContext
from qvl.layers.linear import FusedLinear
from qvl.layers.mlp import SwiGLU
from qvl.layers.norm import RMSNorm
from qvl.layers.rope import cos_sin, rotate, text_angles


@dataclass(frozen=True)
class DecoderConfig:
    width: int
    """D: size of the residual stream."""
    layers: int
    heads: int
    """N: query heads."""
    kv_heads: int
    """K: key/value heads; N is a multiple of K."""
    head_size: int
    """H."""
    mlp_hidden: int
    """Width of each SwiGLU half."""
    norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_sections: tuple[int, ...] = ()
    """Frequencies per rope axis (time, row, column); empty = one axis."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        if self.rope_sections and 2 * sum(self.rope_sections) != self.head_size:
            raise ValueError(
                f"rope_sections {self.rope_sections} sum to {sum(self.rope_sections)}, "
                f"but a head of size {self.head_size} has {self.head_size // 2} frequencies"
            )

    @property
    def rope_axes(self) -> int:
        """R: rope axes that positions must have."""
        return max(1, len(self.rope_sections))


@final
class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.split = (config.heads, config.kv_heads, config.kv_heads)
        self.head_size = config.head_size
        self.attn_norm = RMSNorm(config.width, config.norm_eps)
        self.qkv = FusedLinear(config.width, tuple(n * config.head_size for n in self.split), bias=True)
        self.out = nn.Linear(config.heads * config.head_size, config.width, bias=False)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config.width, config.mlp_hidden)

    def forward(self, x_TD: Tensor, cos: Tensor, sin: Tensor, attn: AttnContext) -> Tensor:
        heads = self.qkv(self.attn_norm(x_TD)).unflatten(-1, (-1, self.head_size))
        q_TNH, k_TKH, v_TKH = heads.split(self.split, dim=1)
        y_TNH = attn.text(self.index, rotate(q_TNH, cos, sin), rotate(k_TKH, cos, sin), v_TKH)
        x_TD = x_TD + self.out(y_TNH.flatten(1))
        return x_TD + self.mlp(self.mlp_norm(x_TD))


@final
class Decoder(nn.Module):
    """`layers` blocks and a final norm: embeddings [T, D] in, hidden states [T, D] out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x_TD: Tensor, positions_RT: Tensor, attn: AttnContext) -> Tensor:
        c = self.config
        cos, sin = cos_sin(text_angles(positions_RT, c.head_size, c.rope_theta, c.rope_sections), x_TD.dtype)
        for layer in self.layers:
            x_TD = layer(x_TD, cos, sin, attn)
        return self.norm(x_TD)
