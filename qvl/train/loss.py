"""The training loss: cross-entropy of supervised positions only, summed, so that any split adds up the same.

Knows: logits are needed only where there is a label, and not all of them at once. Does not know: the divisor (global
target count: the trainer's).

With the full vocabulary one row of logits is 608 kB in float32, and autograd holds each row three times over: its
log-probabilities, the gradient of the loss with respect to them, and that of the logits. Here a row is held once at
most and becomes its own gradient in place; beyond a bound it is not held at all but computed again.
"""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qvl.batch import IGNORE, Batch
from qvl.layers.attention import AttnContext, PackedContext
from qvl.models.vlm import VisionLanguageModel

_CHUNK_BYTES = 128 << 20
"""Logits computed at a time, in float32."""
_KEPT_BYTES = 256 << 20
"""Logits that wait for the backward pass; those beyond are computed twice, which makes the head a third dearer."""


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
    return head_losses(model.head, hidden_TD.index_select(0, rows_X), batch.labels_T[rows_X]), rows_X


def head_losses(
    head: nn.Linear,
    hidden_XD: Tensor,
    labels_X: Tensor,
    *,
    chunk_bytes: int = _CHUNK_BYTES,
    kept_bytes: int = _KEPT_BYTES,
) -> Tensor:
    """Cross-entropy float32 [X] of `head(hidden_XD)` against int64 `labels_X`, differentiable once.

    Besides its results it takes at most about 2 x `chunk_bytes` + `kept_bytes` of memory, in the backward pass too (a
    chunk has one row at least). The numbers are those of `head_losses_naive`, logits in autocast's dtype where that is
    on.
    """
    weight_VD, kind = head.weight, hidden_XD.device.type
    if type(weight_VD) is not nn.Parameter:  # spread over ranks: the head itself knows how
        return head_losses_naive(head, hidden_XD, labels_X)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VD.dtype
    rows = max(1, chunk_bytes // (4 * weight_VD.shape[0]))
    kept = kept_bytes // (rows * weight_VD.shape[0] * dtype.itemsize)
    return _HeadLosses.apply(hidden_XD, weight_VD, labels_X, dtype, rows, kept)


def head_losses_naive(head: nn.Linear, hidden_XD: Tensor, labels_X: Tensor) -> Tensor:
    """The slow twin of `head_losses`: all logits at once, by autograd."""
    return F.cross_entropy(head(hidden_XD).float(), labels_X, reduction="none")


@final
class _HeadLosses(torch.autograd.Function):
    """Chunks of `rows` rows; the logits of the first `kept` chunks wait for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_XD: Tensor, weight_VD: Tensor, labels_X: Tensor, dtype: torch.dtype, rows: int, kept: int
    ) -> Tensor:
        losses: list[Tensor] = []
        waiting: list[Tensor | None] = []
        weight = weight_VD.to(dtype)
        for x_CD, labels_C in zip(hidden_XD.split(rows), labels_X.split(rows), strict=True):
            logits_CV = x_CD.to(dtype) @ weight.T
            losses.append(F.cross_entropy(logits_CV.float(), labels_C, reduction="none"))
            waiting.append(logits_CV if any(ctx.needs_input_grad) and len(waiting) < kept else None)
        losses_X = torch.cat(losses)
        ctx.save_for_backward(hidden_XD, weight_VD, labels_X, losses_X)
        ctx.dtype, ctx.rows, ctx.waiting = dtype, rows, waiting
        return losses_X

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_X: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_XD, weight_VD, labels_X, losses_X = ctx.saved_tensors
        hidden_learns, weight_learns, *_ = ctx.needs_input_grad
        weight = weight_VD.to(ctx.dtype)
        grad_VD, grads_XD = None, []
        chunks = zip(*(x.split(ctx.rows) for x in (hidden_XD, labels_X, losses_X, grad_X)), strict=True)
        for i, (x_CD, labels_C, losses_C, grad_C) in enumerate(chunks):
            x_CD = x_CD.to(ctx.dtype)
            logits_CV, ctx.waiting[i] = ctx.waiting[i], None  # not there either for a second backward pass
            if logits_CV is None:
                logits_CV = x_CD @ weight.T
            # Softmax without a second look for the largest logit: loss = log(sum of exp) - the label's logit.
            label_C1 = labels_C[:, None]
            slopes_CV = logits_CV.float()
            slopes_CV.sub_(slopes_CV.gather(1, label_C1) + losses_C[:, None]).exp_()
            slopes_CV.scatter_add_(1, label_C1, slopes_CV.new_full(label_C1.shape, -1.0))
            slopes_CV = slopes_CV.to(ctx.dtype)
            if hidden_learns:
                grads_XD.append((slopes_CV @ weight).to(hidden_XD.dtype) * grad_C[:, None])
            if weight_learns:
                scaled_CD = (x_CD * grad_C[:, None]).to(ctx.dtype)
                part_VD = (slopes_CV.T @ scaled_CD).to(weight_VD.dtype)
                grad_VD = part_VD if grad_VD is None else grad_VD.add_(part_VD)
        return torch.cat(grads_XD) if hidden_learns else None, grad_VD, None, None, None, None
