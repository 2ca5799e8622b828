"""The same queries for every segment of packed keys.

Knows: how to let a fixed set of queries look at each segment on its own, without padding and without an N x N mask.
Does not know: what the queries or the segments are.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from qvl.layers.attention import attend_dense


def attend_shared(q_QNH: Tensor, k_PNH: Tensor, v_PNH: Tensor, lens: tuple[int, ...]) -> Tensor:
    """Each segment of `lens` keys is attended by all Q queries: result [len(lens) * Q, N, H], segment by segment.

    Segments of equal length share one call. No segments give no rows, and gradients of zero rather than none.
    """
    if len(set(lens)) <= 1:
        split = (len(lens), lens[0] if lens else 0)
        return _attend(q_QNH, k_PNH.unflatten(0, split), v_PNH.unflatten(0, split)).flatten(0, 1)
    keys, values = k_PNH.split(lens), v_PNH.split(lens)
    members: dict[int, list[int]] = defaultdict(list)
    for s, length in enumerate(lens):
        members[length].append(s)
    outs = {}
    for same in members.values():
        out_SQNH = _attend(q_QNH, torch.stack([keys[s] for s in same]), torch.stack([values[s] for s in same]))
        outs |= dict(zip(same, out_SQNH.unbind(), strict=True))
    return torch.cat([outs[s] for s in range(len(lens))])


def _attend(q_QNH: Tensor, k_SYNH: Tensor, v_SYNH: Tensor) -> Tensor:
    q_SNQH = q_QNH.transpose(0, 1).expand(k_SYNH.shape[0], -1, -1, -1)
    return attend_dense(q_SNQH, k_SYNH.transpose(1, 2), v_SYNH.transpose(1, 2), causal=False).transpose(1, 2)


def attend_shared_naive(q_QNH: Tensor, k_PNH: Tensor, v_PNH: Tensor, lens: tuple[int, ...]) -> Tensor:
    """The slow twin of `attend_shared`, segment by segment and head by head. For tests."""
    outs = []
    for k_YNH, v_YNH in zip(k_PNH.split(lens), v_PNH.split(lens), strict=True):
        heads = []
        for n in range(q_QNH.shape[1]):
            weights_QY = (q_QNH[:, n] @ k_YNH[:, n].T * q_QNH.shape[-1] ** -0.5).softmax(-1)
            heads.append(weights_QY @ v_YNH[:, n])
        outs.append(torch.stack(heads, dim=1))
    return torch.cat(outs)
