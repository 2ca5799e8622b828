"""Pictures of a step -> vision vectors: kept ones are found again, new ones are seen together.

Knows: which looks a piece needs, the vision tower, the vision cache. Does not know: text, keys and values, scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from qvl.batch import Batch
from qvl.engine.answer import Answer, Sight
from qvl.engine.native.pages import seeing_context
from qvl.engine.scheduler import Look, Piece
from qvl.engine.vision_cache import VisionCache
from qvl.layers.attention import AttnContext, PackedContext
from qvl.media.patches import patch_hw

Work = tuple[Answer, Piece]


def looks_in(piece: Piece) -> Iterator[tuple[Look, int, int]]:
    """The looks whose vision tokens lie in a piece, each with the first and the end of its tokens that do."""
    if piece.begin >= piece.track.prompt:
        return
    for look in piece.track.looks:
        begin, end = max(piece.begin - look.row, 0), min(piece.end - look.row, look.rows)
        if begin < end:
            yield look, begin, end


@final
class Seeing:
    def __init__(
        self,
        see: Callable[[Batch, AttnContext], Tensor],
        cache: VisionCache,
        *,
        rope_axes: int,
        merge: int,
        device: torch.device,
        kernels: bool = False,
    ) -> None:
        """`merge`: patches per side of a vision token, which decides the order of a picture's patches; `kernels`: the
        tower is in bfloat16, for which there may be compiled attention."""
        self._see = see
        self._cache = cache
        self._axes = rope_axes
        self._merge = merge
        self._device = device
        self._kernels = kernels

    def provide(self, work: Sequence[Work]) -> set[Answer]:
        """Gives every answer the vectors that its piece needs. Returns those that something was seen for."""
        needed: dict[bytes, list[Answer]] = {}
        rows: list[int] = []
        for answer, piece in work:
            for look, _, _ in looks_in(piece):
                if look.digest in answer.vectors:
                    continue
                kept_MD = self._cache.get(look.digest)
                if kept_MD is not None:
                    answer.hold(look.digest, kept_MD)
                    continue
                if look.digest not in needed:
                    rows.append(look.rows)
                needed.setdefault(look.digest, []).append(answer)
        if not needed:
            return set()
        first = {answers[0] for answers in needed.values()}
        vision_MD = self._look_at([answers[0].sights[digest] for digest, answers in needed.items()])
        for (digest, answers), part_MD in zip(needed.items(), vision_MD.split(rows), strict=True):
            vectors_MD = part_MD.clone()  # so that nothing larger lives on with it
            self._cache.put(digest, vectors_MD)
            answers[0].saw.add(answers[0].sights[digest].visual)
            for answer in answers:
                answer.hold(digest, vectors_MD)
        return first

    def _look_at(self, sights: Sequence[Sight]) -> Tensor:
        none = torch.zeros(0, dtype=torch.long)
        batch = Batch(
            tokens_T=none,
            positions_RT=none.expand(self._axes, 0),
            seq_lens=(),
            patches_PC=torch.cat([sight.patches_PC for sight in sights]),
            patch_hw_2P=torch.cat([patch_hw((1, *sight.hw), self._merge) for sight in sights], dim=1),
            segment_lens=tuple(len(sight.patches_PC) for sight in sights),
            grids=tuple((1, *sight.hw) for sight in sights),
            vision_rows_M=none,
        ).to(self._device)
        return self._see(batch, seeing_context(batch) if self._kernels else PackedContext(batch))
