"""The gated feed-forward of a Qwen decoder layer."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from qvl.layers.linear import FusedLinear


@final
class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). Gate and up are one matrix, gate rows first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = FusedLinear(width, (hidden, hidden), bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_TD).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
