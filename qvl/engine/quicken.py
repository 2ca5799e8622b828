"""A loaded model made fast to answer with: its layers exchanged, from outside, for ones that compute by the kernels.

Knows: which of a model's modules have a faster form, which weights are packed. Does not know: files, requests, how
anything is computed.

Exchanged layers hold the same parameters under the same names, so a model in bfloat16 can still be saved. A packed one
cannot. float32 models stay as they are.
"""

from __future__ import annotations

from typing import final

import torch
from torch import nn

from qvl.engine.native import ops
from qvl.engine.native.modules import (
    NativeDecoderLayer,
    NativeLinear,
    NativeVisionBlock,
    PackedEmbedding,
    PackedLinear,
)
from qvl.engine.native.packing import GROUP, Quantize, pack
from qvl.engine.native.workspace import Workspace
from qvl.layers.decoder import DecoderLayer
from qvl.layers.linear import FusedLinear
from qvl.models.qwen2_vl.vit import VisionBlock
from qvl.models.vlm import VisionLanguageModel

_PACKED = "decoder."
"""Where weights are packed, besides the head: what every token reads. The vision tower stays in bfloat16."""


@final
class Packer:
    """Packs weights of a model one by one, as soon as each is there."""

    def __init__(self, how: Quantize, group: int = GROUP) -> None:
        self._how: Quantize = how
        self._group = group

    def __call__(self, model: VisionLanguageModel, name: str) -> None:
        """Exchanges the layer whose weight is called `name`, if it is one that is packed."""
        layer_name, _, leaf = name.rpartition(".")
        tied = model.config.tie_embeddings and layer_name == "embed"
        if leaf != "weight" or not (tied or layer_name == "head" or layer_name.startswith(_PACKED)):
            return
        layer = model.head if tied else model.get_submodule(layer_name)
        if not isinstance(layer, nn.Linear):
            return
        packed = pack(layer.weight, self._how, self._group)
        if tied:
            model.embed = PackedEmbedding(packed, layer.weight)  # pyrefly: ignore  # a module in an embedding's place
        _put(model, "head" if tied else layer_name, PackedLinear(packed, layer.bias, wide=tied or layer_name == "head"))


def quicken(model: VisionLanguageModel, quantize: Quantize | None = None) -> None:
    """Exchanges, in place, what has a faster form.

    Args:
        quantize: also pack the language model's weights.
    """
    if quantize is not None:
        packer = Packer(quantize)
        for name, _ in list(model.named_parameters()):
            packer(model, name)
    weight = model.embed.weight
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not ops.available():
        return
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear or type(module) is FusedLinear:
            _put(model, name, NativeLinear(module, wide=name == "head", many=name.startswith("visual.")))
    room = Workspace()
    for name, module in list(model.named_modules()):
        if type(module) is DecoderLayer:
            _put(model, name, NativeDecoderLayer(module, room))
        elif type(module) is VisionBlock:
            _put(model, name, NativeVisionBlock(module, room))


def is_packed(model: nn.Module) -> bool:
    """Whether weights are gone because they were packed."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module.train(model.training))
