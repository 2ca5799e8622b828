"""One rank's part of a model that several ranks compute together, for counting: layers cut to that rank's sizes.

Knows: what tensor parallelism cuts (`parallel` does it to values, and with messages). Does not know: ranks that talk.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn

from qvl.layers.decoder import DecoderLayer
from qvl.layers.linear import FusedLinear
from qvl.models.lora import has_lora
from qvl.models.qwen2_vl import vit as qwen2_vl_vit
from qvl.models.qwen_vl import vit as qwen_vl_vit
from qvl.models.vlm import VisionLanguageModel
from qvl.train.blocks import vision_blocks

_BY_ROWS, _BY_COLUMNS = ("qkv", "mlp.gate_up", "fc1"), ("out", "mlp.down", "fc2")


@final
class _Piece(nn.Parameter):
    """Of words that are spread over ranks: their losses come from the logits of all (`loss.head_losses`)."""


def narrow(model: VisionLanguageModel, ranks: int) -> None:
    """Cuts heads, hidden units and words to one rank's share.

    Raises:
        ValueError: they cannot be shared out evenly, or the model has adapters.
    """
    if has_lora(model):
        raise ValueError("adapters (lora) are small: train them with parallel.shard instead of parallel.tensor")
    for block in model.decoder.layers:
        assert isinstance(block, DecoderLayer)
        queries, keys, values = (_share(n, ranks, "heads of the language model") for n in block.split)
        block.split = (queries, keys, values)
        _cut(block, ranks)
    for block in vision_blocks(model):
        assert isinstance(block, qwen_vl_vit.VisionBlock | qwen2_vl_vit.VisionBlock)
        block.heads = _share(block.heads, ranks, "heads of the vision tower")
        _cut(block, ranks)
    for name, module in model.visual.named_children():
        if name == "merger":
            _cut(module, ranks)
    tied = model.head.weight is model.embed.weight
    words = _share(model.config.vocab_size, ranks, "words of the vocabulary")
    model.embed.weight = _Piece(model.embed.weight[:words].clone())
    model.head.weight = model.embed.weight if tied else _Piece(model.head.weight[:words].clone())
    model.head.register_forward_hook(lambda _module, _inputs, logits_XV: _all_words(logits_XV, ranks))


def _all_words(logits_XV: Tensor, ranks: int) -> Tensor:
    """The loss looks at all logits on every rank."""
    return torch.cat([logits_XV] * ranks, dim=-1)


def _cut(block: nn.Module, ranks: int) -> None:
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear) and name in _BY_ROWS:
            _cut_layer(layer, ranks, "rows")
        elif isinstance(layer, nn.Linear) and name in _BY_COLUMNS:
            _cut_layer(layer, ranks, "columns")


def _cut_layer(layer: nn.Linear, ranks: int, how: Literal["rows", "columns"]) -> None:
    rows, columns = layer.weight.shape
    if how == "columns":
        layer.weight = nn.Parameter(layer.weight[:, : _share(columns, ranks, "hidden units")].clone())
        return
    own = _share(rows, ranks, "hidden units")
    layer.weight = nn.Parameter(layer.weight[:own].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[:own].clone())
    if isinstance(layer, FusedLinear):
        layer.parts = tuple(n // ranks for n in layer.parts)


def _share(count: int, ranks: int, what: str) -> int:
    if count % ranks:
        raise ValueError(f"parallel.tensor is {ranks}, but the {count} {what} cannot be shared out evenly")
    return count // ranks
