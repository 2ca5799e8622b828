"""A step's pieces -> one packed batch -> the model -> logits.

Knows: the model, the page store, how long each phase took. Does not know: why these pieces, sampling, when a request
ends. Holds no request: what a piece needs is in its `Answer`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor, nn

from qvl.batch import Batch
from qvl.engine.native.pages import CellStore
from qvl.engine.paged import PagedStore, Row
from qvl.engine.seeing import Seeing, Work, looks_in
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

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def see(self, batch: Batch, attn: AttnContext) -> Tensor: ...

    def hidden(self, batch: Batch, vision_MD: Tensor, attn: AttnContext, rows_X: Tensor | None = None) -> Tensor: ...


@final
class Runner:
    def __init__(self, model: Model, store: PagedStore | CellStore, seeing: Seeing) -> None:
        self._model = model
        self._store = store
        self._seeing = seeing

    def run(self, work: Sequence[Work]) -> tuple[list[int], Tensor]:
        """Computes the pieces. Returns which of them have a next token to be chosen, and its logits [B, V]."""
        rows = [_row(answer_piece) for answer_piece in work]
        order = sorted(range(len(work)), key=lambda i: (rows[i].kind, -rows[i].held))
        work = [work[i] for i in order]
        start = self._now()
        seen = self._seeing.provide(work)
        between = self._now()
        batch = self._batch(work).to(self._store.device)
        attn = self._store.context(batch, [rows[i] for i in order])
        last = [i for i, (_, piece) in enumerate(work) if piece.last]
        last_B = batch.last_rows[torch.tensor(last, dtype=torch.long, device=self._store.device)]
        logits_BV = self._model.head(self._model.hidden(batch, self._vectors(work), attn, last_B))
        end = self._now()
        for answer, piece in work:
            if answer in seen:
                answer.ms["vision"] += 1000 * (between - start)
            if piece.begin < piece.track.prompt:
                answer.ms["prefill"] += 1000 * (end - between)
        return [order[i] for i in last], logits_BV

    def _vectors(self, work: Sequence[Work]) -> Tensor:
        """Vision vectors [M, D] of the pieces' rows, in order."""
        parts = [
            answer.vectors[look.digest][begin:end] for answer, piece in work for look, begin, end in looks_in(piece)
        ]
        return torch.cat(parts) if parts else self._model.embed.weight.new_zeros(0, self._model.config.text.width)

    def _batch(self, work: Sequence[Work]) -> Batch:
        parts = [answer.content.rows(piece.begin, piece.end) for answer, piece in work]
        vision_rows: list[int] = []
        at = 0
        for _, piece in work:
            for look, begin, end in looks_in(piece):
                first = at + look.row - piece.begin
                vision_rows += range(first + begin, first + end)
            at += piece.end - piece.begin
        none = torch.zeros(0, dtype=torch.long)
        return Batch(
            tokens_T=torch.from_numpy(np.concatenate([tokens_T for tokens_T, _ in parts])),
            positions_RT=torch.from_numpy(np.concatenate([positions_RT for _, positions_RT in parts], axis=1)),
            seq_lens=tuple(piece.end - piece.begin for _, piece in work),
            patches_PC=torch.zeros(0, 0),
            patch_hw_2P=none.expand(2, 0),
            segment_lens=(),
            grids=(),
            vision_rows_M=torch.tensor(vision_rows, dtype=torch.long),
        )

    def _now(self) -> float:
        if self._store.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _row(work: Work) -> Row:
    _, piece = work
    track = piece.track
    pages = np.array(track.pages, dtype=np.int64)  # copies a block of memory, not object by object
    return Row(pages, piece.begin, piece.end - piece.begin, track.prompt)
