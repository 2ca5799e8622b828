"""RMSNorm as Qwen writes it: normalise in float32, cast back, then multiply by the weight."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@final
class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        if x_TD.dtype == torch.float32:
            return F.rms_norm(x_TD, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x_TD.float(), self.weight.shape, None, self.eps).to(x_TD.dtype)
