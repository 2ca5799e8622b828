"""What every model of the package is: a vision part, a decoder, and the rows where one enters the other.

Knows: `Batch` in, logits out. Does not know: how pictures become tokens (each family's part), caches, ranks, files,
what is frozen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qvl.batch import Batch
from qvl.layers.attention import AttnContext, PackedContext
from qvl.layers.decoder import Decoder, DecoderConfig, DecoderLayer
from qvl.models.fusion import place_vision


class VLMConfig(Protocol):
    """What is known of any family's configuration."""

    @property
    def text(self) -> DecoderConfig: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def tie_embeddings(self) -> bool: ...

    @property
    def max_positions(self) -> int: ...


class VisionLanguageModel(nn.Module, ABC):
    """A family implements `see` and adds its `visual` tower.

    Parameters of the tower are named `visual.*`: its blocks `visual.blocks.N.*`, what carries its output over into the
    text width `visual.merger.*` or `visual.adapter.*`.
    """

    config: Any
    """The family's own frozen configuration (a `VLMConfig`)."""

    def __init__(self, config: VLMConfig, visual: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.visual = visual
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

    @abstractmethod
    def see(self, batch: Batch, attn: AttnContext) -> Tensor:
        """Vision tokens [M, D] of all pictures and videos of the batch, in order."""

    def hidden(self, batch: Batch, vision_MD: Tensor, attn: AttnContext) -> Tensor:
        """Hidden states [T, D] after the final norm, given the vision tokens."""
        x_TD = place_vision(self.embed(batch.tokens_T), vision_MD, batch.vision_rows_M)
        return self.decoder(x_TD, batch.positions_RT, attn)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal for matrices, zero for biases, one for norms; the deviation follows the number of inputs.

        Word vectors 2 / sqrt(D), language model 1 / sqrt(3 inputs), everything that sees 1 / sqrt(inputs). At the
        released widths this is near the published 0.02 (1 / sqrt(3 * 1536) = 0.015, 1 / sqrt(1280) = 0.028); at a
        tiny model's width 0.02 is several times too small, and learning to copy or to see takes several times longer.

        The keys of a group begin as its first head's queries: attention begins as similarity, and looking for the
        thing a question names need not be found out first.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                p.normal_(0.0, _init_std(name, p.shape[1]), generator=generator)
            else:
                p.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        _align_keys(self.decoder)


def _init_std(name: str, inputs: int) -> float:
    if name.startswith("visual."):
        return inputs**-0.5
    return 2 * inputs**-0.5 if name.startswith("embed.") else (3 * inputs) ** -0.5


def _align_keys(decoder: Decoder) -> None:
    """Fresh weights: the keys of a group become its first head's queries, both at 1.5 times their deviation.

    Attention begins as similarity then, and looking for the thing a question names need not be found out first.
    """
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        heads, kv_heads, _ = layer.split
        q_NHD, k_KHD, _ = layer.qkv.weight.unflatten(0, (-1, layer.head_size)).split(layer.split)
        first_KHD = q_NHD[:: heads // kv_heads]
        first_KHD *= 1.5
        k_KHD.copy_(first_KHD)
