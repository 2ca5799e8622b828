"""What every model of the package is: a vision part, a decoder, and the rows where one enters the other.

Knows: `Batch` in, logits out. Does not know: how pictures become tokens (each family's part), caches, ranks, files,
what is frozen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from torch import Tensor, nn

from qvl.batch import Batch
from qvl.layers.attention import AttnContext, PackedContext
from qvl.layers.decoder import Decoder, DecoderConfig
from qvl.models import fresh
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

    @abstractmethod
    def places(self, batch: Batch) -> Tensor:
        """int64 [2, M]: row and column of every vision token in its own picture (a still), from 0.

        Raises:
            ValueError: positions do not tell rows and columns.
        """

    def hidden(self, batch: Batch, vision_MD: Tensor, attn: AttnContext, rows_X: Tensor | None = None) -> Tensor:
        """Hidden states [T, D] after the final norm, or [X, D] of the chosen rows only, given the vision tokens."""
        x_TD = place_vision(self.embed(batch.tokens_T), vision_MD, batch.vision_rows_M)
        return self.decoder(x_TD, batch.positions_RT, attn, rows_X)

    def init_weights(self, seed: int) -> None:
        """Fresh weights, the same for the same seed: random numbers, with heads that begin useful (`models.fresh`)."""
        fresh.fill(self, seed)
        fresh.begin_with_likeness(self.decoder)
