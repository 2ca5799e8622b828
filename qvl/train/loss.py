"""The training loss: cross-entropy of supervised positions only, summed, so that any split adds up the same.

Knows: logits are needed only where there is a label. Does not know: the divisor (global target count: the trainer's).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qvl.batch import IGNORE, Batch


def token_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each supervised row: float32 [X], and the rows int64 [X] in order.

    Raises:
        ValueError: the batch has no labels.
    """
    if batch.labels_T is None:
        raise ValueError("this batch has no labels; prepare it with processor(..., labels=True)")
    rows_X = (batch.labels_T != IGNORE).nonzero().squeeze(1)
    logits_XV = model(batch, rows=rows_X)
    return F.cross_entropy(logits_XV.float(), batch.labels_T[rows_X], reduction="none"), rows_X
