"""One prepared sequence, and how sequences are laid end to end.

Knows: the packed layout of `Batch`. Does not know: templates, files, models.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qvl.batch import IGNORE, Batch
from qvl.media.load import Visual
from qvl.media.patches import patch_hw, segment_lens


@dataclass(frozen=True)
class Sequence:
    """A conversation made ready: ids, positions, and its pictures as patches."""

    tokens_T: NDArray[np.int64]
    positions_RT: NDArray[np.int64]
    vision_rows_M: NDArray[np.int64]
    """Rows of `tokens_T` that vision tokens fill, counted from this sequence's start."""
    visuals: tuple[Visual, ...]
    """Pictures and videos in reading order."""
    next_position: int
    """Rotary position (all axes) of the first token generated after this sequence."""
    labels_T: NDArray[np.int64] | None = None
    turns_T: NDArray[np.int64] | None = None
    """Of each label: which answer of the conversation it belongs to or leads up to (without a label: anything)."""
    branch: bool = False
    """Goes on from the last sequence before it that is not a branch, and sees all of that one (`Batch.parents`)."""
    name: str = ""

    def after(self, beginning: Sequence, turn: int = 0) -> Sequence:
        """This sequence as a branch of `beginning`, whose answer is number `turn`: its positions go on from there."""
        at = beginning.next_position
        turns_T = None if self.turns_T is None else np.full_like(self.turns_T, turn)
        moved = replace(self, positions_RT=self.positions_RT + at, next_position=self.next_position + at)
        return replace(moved, turns_T=turns_T, branch=True)

    @property
    def patch_count(self) -> int:
        return sum(int(np.prod(v.grid)) for v in self.visuals)


def next_token_labels(tokens_T: NDArray[np.int64], supervised_T: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Row t gets token t + 1 if that token is supervised, else IGNORE. `a B C` (capitals supervised) -> `B C -`."""
    labels_T = np.full_like(tokens_T, IGNORE)
    labels_T[:-1][supervised_T[1:]] = tokens_T[1:][supervised_T[1:]]
    return labels_T


def pack(sequences: Seq[Sequence], patch_values: int, merge: int) -> Batch:
    """Lays sequences end to end. Labels are kept if every sequence has them.

    Raises:
        ValueError: no sequences, or some with and some without labels.
    """
    if not sequences:
        raise ValueError("cannot pack an empty list of sequences")
    labelled = [s.labels_T for s in sequences if s.labels_T is not None]
    if labelled and len(labelled) != len(sequences):
        raise ValueError(f"{len(labelled)} of {len(sequences)} sequences have labels: give labels to all or to none")
    lens = tuple(len(s.tokens_T) for s in sequences)
    starts = np.cumsum((0, *lens[:-1]))
    roots = [i for i, s in enumerate(sequences) if not s.branch]
    if len(roots) < len(sequences) and roots[:1] != [0]:
        raise ValueError("the first sequence is a branch, but there is nothing before it to go on from")
    parents = tuple(max(r for r in roots if r < i) if s.branch else -1 for i, s in enumerate(sequences))
    visuals = [v for s in sequences for v in s.visuals]
    grids = tuple(v.grid for v in visuals)
    return Batch(
        tokens_T=torch.from_numpy(np.concatenate([s.tokens_T for s in sequences])),
        seq_lens=lens,
        positions_RT=torch.from_numpy(np.concatenate([s.positions_RT for s in sequences], axis=1)),
        patches_PC=torch.cat([v.patches_PC for v in visuals]) if visuals else torch.zeros(0, patch_values),
        patch_hw_2P=torch.cat([patch_hw(g, merge) for g in grids], dim=1)
        if grids
        else torch.zeros(2, 0, dtype=torch.long),
        segment_lens=segment_lens(grids),
        grids=grids,
        vision_rows_M=torch.from_numpy(
            np.concatenate([s.vision_rows_M + at for s, at in zip(sequences, starts, strict=True)])
        ),
        parents=parents if len(roots) < len(sequences) else (),
        labels_T=torch.from_numpy(np.concatenate(labelled)) if labelled else None,
        names=tuple(s.name for s in sequences),
    )
