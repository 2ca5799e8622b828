"""What a training step computes, counted from the model's sizes, and what the machine could compute at most.

Knows: floating-point operations of matrix products, forward and backward (a multiplication with its addition is 2).
Does not know: which kernel carries them out, memory, time per step.

Counted is what the step *means*, once each: not what recomputation repeats, not what padding wastes, and of causal
attention the triangle only. Norms, activations, softmax, position tables and optimizers are left out: they are no
matrix products of the model. So one product costs, per row, `2 x inputs x outputs` forward, as much again for the
gradient of its weight if that is learned, and as much again for the gradient of its input if somebody before it learns.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, final

import torch
from torch import nn

from qvl.batch import Batch
from qvl.models.hollow import hollow
from qvl.models.lora import Adapter, LoraLinear
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.qwen_vl.config import QwenVLConfig
from qvl.models.vlm import VisionLanguageModel, VLMConfig
from qvl.train.config import Part
from qvl.train.optim import freeze

_PEAK_SECONDS = 0.1
"""How long the machine's peak is looked for."""
Unit = Literal["token", "pair", "labelled", "patch", "patch_pair", "merged", "query", "query_pair"]


@dataclass(frozen=True)
class StepFlops:
    """Forward and backward together, by part."""

    text: int = 0
    """Linear layers of the decoder."""
    text_attention: int = 0
    """Queries with keys, and weights with values, of the pairs that see each other."""
    head: int = 0
    """Logits of labelled rows."""
    vision: int = 0
    """Linear layers of the vision tower."""
    vision_attention: int = 0
    merger: int = 0
    """The merger, or Qwen-VL's adapter with its attention."""

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))

    def __add__(self, other: StepFlops) -> StepFlops:
        return StepFlops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@final
class FlopCount:
    """FLOPs of passes through `model`, with what it learns (`requires_grad`) at the time of construction.

    The model may be on the meta device.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        self._config: VLMConfig = model.config
        self._per_unit = _per_unit(model)

    def of(
        self, seq_lens: Sequence[int], segment_lens: Sequence[int], labelled: int, parents: Sequence[int] = ()
    ) -> StepFlops:
        """One pass, its backward included.

        Args:
            seq_lens: tokens of each sequence.
            segment_lens: patches of each vision segment (a picture, or a temporal patch of a video).
            labelled: rows whose logits are computed.
            parents: as in `Batch`: a branch also attends to all of its parent.
        """
        units = _units(self._config, seq_lens, segment_lens, labelled, parents)
        sums: dict[str, int] = defaultdict(int)
        for (part, unit), flops in self._per_unit.items():
            sums[part] += flops * units[unit]
        return StepFlops(**sums)

    def of_batch(self, batch: Batch, labelled: int, reads: bool = True) -> StepFlops:
        """One pass over `batch`. `reads`: the language model reads it; else it is seen only."""
        if not reads:
            return self.of((), batch.segment_lens, 0)
        return self.of(batch.seq_lens, batch.segment_lens, labelled, batch.parents)


def step_flops(
    config: VLMConfig,
    seq_lens: Sequence[int],
    segment_lens: Sequence[int],
    labelled: int,
    trains: Iterable[Part],
    *,
    frozen: Iterable[str] = (),
    parents: Sequence[int] = (),
) -> StepFlops:
    """FLOPs of one pass of a model of these sizes (see `FlopCount.of`), without memory for it.

    Args:
        trains: parts that learn; none = forward only.
        frozen: patterns of parameters' names that do not.
    """
    model = hollow(config)
    if trains := tuple(trains):
        freeze(model, trains, frozen)
    else:
        model.requires_grad_(False)
    return FlopCount(model).of(seq_lens, segment_lens, labelled, parents)


def _units(
    config: VLMConfig, seq_lens: Sequence[int], segment_lens: Sequence[int], labelled: int, parents: Sequence[int]
) -> dict[Unit, int]:
    """How many rows, or pairs of rows, every kind of product has."""
    past = [seq_lens[p] if p >= 0 else 0 for p in parents or (-1,) * len(seq_lens)]
    patches = sum(segment_lens)
    units: dict[Unit, int] = {
        "token": sum(seq_lens),
        "pair": sum(n * before + n * (n + 1) // 2 for n, before in zip(seq_lens, past, strict=True)),
        "labelled": labelled,
        "patch": patches,
        "patch_pair": sum(n * n for n in segment_lens),
    }
    if isinstance(config, QwenVLConfig):
        queries = config.adapter.queries
        return units | {
            "merged": queries * len(segment_lens),
            "query": queries if segment_lens else 0,
            "query_pair": queries * patches,
        }
    assert isinstance(config, Qwen2VLConfig), f"no counts for {type(config).__name__}"
    return units | {"merged": patches // config.vision.merge**2, "query": 0, "query_pair": 0}


def _per_unit(model: VisionLanguageModel) -> dict[tuple[str, Unit], int]:
    """FLOPs by (part, unit). Modules come in the order of the computation: pictures, then text, then the head."""
    text, vision = model.config.text, model.config.vision
    found: dict[tuple[str, Unit], int] = defaultdict(int)
    flows = False  # somebody before learns, so gradients have to pass
    for name, module in model.named_modules():
        if ".lora." in name or name.endswith(".query_norm"):  # counted with their layer; beside the patches' way
            continue
        if name == "visual.adapter.qkv":
            _count_shared_queries(model, module, flows, found)
        elif isinstance(module, nn.Linear):
            part, unit = _where(name)
            found[part, unit] += module.weight.shape[0] * _product(module, flows)
            if isinstance(module, LoraLinear):
                found[part, unit] += _additions(module, flows)
        flows |= any(p.requires_grad for p in module.parameters()) and not _is_room(module)
        if name.startswith("decoder.layers.") and name.endswith(".qkv"):
            found["text_attention", "pair"] += (1 + 2 * flows) * 4 * text.heads * text.head_size
        elif name.startswith("visual.blocks.") and name.endswith(".qkv"):
            found["vision_attention", "patch_pair"] += (1 + 2 * flows) * 4 * vision.width
    return found


def _count_shared_queries(
    model: VisionLanguageModel, qkv: nn.Module, flows: bool, found: dict[tuple[str, Unit], int]
) -> None:
    """Qwen-VL's adapter: keys and values of every patch, queries that are the same for all pictures."""
    assert isinstance(qkv, nn.Linear)
    width = qkv.weight.shape[1]
    queries_flow = any(p.requires_grad for n, p in model.named_parameters() if n.startswith("visual.adapter.query"))
    found["merger", "patch"] += 2 * width * _product(qkv, flows)
    found["merger", "query"] += width * _product(qkv, queries_flow)
    # Two products forward; four backward, one of which is the queries' gradient.
    queries_learn = queries_flow or qkv.weight.requires_grad
    backward = 3 * (flows or qkv.weight.requires_grad) + queries_learn
    found["merger", "query_pair"] += (2 + backward) * 2 * width


def _is_room(module: nn.Module) -> bool:
    """Modules that hold others compute nothing themselves (an adapted layer does)."""
    return not isinstance(module, nn.Linear) and any(True for _ in module.children())


def _where(name: str) -> tuple[str, Unit]:
    """Part, and what the layer has a row for."""
    if name == "head":
        return "head", "labelled"
    if name.startswith("decoder."):
        return "text", "token"
    if name == "visual.adapter.kv_proj":
        return "merger", "patch"
    if name.startswith(("visual.merger.", "visual.adapter.")):
        return "merger", "merged"
    assert name.startswith(("visual.patch_embed", "visual.blocks.")), f"no count for the layer {name}"
    return "vision", "patch"


def _product(layer: nn.Linear, flows: bool) -> int:
    """FLOPs of one output of one row."""
    return 2 * layer.weight.shape[1] * (1 + layer.weight.requires_grad + flows)


def _additions(layer: LoraLinear, flows: bool) -> int:
    """FLOPs of a layer's low-rank adapters for one row."""
    flops = 0
    for adapter in layer.lora:
        assert isinstance(adapter, Adapter)
        down = 2 * adapter.a.numel() * (1 + adapter.a.requires_grad + flows)
        up = 2 * adapter.b.numel() * (1 + adapter.b.requires_grad + (flows or adapter.a.requires_grad))
        flops += down + up
    return flops


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of some square matrix products: what this process can reach with its threads now."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    best, until = float("inf"), time.perf_counter() + _PEAK_SECONDS
    while best == float("inf") or time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
