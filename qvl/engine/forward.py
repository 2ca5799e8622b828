"""Forward passes of generation: prefill a pack of prompts, decode one token per row.

Knows: the model, the cache, the device, how long each pass took.
Does not know: requests, sampling, when a row ends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from qvl.batch import Batch
from qvl.engine.kv_cache import KVCache
from qvl.layers.attention import AttnContext


class Model(Protocol):
    """What a model has to offer to be generated from."""

    @property
    def config(self) -> Any:
        """With `text` (a `DecoderConfig`), `max_positions`, `vocab_size`."""

    @property
    def embed(self) -> nn.Embedding: ...

    @property
    def head(self) -> nn.Module: ...

    def see(self, batch: Batch, attn: AttnContext) -> Tensor: ...

    def hidden(self, batch: Batch, vision_MD: Tensor, attn: AttnContext) -> Tensor: ...


@final
class Forward:
    def __init__(self, model: Model) -> None:
        self._model = model
        self._axes = model.config.text.rope_axes

    def new_cache(self) -> KVCache:
        text, weight = self._model.config.text, self._model.embed.weight
        return KVCache(text.layers, text.kv_heads, text.head_size, weight.dtype, weight.device)

    def prefill(self, batch: Batch, cache: KVCache, rows: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """Runs prompts into their rows. Returns logits [S, V] after each prompt and milliseconds per phase."""
        model = self._model
        start = self._now()
        batch = batch.to(cache.device)
        attn = cache.context(batch, rows)
        vision_MD = model.see(batch, attn) if batch.grids else self._no_vision()
        seen = self._now()
        hidden_TD = model.hidden(batch, vision_MD, attn)
        logits_SV = model.head(hidden_TD.index_select(0, batch.last_rows))
        return logits_SV, {"vision": 1000 * (seen - start), "prefill": 1000 * (self._now() - seen)}

    def decode(self, tokens: Sequence[int], positions: Sequence[int], cache: KVCache) -> Tensor:
        """One new token for every live row. Returns logits [B, V].

        `positions`: of each token, the same on all rope axes (text after a picture counts on all of them).
        """
        device = cache.device
        none = torch.zeros(0, dtype=torch.long, device=device)
        batch = Batch(
            tokens_T=torch.tensor(tokens, dtype=torch.long, device=device),
            positions_RT=torch.tensor(positions, dtype=torch.long, device=device).expand(self._axes, -1),
            seq_lens=(1,) * len(tokens),
            patches_PC=torch.zeros(0, 0, device=device),
            patch_hw_2P=none.expand(2, 0),
            segment_lens=(),
            grids=(),
            vision_rows_M=none,
        )
        attn = cache.context(batch, range(cache.rows))
        return self._model.head(self._model.hidden(batch, self._no_vision(), attn))

    def _no_vision(self) -> Tensor:
        return self._model.embed.weight.new_zeros(0, self._model.config.text.width)

    def _now(self) -> float:
        if self._model.embed.weight.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
