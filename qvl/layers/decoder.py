"""The causal decoder both language models are made of.

Knows: pre-norm blocks, grouped-query attention with rotary positions, gated feed-forward.
Does not know: vocabulary, vision, how attention is carried out (that is the `AttnContext`'s part).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from qvl.layers.attention import AttnContext
from qvl.layers.linear import FusedLinear
from qvl.layers.mlp import SwiGLU
from qvl.layers.norm import RMSNorm
from qvl.layers.rope import cos_sin, logn_scale, ntk_angles, rotate, text_angles

Turn = tuple[Tensor, Tensor]
"""Cosine and sine of each row, [T, 1, H / 2]."""


@dataclass(frozen=True)
class BeyondTraining:
    """How Qwen-7B reads more tokens than it was trained on. Only in evaluation; up to `trained_len` nothing changes."""

    trained_len: int = 2048
    dynamic_ntk: bool = True
    """Rotary angles turn slower by the length of the sequence's first pass (`ntk_angles`)."""
    logn: bool = True
    """Queries grow with their position (`logn_scale`)."""


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
    rope_float32: bool = False
    """Rotate in float32 whatever the model's dtype (Qwen-7B); else in the model's dtype (Qwen2)."""
    beyond: BeyondTraining | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        if any(count < 0 for count in self.rope_sections):
            raise ValueError(f"rope_sections count frequencies and cannot be negative, got {self.rope_sections}")
        if self.rope_sections and 2 * sum(self.rope_sections) != self.head_size:
            raise ValueError(
                f"rope_sections {self.rope_sections} sum to {sum(self.rope_sections)}, "
                f"but a head of size {self.head_size} has {self.head_size // 2} frequencies"
            )
        if self.beyond is not None and self.rope_sections:
            raise ValueError(f"dynamic NTK and logn are for one rope axis, not for sections {self.rope_sections}")

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

    def forward(
        self, x_TD: Tensor, turn_q: Turn, turn_k: Turn, attn: AttnContext, rows_X: Tensor | None = None
    ) -> Tensor:
        """`rows_X`: rows that are wanted, [X, D] out; every row still is a key and a value."""
        heads = self.qkv(self.attn_norm(x_TD)).unflatten(-1, (-1, self.head_size))
        q_TNH, k_TKH, v_TKH = heads.split(self.split, dim=1)
        y_TNH = attn.text(self.index, rotate(q_TNH, *turn_q), rotate(k_TKH, *turn_k), v_TKH)
        x_TD = chosen(x_TD, rows_X) + self.out(chosen(y_TNH, rows_X).flatten(1))
        return x_TD + self.mlp(self.mlp_norm(x_TD))


def chosen(x_T: Tensor, rows_X: Tensor | None) -> Tensor:
    """Rows of a tensor; None = all of them."""
    return x_T if rows_X is None else x_T.index_select(0, rows_X)


@final
class Decoder(nn.Module):
    """`layers` blocks and a final norm: embeddings [T, D] in, hidden states [T, D] out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x_TD: Tensor, positions_RT: Tensor, attn: AttnContext, rows_X: Tensor | None = None) -> Tensor:
        """`rows_X`: rows whose hidden states are wanted, [X, D] out. In the last layer nothing else is needed of the
        others than their keys and values."""
        turn_q, turn_k = self._turns(positions_RT, torch.float32 if self.config.rope_float32 else x_TD.dtype, attn)
        for layer in self.layers:
            wanted = (rows_X,) if rows_X is not None and layer is self.layers[-1] else ()
            x_TD = layer(x_TD, turn_q, turn_k, attn, *wanted)
        return self.norm(x_TD)

    def _turns(self, positions_RT: Tensor, dtype: torch.dtype, attn: AttnContext) -> tuple[Turn, Turn]:
        """How queries and keys are rotated. A query's length (logn) is part of its rotation."""
        c = self.config
        if c.beyond is None or self.training:
            turn = cos_sin(text_angles(positions_RT, c.head_size, c.rope_theta, c.rope_sections), dtype)
            return turn, turn
        if c.beyond.dynamic_ntk:
            spans = tuple((span.rows, span.first) for span in attn.spans)
            angles_TF = ntk_angles(positions_RT, c.head_size, c.rope_theta, spans, c.beyond.trained_len)
        else:
            angles_TF = text_angles(positions_RT, c.head_size, c.rope_theta, ())
        cos, sin = cos_sin(angles_TF, dtype)
        if not c.beyond.logn:
            return (cos, sin), (cos, sin)
        scale_T11 = logn_scale(positions_RT[0], c.beyond.trained_len).to(dtype)[:, None, None]
        return (cos * scale_T11, sin * scale_T11), (cos, sin)
