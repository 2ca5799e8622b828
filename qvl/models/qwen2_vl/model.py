"""Qwen2-VL: a vision tower, a decoder, and the rows where one enters the other.

Knows: `Batch` in, logits out. Does not know: caches, ranks, files, what is frozen.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from qvl.batch import Batch
from qvl.layers.attention import AttnContext, PackedContext
from qvl.layers.decoder import Decoder, DecoderLayer
from qvl.models.fusion import place_vision
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.qwen2_vl.vit import VisionTower


@final
class Qwen2VL(nn.Module):
    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTower(config.vision, config.text.width)
        self.embed = nn.Embedding(config.vocab_size, config.text.width)
        self.decoder = Decoder(config.text)
        self.head = nn.Linear(config.text.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(self, batch: Batch, attn: AttnContext | None = None, rows: Tensor | None = None) -> Tensor:
        """Logits [T, V], or [len(rows), V] of the chosen rows only (training needs just the supervised ones).

        Four steps: see the pictures, embed the tokens, overwrite the placeholder rows, decode.
        Without `attn` every sequence of the batch stands alone (`PackedContext`).
        """
        attn = attn or PackedContext(batch)
        hidden_TD = self.hidden(batch, self.see(batch, attn), attn)
        return self.head(hidden_TD if rows is None else hidden_TD.index_select(0, rows))

    def see(self, batch: Batch, attn: AttnContext) -> Tensor:
        """Vision tokens [M, D] of all pictures and videos of the batch, in order."""
        return self.visual(batch.patches_PC, batch.patch_hw_2P, attn)

    def hidden(self, batch: Batch, vision_MD: Tensor, attn: AttnContext) -> Tensor:
        """Hidden states [T, D] after the final norm, given the vision tokens."""
        x_TD = place_vision(self.embed(batch.tokens_T), vision_MD, batch.vision_rows_M)
        return self.decoder(x_TD, batch.positions_RT, attn)

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
        for layer in self.decoder.layers:
            assert isinstance(layer, DecoderLayer)
            _align_keys(layer)


def _align_keys(layer: DecoderLayer) -> None:
    """Keys = the queries of the group's first head, both at 1.5 times the usual deviation."""
    heads, kv_heads, _ = layer.split
    q_NHD, k_KHD, _ = layer.qkv.weight.unflatten(0, (-1, layer.head_size)).split(layer.split)
    first_KHD = q_NHD[:: heads // kv_heads]
    first_KHD *= 1.5
    k_KHD.copy_(first_KHD)


def _init_std(name: str, inputs: int) -> float:
    if name.startswith("visual."):
        return inputs**-0.5
    return 2 * inputs**-0.5 if name.startswith("embed.") else (3 * inputs) ** -0.5
