"""The only thing a model sees: a packed batch.

Knows: the axis legend of the whole repository and the invariants of a packed batch.
Does not know: tokenizers, pictures, files, models, devices other than by `to`.

Axis legend (a tensor's suffix lists its axes in memory order, `q_TNH`):

    T  packed tokens, all sequences end to end      D  text width
    P  patches, all pictures and frames end to end  E  vision width
    M  merged vision tokens (P / merge^2)           N  query heads      K  key/value heads
    G  pictures and videos                          H  head size        F  rotary frequencies
    S  sequences                                    V  vocabulary       R  rope axes (1 or 3)
    B  rows being decoded                           C  values in one patch row (3 * 2 * 14 * 14)
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Label of a position that is not scored (the value `cross_entropy` ignores by default)."""


@dataclass(frozen=True)
class Batch:
    """Sequences laid end to end; nothing in it is padding (but see `filled`).

    Two sequences, the second with one 56x56 picture (16 patches -> 4 vision tokens)::

        tokens_T      [ a  b  c | d  VS  *  *  *  *  VE  e ]      * = placeholder id
        seq_lens      ( 3,        8 )
        vision_rows_M [ 5, 6, 7, 8 ]                              rows of tokens_T that vision fills
        grids         ( (1, 4, 4), )                              temporal, height, width in patches
        segment_lens  ( 16, )                                     patches that attend to each other
        labels_T      next token of the *same* sequence, or IGNORE; `None` at inference
    """

    tokens_T: Tensor
    """int64 [T]. Rows named by `vision_rows_M` hold placeholder ids and are overwritten by vision tokens."""
    positions_RT: Tensor
    """int64 [R, T] rotary positions, from 0 per sequence: R = 1 (Qwen-VL, ablation) or 3 (time, row, column)."""
    seq_lens: tuple[int, ...]
    """Tokens of each sequence; their sum is T. Plain integers, so that no device has to be asked for them."""
    patches_PC: Tensor
    """float32 [P, C] normalised pixels, rows in the order the vision tower wants (Qwen2-VL: 2x2 merge order)."""
    patch_hw_2P: Tensor
    """int64 [2, P] row and column of each patch in its own grid, same order as `patches_PC`."""
    segment_lens: tuple[int, ...]
    """Patches of each vision attention segment (one temporal patch of one picture or video); their sum is P."""
    grids: tuple[tuple[int, int, int], ...]
    """(temporal, height, width) in patches of each picture or video, in reading order."""
    vision_rows_M: Tensor
    """int64 [M] increasing: the rows of `tokens_T` that the M vision tokens fill, in order."""
    parents: tuple[int, ...] = ()
    """Branches: sequence s goes on from the end of sequence `parents[s]`, sees all of it and none of its siblings;
    -1 = starts on its own. Empty = all start on their own. Several questions about one picture share its tokens so,
    and compute exactly what each would compute alone."""
    labels_T: Tensor | None = None
    """int64 [T]: the token that row t has to predict (already shifted within its sequence), or IGNORE."""
    names: tuple[str, ...] = ()
    """Optional name of each sequence, for messages about bad steps."""

    def __post_init__(self) -> None:
        tokens = self.tokens_T.shape[0]
        assert sum(self.seq_lens) == tokens, f"seq_lens sum to {sum(self.seq_lens)}, but there are {tokens} tokens"
        assert self.positions_RT.shape[1] == tokens, f"{self.positions_RT.shape[1]} positions for {tokens} tokens"
        assert all(-1 <= p < s and (p < 0 or self.parents[p] < 0) for s, p in enumerate(self.parents)), (
            f"parents {self.parents} must come before their branches and have no parent themselves"
        )
        assert len(self.parents) in (0, len(self.seq_lens)), (
            f"{len(self.parents)} parents, {len(self.seq_lens)} sequences"
        )
        patches = self.patches_PC.shape[0]
        assert sum(self.segment_lens) == patches, (
            f"segment_lens sum to {sum(self.segment_lens)}, but there are {patches} patches"
        )
        assert self.patch_hw_2P.shape[1] == patches, (
            f"{self.patch_hw_2P.shape[1]} patch positions for {patches} patches"
        )

    @property
    def seq_offsets(self) -> tuple[int, ...]:
        """S + 1 offsets into T: sequence s is rows `seq_offsets[s]:seq_offsets[s + 1]`."""
        return (0, *accumulate(self.seq_lens))

    @property
    def last_rows(self) -> Tensor:
        """int64 [S]: the row of each sequence's last token (where the next token is predicted)."""
        return torch.tensor(self.seq_offsets[1:], device=self.tokens_T.device) - 1

    @property
    def target_count(self) -> int:
        """Number of supervised positions."""
        return 0 if self.labels_T is None else int((self.labels_T != IGNORE).sum())

    def filled(self, multiple: int) -> Batch:
        """The same with T rounded up, by one more sequence: nothing is learned from it, no other sequence sees it."""
        missing = -self.tokens_T.shape[0] % multiple
        if not missing:
            return self
        labels_T = self.labels_T
        return replace(
            self,
            tokens_T=F.pad(self.tokens_T, (0, missing)),
            positions_RT=F.pad(self.positions_RT, (0, missing)),
            seq_lens=(*self.seq_lens, missing),
            parents=(*self.parents, -1) if self.parents else (),
            labels_T=None if labels_T is None else F.pad(labels_T, (0, missing), value=IGNORE),
            names=(*self.names, "") if self.names else (),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Moves every tensor; `dtype` casts the patches only (the one floating tensor)."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        if dtype is not None:
            moved["patches_PC"] = moved["patches_PC"].to(dtype)
        return replace(self, **moved)
