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
from qvl.models.vlm import VisionLanguageModel, align_keys


@final
class Qwen2VL(VisionLanguageModel):
    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config, VisionTower(config.vision, config.text.width))

    def see(self, batch: Batch, attn: AttnContext) -> Tensor:
        return self.visual(batch.patches_PC, batch.patch_hw_2P, attn)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal for matrices, zero for biases, one for norms; the deviation follows the number of inputs.

        Word vectors 2 / sqrt(D), language model 1 / sqrt(3 inputs), vision tower 1 / sqrt(inputs). At the released
        widths this is near the published 0.02 (1 / sqrt(3 * 1536) = 0.015, 1 / sqrt(1280) = 0.028); at a tiny
        model's width 0.02 is several times too small, and learning to copy or to see takes several times longer.

        The keys of a group begin as its first head's queries: attention begins as similarity, and looking for the
        thing a question names need not be found out first.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                p.normal_(0.0, _init_std(name, p.shape[1]), generator=generator)
            else:
                p.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        align_keys(self.decoder)


def _init_std(name: str, inputs: int) -> float:
    if name.startswith("visual."):
        return inputs**-0.5
    return 2 * inputs**-0.5 if name.startswith("embed.") else (3 * inputs) ** -0.5
