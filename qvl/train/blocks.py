"""What is done to each block of a model: compiling it, and computing it again in the backward pass instead of keeping
what it has computed.

Knows: which results are dear to compute and cheap to keep. Does not know: other ranks, what a block computes.

A block keeps its class and its parameters' names: only its `forward` is exchanged, and only while it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from qvl.layers.attention import AttnContext, Span
from qvl.models.vlm import VisionLanguageModel

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.linear.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
"""Products with weights, and attention that never holds its scores. What lies between is computed again: norms,
rotations, activations, and scores that are written out."""

Forward = Callable[..., Tensor]


def blocks_of(model: VisionLanguageModel) -> Iterator[nn.Module]:
    """The vision tower's blocks, then the decoder's: in the order in which they are computed."""
    yield from vision_blocks(model)
    yield from model.decoder.layers


def vision_blocks(model: VisionLanguageModel) -> nn.ModuleList:
    """The vision tower's blocks alone (`visual.blocks` of every family)."""
    blocks = model.visual.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def recompute_block(block: nn.Module, how: Literal["selective", "full"]) -> None:
    """Keeps only the block's input (`full`), or that and its dear results (`selective`), until the backward pass."""
    plain: Forward = block.forward
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep)

    def forward(*inputs: Any) -> Tensor:
        if not (block.training and torch.is_grad_enabled()):
            return plain(*inputs)
        return checkpoint(plain, *inputs, **options)

    block.forward = forward


def _keep(context: object, operation: object, *inputs: object, **options: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compiles what blocks compute row by row, for any number of rows. Attention stays as it is: it differs with the
    lengths of every pack."""
    config = torch._dynamo.config  # blocks are alike but for their number, and each number is compiled
    config.recompile_limit = max(config.recompile_limit, 2 * len(blocks))
    for block in blocks:
        _compile_block(block)


def _compile_block(block: nn.Module) -> None:
    plain: Forward = block.forward
    compiled = torch.compile(plain, dynamic=True)

    def forward(*inputs: Any) -> Tensor:
        if not block.training:
            return plain(*inputs)
        return compiled(*(_Uncompiled(x) if isinstance(x, AttnContext) else x for x in inputs))

    block.forward = forward


@final
class _Uncompiled(AttnContext):
    """The same attention, of which a compiler sees nothing."""

    def __init__(self, attn: AttnContext) -> None:
        self._attn = attn

    @property
    def spans(self) -> tuple[Span, ...]:
        return self._attn.spans

    @torch.compiler.disable
    def text(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        return self._attn.text(layer, q_TNH, k_TKH, v_TKH)

    @torch.compiler.disable
    def vision(self, q_PNH: Tensor, k_PNH: Tensor, v_PNH: Tensor) -> Tensor:
        return self._attn.vision(q_PNH, k_PNH, v_PNH)
