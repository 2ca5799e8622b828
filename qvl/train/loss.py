"""The training loss: cross-entropy of supervised positions only, summed, so that any split adds up the same.

Knows: logits are needed only where there is a label. Does not know: the divisor (global target count: the trainer's).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from qvl.batch import IGNORE, Batch
from qvl.layers.attention import AttnContext, PackedContext
from qvl.models.vlm import VisionLanguageModel


def token_losses(
    model: VisionLanguageModel, batch: Batch, vision_MD: Tensor | None = None, attn: AttnContext | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each supervised row: float32 [X], and the rows int64 [X] in order.

    Args:
        vision_MD: vision tokens to use; default: what the model sees.
        attn: default: `PackedContext`.

    Raises:
        ValueError: the batch has no labels.
    """
    if batch.labels_T is None:
        raise ValueError("this batch has no labels; prepare it with processor(..., labels=True)")
    rows_X = (batch.labels_T != IGNORE).nonzero().squeeze(1)
    attn = attn or PackedContext(batch)
    hidden_TD = model.hidden(batch, model.see(batch, attn) if vision_MD is None else vision_MD, attn)
    logits_XV = model.head(hidden_TD.index_select(0, rows_X))
    return F.cross_entropy(logits_XV.float(), batch.labels_T[rows_X], reduction="none"), rows_X
