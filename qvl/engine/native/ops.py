"""What the kernels compute, on tensors: each with its twin in plain torch.

Knows: shapes, dtypes, strides. Does not know: modules, requests, where a kernel is worth it.

All tensors are bfloat16 on the CPU, rows contiguous inside. Results of a row never depend on the other rows. `out` is
memory for the result, instead of fresh one.
"""

from __future__ import annotations

from ctypes import CDLL
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qvl.engine.native.build import library
from qvl.engine.native.packing import Packed
from qvl.engine.native.workspace import Workspace, empty

CELL = 16
"""Keys that lie together in a page; a page is a number of these."""


def available() -> bool:
    """Whether there are kernels on this machine."""
    return library() is not None


def _lib() -> CDLL:
    found = library()
    assert found is not None, "kernels are called only where there are some"
    return found


def linear(
    x_TI: Tensor,
    weight: Tensor | Packed,
    bias_O: Tensor | None = None,
    *,
    wide: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`F.linear` with float32 sums: [T, in] -> [T, out] in bfloat16, or as summed (float32) if `wide`.

    The twin is `F.linear` itself, of `Packed.unpacked()` for packed weights.
    """
    packed = isinstance(weight, Packed)
    if packed:
        outputs, kind, group = weight.shape[0], weight.kind, weight.group
        if weight.padded > weight.shape[1]:
            x_TI = F.pad(x_TI, (0, weight.padded - weight.shape[1]))
        data, inputs = weight.data, weight.padded
        scales = (weight.scales.data_ptr(), 0) if group else (0, weight.scales.data_ptr())
    else:
        (outputs, inputs), kind, group, data, scales = weight.shape, 0, 0, weight, (0, 0)
    x_TI = x_TI if x_TI.stride(-1) == 1 else x_TI.contiguous()
    rows = x_TI.shape[0]
    out_TO = empty(rows, outputs, dtype=torch.float32 if wide else torch.bfloat16) if out is None else out
    assert out_TO.shape == (rows, outputs), f"{tuple(out_TO.shape)} is no room for {rows} rows of {outputs}"
    if not rows:
        return out_TO
    bias = 0 if bias_O is None else bias_O.data_ptr()
    _lib().qvl_linear(
        kind, x_TI.data_ptr(), x_TI.stride(0), rows, data.data_ptr(), *scales, group, bias,
        out_TO.data_ptr(), outputs, wide, outputs, inputs, torch.get_num_threads(),
    )  # fmt: skip
    return out_TO


def linear_many(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """`F.linear` like `linear`, for bfloat16 weights that always meet many rows at once, such as a picture's patches.

    Sums have another order than there: a layer has to keep to one of the two.
    """
    outputs, inputs = weight_OI.shape
    if inputs % 2:
        return linear(x_TI, weight_OI, bias_O, out=out)
    x_TI = x_TI if x_TI.stride(-1) == 1 else x_TI.contiguous()
    rows = x_TI.shape[0]
    out_TO = empty(rows, outputs) if out is None else out
    assert out_TO.shape == (rows, outputs), f"{tuple(out_TO.shape)} is no room for {rows} rows of {outputs}"
    if rows:
        bias = 0 if bias_O is None else bias_O.data_ptr()
        _lib().qvl_linear_many(
            x_TI.data_ptr(), x_TI.stride(0), rows, weight_OI.data_ptr(), bias, out_TO.data_ptr(), outputs, inputs,
            torch.get_num_threads(),
        )  # fmt: skip
    return out_TO


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """As `qvl.layers.norm.RMSNorm` (its twin)."""
    x_TD = x_TD.contiguous()
    out_TD = empty(*x_TD.shape) if out is None else out
    rows, width = x_TD.shape
    threads = torch.get_num_threads()
    _lib().qvl_rms_norm(x_TD.data_ptr(), weight_D.data_ptr(), out_TD.data_ptr(), rows, width, eps, threads)
    return out_TD


def rotate_(x_TNH: Tensor, cos_TF: Tensor, sin_TF: Tensor) -> None:
    """As `qvl.layers.rope.rotate` (its twin), in place, in float32. Angles are float32 [T, H / 2]."""
    assert x_TNH.stride()[1:] == (x_TNH.shape[2], 1), "heads of a row lie side by side"
    assert cos_TF.is_contiguous(), "angles lie row by row"
    assert sin_TF.is_contiguous(), "angles lie row by row"
    rows, heads, size = x_TNH.shape
    _lib().qvl_rotate(
        x_TNH.data_ptr(), x_TNH.stride(0), cos_TF.data_ptr(), sin_TF.data_ptr(), rows, heads, size,
        torch.get_num_threads(),
    )  # fmt: skip


def swiglu(gate_up_TX: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up of rows that hold the gates, then the ups."""
    rows, both = gate_up_TX.shape
    out_TX = empty(rows, both // 2) if out is None else out
    _lib().qvl_swiglu(gate_up_TX.data_ptr(), out_TX.data_ptr(), rows, both // 2, torch.get_num_threads())
    return out_TX


def quick_gelu_(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), in place."""
    assert x.is_contiguous()
    _lib().qvl_quick_gelu(x.data_ptr(), x.numel(), torch.get_num_threads())
    return x


def attend_segments(
    q_PNH: Tensor, k_PNH: Tensor, v_PNH: Tensor, lens: tuple[int, ...], room: Workspace | None = None
) -> Tensor:
    """Full attention within segments of `lens` rows that lie end to end. The twin is `SegmentPlan.attend`.

    `room`: where the result and what is needed on the way may lie.
    """
    room = room or Workspace()
    rows, heads, size = q_PNH.shape
    strides = {x.stride() for x in (q_PNH, k_PNH, v_PNH)}
    if len(strides) > 1 or q_PNH.stride()[1:] != (size, 1):
        q_PNH, k_PNH, v_PNH = q_PNH.contiguous(), k_PNH.contiguous(), v_PNH.contiguous()
    out_PNH = room.take("attended", rows, heads, size)
    first = torch.tensor([0, *lens]).cumsum(0)
    cells = room.take("cells", 2 * heads * size * (rows + CELL * len(lens)))
    _lib().qvl_attend_segments(
        q_PNH.data_ptr(), k_PNH.data_ptr(), v_PNH.data_ptr(), q_PNH.stride(0), out_PNH.data_ptr(), len(lens),
        first.data_ptr(), heads, size, cells.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out_PNH


class Pages(NamedTuple):
    """Keys and values of one layer."""

    store: Tensor
    """[2 K, pages, page * H], in cells."""
    page: int
    """Tokens per page."""


def write_pages(pages: Pages, slots_T: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> None:
    """Puts token t into slot `slots_T[t]` = page * tokens per page + place in the page."""
    tokens, heads, size = k_TKH.shape
    k_TKH, v_TKH = _heads_beside(k_TKH), _heads_beside(v_TKH)
    _lib().qvl_write_pages(
        pages.store.data_ptr(), pages.store.shape[1], pages.page, slots_T.data_ptr(), k_TKH.data_ptr(),
        v_TKH.data_ptr(), k_TKH.stride(0), v_TKH.stride(0), tokens, heads, size, torch.get_num_threads(),
    )  # fmt: skip


def attend_pages(
    pages: Pages,
    q_TNH: Tensor,
    first_query: Tensor,
    past: Tensor,
    first_page: Tensor,
    pages_X: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention over pages, [T, N, H]; what is asked about was written before.

    Args:
        first_query: [S + 1] row of each sequence's first query, and the end.
        past: [S] tokens before that query.
        first_page: [S + 1] where a sequence's pages begin in `pages_X`.

    The twin is `qvl.engine.paged.PagedContext.text`.
    """
    tokens, heads, size = q_TNH.shape
    q_TNH = _heads_beside(q_TNH)
    out_TNH = empty(tokens, heads, size) if out is None else out
    _lib().qvl_attend_pages(
        pages.store.data_ptr(), pages.store.shape[1], pages.page, q_TNH.data_ptr(), q_TNH.stride(0),
        out_TNH.data_ptr(), len(past), first_query.data_ptr(), past.data_ptr(), first_page.data_ptr(),
        pages_X.data_ptr(), heads, pages.store.shape[0] // 2, size, torch.get_num_threads(),
    )  # fmt: skip
    return out_TNH


def _heads_beside(x_TNH: Tensor) -> Tensor:
    return x_TNH if x_TNH.stride()[1:] == (x_TNH.shape[2], 1) else x_TNH.contiguous()
