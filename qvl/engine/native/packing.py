"""Weights as 8 or 4 bit integers, in the order in which the kernels read them.

Knows: rounding to integers, the order inside a block, the way back. Does not know: modules, which weights.

`int8`: one scale per output, sign and magnitude up to 127. `int4`: one scale for every `group` inputs of an output,
codes 0 to 15 for -8 to 7 times that scale; the scale is the best of a few candidates. Either is what a matrix would be
with its values rounded (`unpacked`): only weights lose precision, never what flows through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from qvl.engine.native.build import library
from qvl.runtime import ask_for_huge_pages

Quantize = Literal["int8", "int4"]
GROUP = 64
"""Inputs that share a scale of `int4`: 4.25 bits per weight."""
_BLOCK8, _BLOCK4 = 64, 128
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Candidates for an int4 scale, relative to the one that reaches the group's largest value: with a smaller one the
largest is cut off and the many small ones are finer."""
_VALUES = 1 << 22
"""Values packed at a time, so that their float32 copies stay small."""


@dataclass(frozen=True)
class Packed:
    """A matrix [out, in] of integers."""

    kind: int
    """1 = 8 bit, 2 = 4 bit (the kernels' numbers)."""
    shape: tuple[int, int]
    padded: int
    """Inputs, filled up with zeros to whole blocks."""
    group: int
    """Inputs per scale; 0 = one scale per output."""
    data: Tensor
    """uint8 [out, bytes]."""
    scales: Tensor
    """float32 [out], or bfloat16 [out, padded / group]."""

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes

    def unpacked(self, rows: Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The matrix, or some of its rows, as the kernels multiply it."""
        data, scales = (x if rows is None else x.index_select(0, rows) for x in (self.data, self.scales))
        if self.kind == 1:
            integers = _unpack8(data)
            return (integers.float() * scales[:, None])[:, : self.shape[1]].to(dtype)
        values = _unpack4(data).unflatten(1, (-1, self.group)).float() * scales.float()[..., None]
        return values.to(torch.bfloat16).flatten(1)[:, : self.shape[1]].to(dtype)


def pack(weight_OI: Tensor, how: Quantize, group: int = GROUP) -> Packed:
    """Rounds a matrix.

    Raises:
        ValueError: a group that is not 32, 64 or 128.
    """
    if how == "int4" and group not in (32, 64, 128):
        raise ValueError(f"a group of int4 has 32, 64 or 128 weights, not {group}")
    packed = _empty(weight_OI, how, group)
    if weight_OI.dtype == torch.bfloat16 and weight_OI.device.type == "cpu" and library() is not None:
        _pack_natively(weight_OI.detach().contiguous(), packed)
    else:
        _pack_slowly(weight_OI.detach(), packed)
    return packed


def _empty(weight_OI: Tensor, how: Quantize, group: int) -> Packed:
    outputs, inputs = weight_OI.shape
    block = _BLOCK8 if how == "int8" else _BLOCK4
    padded = -(-inputs // block) * block
    width, device = padded if how == "int8" else padded // 2, weight_OI.device
    data = torch.empty(outputs, width, dtype=torch.uint8, device=device)
    if device.type == "cpu":
        ask_for_huge_pages(data.data_ptr(), data.nbytes)
    form = (torch.float32, (outputs,)) if how == "int8" else (torch.bfloat16, (outputs, padded // group))
    scales = torch.empty(form[1], dtype=form[0], device=device)
    kind, group = (1, 0) if how == "int8" else (2, group)
    return Packed(kind, (outputs, inputs), padded, group, data, scales)


def _pack_natively(weight_OI: Tensor, into: Packed) -> None:
    lib, threads = library(), torch.get_num_threads()
    assert lib is not None, "kernels are called only where there are some"
    places = (into.data.data_ptr(), into.scales.data_ptr())
    if into.kind == 1:
        lib.qvl_pack8(weight_OI.data_ptr(), *into.shape, into.padded, *places, threads)
    else:
        lib.qvl_pack4(weight_OI.data_ptr(), *into.shape, into.padded, into.group, *places, threads)


def _pack_slowly(weight_OI: Tensor, into: Packed) -> None:
    """The kernels' twin."""
    step = max(1, _VALUES // into.padded)
    for at in range(0, into.shape[0], step):
        rows = F.pad(weight_OI[at : at + step].float(), (0, into.padded - into.shape[1]))
        made = _round8(rows) if into.kind == 1 else _round4(rows, into.group)
        into.data[at : at + step], into.scales[at : at + step] = made


def _round8(rows: Tensor) -> tuple[Tensor, Tensor]:
    scales = (rows.abs().amax(1) / 127).clamp(min=1e-20)
    integers = (rows / scales[:, None]).round()
    bytes_ = integers.abs().to(torch.uint8) | ((integers < 0).to(torch.uint8) << 7)
    # Number 8 L + j goes to place 16 L + j, number 32 + 8 L + j to place 16 L + 8 + j.
    return bytes_.view(len(rows), -1, 2, 4, 8).transpose(2, 3).reshape(len(rows), -1), scales


def _unpack8(data: Tensor) -> Tensor:
    bytes_ = data.view(len(data), -1, 4, 2, 8).transpose(2, 3).reshape(len(data), -1)
    magnitude = (bytes_ & 127).to(torch.int16)
    return torch.where(bytes_ > 127, -magnitude, magnitude)


def _round4(rows: Tensor, group: int) -> tuple[Tensor, Tensor]:
    groups = rows.unflatten(1, (-1, group))
    most = groups.gather(2, groups.abs().argmax(2, keepdim=True))  # this one, with its sign, becomes -8
    best_error = torch.full_like(most, float("inf"))
    best_codes, best_scale = torch.zeros_like(groups), torch.zeros_like(most)
    for shrink in _SHRINKS:
        scale = (most * (-shrink / 8)).bfloat16().float()
        codes = torch.where(scale == 0, 0.0, groups / scale).round().clamp(-8, 7)
        error = (codes * scale - groups).square().sum(2, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_codes, best_scale = torch.where(better, codes, best_codes), torch.where(better, scale, best_scale)
    # Word i of a block of 128 holds the codes of numbers i, 32 + i, 64 + i, 96 + i; its two bytes the first two and
    # the last two.
    nibbles = (best_codes + 8).to(torch.uint8).view(len(rows), -1, 4, 32)
    low, high = nibbles[:, :, 0] | nibbles[:, :, 1] << 4, nibbles[:, :, 2] | nibbles[:, :, 3] << 4
    return torch.stack((low, high), dim=-1).view(len(rows), -1), best_scale[..., 0].bfloat16()


def _unpack4(data: Tensor) -> Tensor:
    words = data.view(len(data), -1, 32, 2)
    low, high = words.unbind(-1)
    codes = torch.stack((low & 15, low >> 4, high & 15, high >> 4), dim=2)
    return codes.flatten(1).to(torch.int8) - 8
