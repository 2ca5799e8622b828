"""Qwen-VL: every picture becomes the same number of vision tokens, and positions are plain indices.

Knows: its vision tower. Does not know: caches, ranks, files, what is frozen.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from qvl.batch import Batch
from qvl.layers.attention import AttnContext
from qvl.models import fresh
from qvl.models.qwen_vl.config import QwenVLConfig
from qvl.models.qwen_vl.vit import VisionTower
from qvl.models.vlm import VisionLanguageModel


@final
class QwenVL(VisionLanguageModel):
    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config, VisionTower(config.vision, config.adapter, config.text.width))

    def see(self, batch: Batch, attn: AttnContext) -> Tensor:
        return self.visual(batch.patches_PC, batch.patch_hw_2P, batch.grids, attn)

    def places(self, batch: Batch) -> Tensor:
        adapter = self.config.adapter
        number_M = torch.arange(len(batch.vision_rows_M), device=batch.vision_rows_M.device) % adapter.queries
        return torch.stack((number_M // adapter.side, number_M % adapter.side))

    def init_weights(self, seed: int) -> None:
        super().init_weights(seed)
        mark = self.config.ids.image_pad
        if mark < self.config.vocab_size:
            fresh.begin_with_sight(self.decoder, self.embed.weight[mark])

    def hidden(self, batch: Batch, vision_MD: Tensor, attn: AttnContext, rows_X: Tensor | None = None) -> Tensor:
        """As the base class.

        Raises:
            ValueError: in evaluation, a branch so long that its length changes the angles of what it shares.
        """
        beyond = self.config.text.beyond
        if beyond is not None and batch.parents and not self.training:
            longest = max(span.first for span in attn.spans)
            if longest > beyond.trained_len:
                raise ValueError(
                    f"a branch of {longest} tokens, its beginning included, cannot be evaluated as a branch: beyond "
                    f"{beyond.trained_len} tokens the angles of a sequence depend on its length, so nothing can be "
                    "shared; give each conversation as a sequence of its own"
                )
        return super().hidden(batch, vision_MD, attn, rows_X)
