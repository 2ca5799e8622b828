"""Qwen2-VL: pictures of any size become a quarter as many vision tokens as they have patches.

Knows: its vision tower, what its fresh weights begin with. Does not know: caches, ranks, files, what is frozen.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from qvl.batch import Batch
from qvl.layers.attention import AttnContext
from qvl.models import fresh
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.qwen2_vl.vit import VisionTower
from qvl.models.vlm import VisionLanguageModel


@final
class Qwen2VL(VisionLanguageModel):
    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config, VisionTower(config.vision, config.text.width))

    def see(self, batch: Batch, attn: AttnContext) -> Tensor:
        return self.visual(batch.patches_PC, batch.patch_hw_2P, batch.grids, attn)

    def places(self, batch: Batch) -> Tensor:
        positions_RM = batch.positions_RT[:, batch.vision_rows_M]
        if positions_RM.shape[0] == 1:
            raise ValueError("a model with one rope axis knows no rows and columns: leave `place` out of the recipe")
        return positions_RM[1:] - positions_RM[:1]  # the time axis holds where the picture begins

    def init_weights(self, seed: int) -> None:
        super().init_weights(seed)
        ids, words_VD = self.config.ids, self.embed.weight
        if max(ids.vision_start, ids.image_pad) < self.config.vocab_size:
            fresh.begin_with_sight(self.decoder, words_VD[ids.image_pad])
            if len(self.config.text.rope_sections) == 3:
                fresh.begin_with_places(self.decoder, words_VD[ids.vision_start], words_VD[ids.image_pad])
