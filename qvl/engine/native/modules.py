"""Layers that compute by the kernels, with the parameters and names of those they stand for.

Knows: which products and row-wise steps make a layer, and which of them a kernel does in one go.
Does not know: which layers a model has (`qvl.engine.quicken`), caches.

Where gradients are wanted or something else than bfloat16 comes in, a layer computes as the one it stands for.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.engine.native import ops
from qvl.engine.native.packing import Packed
from qvl.engine.native.workspace import Workspace
from qvl.layers.attention import AttnContext
from qvl.layers.decoder import DecoderLayer, Turn, chosen
from qvl.layers.linear import FusedLinear
from qvl.layers.norm import RMSNorm
from qvl.models.qwen2_vl.vit import VisionBlock, quick_gelu


def _plain(x: Tensor) -> bool:
    return x.dtype != torch.bfloat16 or torch.is_grad_enabled()


@final
class NativeLinear(nn.Linear):
    """`F.linear` by the kernel.

    Args:
        wide: float32 out.
        many: for layers that always meet many rows at once (`ops.linear_many`).
    """

    def __init__(self, base: nn.Linear, *, wide: bool = False, many: bool = False) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make new parameters
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.parts = base.parts if isinstance(base, FusedLinear) else None
        self.wide, self.many = wide, many

    def forward(self, input: Tensor, out: Tensor | None = None) -> Tensor:
        if _plain(input):
            return F.linear(input, self.weight, self.bias)
        rows = input.flatten(0, -2)
        if self.many:
            made = ops.linear_many(rows, self.weight, self.bias, out)
        else:
            made = ops.linear(rows, self.weight, self.bias, wide=self.wide, out=out)
        return made.unflatten(0, input.shape[:-1])


@final
class PackedLinear(nn.Module):
    """A linear layer whose weight is packed; by the kernel, or by unpacking it for every call."""

    def __init__(self, packed: Packed, bias: nn.Parameter | None, wide: bool = False) -> None:
        super().__init__()
        self.packed = packed
        self.bias = bias
        self.wide = wide

    def forward(self, input: Tensor, out: Tensor | None = None) -> Tensor:
        if ops.available() and input.dtype == torch.bfloat16 and input.device.type == "cpu":
            made = ops.linear(input.flatten(0, -2), self.packed, self.bias, wide=self.wide, out=out)
            return made.unflatten(0, input.shape[:-1])
        made = F.linear(input, self.packed.unpacked(dtype=input.dtype), self.bias)
        return made.float() if self.wide else made


@final
class PackedEmbedding(nn.Module):
    """Word vectors of a packed matrix that is the output head too."""

    def __init__(self, packed: Packed, like: Tensor) -> None:
        super().__init__()
        self.packed = packed
        self.weight = nn.Parameter(like.new_empty(0, packed.shape[1]), requires_grad=False)
        """Empty: it only tells dtype, device and width."""

    def forward(self, tokens_T: Tensor) -> Tensor:
        return self.packed.unpacked(tokens_T, self.weight.dtype)


@final
class NativeDecoderLayer(nn.Module):
    """A `DecoderLayer` whose norms, rotation and gates are kernels as well."""

    def __init__(self, base: DecoderLayer, room: Workspace) -> None:
        """
        Args:
            room: shared by layers that are computed one after the other.
        """
        super().__init__()
        self.room = room
        self.index, self.split, self.head_size = base.index, base.split, base.head_size
        self.attn_norm, self.qkv, self.out = base.attn_norm, base.qkv, base.out
        self.mlp_norm, self.mlp = base.mlp_norm, base.mlp

    def forward(
        self, x_TD: Tensor, turn_q: Turn, turn_k: Turn, attn: AttnContext, rows_X: Tensor | None = None
    ) -> Tensor:
        if _plain(x_TD):
            return DecoderLayer.forward(self, x_TD, turn_q, turn_k, attn, rows_X)  # pyrefly: ignore  # it has all that is used
        heads = _wide(self.room, self.qkv, self._normed(x_TD, self.attn_norm)).unflatten(-1, (-1, self.head_size))
        q_TNH, k_TKH, v_TKH = heads.split(self.split, dim=1)
        if turn_q is turn_k:
            ops.rotate_(heads[:, : self.split[0] + self.split[1]], *_angles(turn_q))
        else:
            ops.rotate_(q_TNH, *_angles(turn_q))
            ops.rotate_(k_TKH, *_angles(turn_k))
        y_TNH = attn.text(self.index, q_TNH, k_TKH, v_TKH)
        x_TD = self.out(chosen(y_TNH, rows_X).flatten(1)).add_(chosen(x_TD, rows_X))
        gate_up_TX = _wide(self.room, self.mlp.gate_up, self._normed(x_TD, self.mlp_norm))
        gated_TX = ops.swiglu(gate_up_TX, self.room.take("gated", len(x_TD), gate_up_TX.shape[1] // 2))
        return self.mlp.down(gated_TX).add_(x_TD)

    def _normed(self, x_TD: Tensor, norm: RMSNorm) -> Tensor:
        return ops.rms_norm(x_TD, norm.weight, norm.eps, self.room.take("normed", *x_TD.shape))


@final
class NativeVisionBlock(nn.Module):
    """A Qwen2-VL `VisionBlock` whose rotation and activation are kernels as well."""

    def __init__(self, base: VisionBlock, room: Workspace) -> None:
        """`room`: as for `NativeDecoderLayer`."""
        super().__init__()
        self.room = room
        self.heads, self.activation, self.quick = base.heads, base.activation, base.activation is quick_gelu
        self.attn_norm, self.qkv, self.out = base.attn_norm, base.qkv, base.out
        self.mlp_norm, self.fc1, self.fc2 = base.mlp_norm, base.fc1, base.fc2

    def forward(self, x_PE: Tensor, turn: Turn | None, attn: AttnContext) -> Tensor:
        if _plain(x_PE):
            return VisionBlock.forward(self, x_PE, turn, attn)  # pyrefly: ignore  # it has all that is used
        heads = _wide(self.room, self.qkv, self.attn_norm(x_PE)).unflatten(-1, (3 * self.heads, -1))
        if turn is not None:
            ops.rotate_(heads[:, : 2 * self.heads], *_angles(turn))
        q_PNH, k_PNH, v_PNH = heads.split(self.heads, dim=1)
        x_PE = self.out(attn.vision(q_PNH, k_PNH, v_PNH).flatten(1)).add_(x_PE)
        hidden = _wide(self.room, self.fc1, self.mlp_norm(x_PE))
        return self.fc2(ops.quick_gelu_(hidden) if self.quick else self.activation(hidden)).add_(x_PE)


def _wide(room: Workspace, layer: nn.Module, x_TI: Tensor) -> Tensor:
    """A block's widest rows (queries, keys and values; then the hidden ones), in the workspace if the layer can write
    there. They are used up before the next ones come."""
    if isinstance(layer, NativeLinear):
        return layer(x_TI, room.take("wide", len(x_TI), layer.out_features))
    if isinstance(layer, PackedLinear):
        return layer(x_TI, room.take("wide", len(x_TI), layer.packed.shape[0]))
    return layer(x_TI)


def _angles(turn: Turn) -> tuple[Tensor, Tensor]:
    """Cosine and sine as float32 [T, H / 2]."""
    cos, sin = (x.flatten(1).float().contiguous() for x in turn)  # three axes leave them column by column
    return cos, sin
