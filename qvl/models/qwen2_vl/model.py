"""Qwen2-VL: pictures of any size become a quarter as many vision tokens as they have patches.

Knows: its vision tower, its initial weights. Does not know: caches, ranks, files, what is frozen.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from qvl.batch import Batch
from qvl.layers.attention import AttnContext
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.qwen2_vl.vit import VisionTower
from qvl.models.vlm import VisionLanguageModel

_TEXT_INIT_STD = 0.02


@final
class Qwen2VL(VisionLanguageModel):
    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config, VisionTower(config.vision, config.text.width))

    def see(self, batch: Batch, attn: AttnContext) -> Tensor:
        return self.visual(batch.patches_PC, batch.patch_hw_2P, attn)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal for matrices, zero for biases, one for norms.

        Language model: the published standard deviation 0.02. Vision tower: 1 / sqrt(inputs), which at its released
        width is about the same (1280: 0.028); at a tiny model's width 0.02 is several times too small there, and the
        tower needs thousands of pictures more to tell anything apart.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                std = p.shape[1] ** -0.5 if name.startswith("visual.") else _TEXT_INIT_STD
                p.normal_(0.0, std, generator=generator)
            else:
                p.fill_(1.0 if name.endswith("norm.weight") else 0.0)
