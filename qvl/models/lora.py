"""Low-rank adapters (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353), put around a finished model from outside.

Knows: which linear layers a model has in terms of official modules, so that q, k, v and gate, up, which are one matrix
here, get adapters of their own, as they have in the official layout.
Does not know: files, what is trained.

`add_lora` exchanges linear layers for `LoraLinear`s that hold the same parameters under the same names, so whoever
walks the model by names (optimizer, checkpoints) finds what it knows, and the adapters' parameters besides.
`merge_lora` adds the adapters to the weights and puts plain layers back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.layers.linear import FusedLinear
from qvl.models.hollow import hollow
from qvl.models.keys import Part
from qvl.models.registry import family_of
from qvl.models.vlm import VisionLanguageModel

Where = Literal["text", "vision", "merger"]
_BLOCKS = ("decoder.layers.", "visual.blocks.", "visual.merger.", "visual.adapter.")
"""Where layers can be adapted; embedding, head and patch embedding are not."""
_NO_LINEAR_THERE = ("visual.adapter.qkv", "visual.adapter.out")
"""Parts of torch's attention module in the official code, which uses their weights without calling them."""


@dataclass(frozen=True)
class LoraConfig:
    """What is adapted, and by how much."""

    rank: int = 16
    alpha: float = 32.0
    """The addition counts `alpha / rank` times."""
    dropout: float = 0.0
    """Of the adapters' input, in training only."""
    parts: tuple[Where, ...] = ("text",)
    """Parts whose linear layers are adapted. `merger` is the adapter of a Qwen-VL."""
    targets: tuple[str, ...] = ("*",)
    """Which of them: ends of official names (`q_proj`, `mlp.down_proj`) or patterns (`*.layers.1?.*`)."""
    dora: bool = False
    """Learn every row's length apart from its direction."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < float("inf") or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora needs rank >= 1, alpha > 0 and 0 <= dropout < 1, got rank={self.rank}, alpha={self.alpha}, "
                f"dropout={self.dropout}"
            )
        if not self.parts or not self.targets:
            # Without adapters all weights would learn.
            raise ValueError(
                f"lora adapts nothing: parts={list(self.parts)}, targets={list(self.targets)}; name some, or leave "
                "lora out to train the weights themselves"
            )


@dataclass(frozen=True)
class Target:
    """One official linear module, and the rows of ours that it is."""

    name: str
    """Official module name of the old generation: `model.layers.0.self_attn.q_proj`."""
    layer: str
    """Our layer: `decoder.layers.0.qkv`."""
    start: int
    """First row."""
    part: Part


@final
class Adapter(nn.Module):
    """The addition to one official module: `scale * B A`, with A [r, in] and B [out, r] in our order of rows."""

    def __init__(self, weight: Tensor, target: Target, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        rows, inputs = target.part.rows, weight.shape[1]
        options = {"device": weight.device, "dtype": weight.dtype}
        bound = inputs**-0.5  # PEFT's: kaiming_uniform with a = sqrt(5)
        start_RI = torch.empty(config.rank, inputs).uniform_(-bound, bound, generator=generator)
        self.target = target
        self.scale = config.alpha / config.rank
        self.a = nn.Parameter(start_RI.to(**options))
        self.b = nn.Parameter(torch.zeros(rows, config.rank, **options))
        length_O = weight[target.start : target.start + rows].detach().float().norm(dim=1)
        self.magnitude = nn.Parameter(length_O.to(weight.dtype)) if config.dora else None

    def weight(self, base_OI: Tensor) -> Tensor:
        """The official module's rows with the addition, computed in float32."""
        sum_OI = base_OI.float() + self.scale * (self.b.float() @ self.a.float())
        if self.magnitude is not None:
            sum_OI = sum_OI * (self.magnitude.float() / sum_OI.norm(dim=1))[:, None]
        return sum_OI

    def forward(self, dropped_TI: Tensor, base_OI: Tensor) -> Tensor:
        """What is added to the base layer's output [T, out]."""
        low_TO = self.scale * F.linear(F.linear(dropped_TI, self.a), self.b)
        if self.magnitude is None:
            return low_TO
        # The length is taken as a constant in the gradient, as DoRA's authors do (section 4.3).
        length_O = (base_OI + self.scale * (self.b @ self.a)).detach().norm(dim=1)
        turn_O = self.magnitude / length_O
        return (turn_O - 1) * F.linear(dropped_TI, base_OI) + turn_O * low_TO


@final
class LoraLinear(nn.Linear):
    """The base layer's own parameters, and adapters for some or all of the official modules it is made of."""

    def __init__(self, base: nn.Linear, adapters: Sequence[Adapter], dropout: float) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make new parameters
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.parts = base.parts if isinstance(base, FusedLinear) else None
        self.lora = nn.ModuleList(adapters)
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:
        out_TO = F.linear(input, self.weight, self.bias)
        dropped_TI = F.dropout(input, self.dropout, self.training)
        pieces, at = [], 0
        for adapter in self.lora:
            assert isinstance(adapter, Adapter)
            start, rows = adapter.target.start, adapter.target.part.rows
            pieces.append(out_TO[..., at:start])
            base_OI = self.weight[start : start + rows]
            pieces.append(out_TO[..., start : start + rows] + adapter(dropped_TI, base_OI))
            at = start + rows
        return torch.cat([*pieces, out_TO[..., at:]], dim=-1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer with the additions in its weight."""
        for adapter in self.lora:
            assert isinstance(adapter, Adapter)
            rows_OI = self.weight[adapter.target.start : adapter.target.start + adapter.target.part.rows]
            rows_OI.copy_(adapter.weight(rows_OI))
        with torch.device("meta"):
            plain = (
                FusedLinear(self.in_features, self.parts, self.bias is not None)
                if self.parts
                else nn.Linear(self.in_features, self.out_features, self.bias is not None)
            )
        plain.weight, plain.bias = self.weight, self.bias
        return plain


def targets_of(model: VisionLanguageModel) -> tuple[Target, ...]:
    """Every official linear module that can be adapted, in the order of the model.

    Not among them: what is no linear module in the official code (Qwen-VL's `attn_pool.attn` and `proj`).
    """
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = []
    for entry in family_of(model).entries(_plain_view(model)):
        layer, _, leaf = entry.ours.rpartition(".")
        if leaf != "weight" or layer not in linear or not layer.startswith(_BLOCKS) or layer in _NO_LINEAR_THERE:
            continue
        start = 0
        for part in entry.parts:
            if part.layout != "transposed" and part.name.endswith(".weight"):
                found.append(Target(part.name.removesuffix(".weight"), layer, start, part))
            start += part.rows
    return tuple(found)


def chosen_targets(model: VisionLanguageModel, config: LoraConfig) -> tuple[Target, ...]:
    """The targets that `config` names.

    Raises:
        ValueError: a pattern, or a part, that names none.
    """
    every = [t for t in targets_of(model) if where_of(t.layer) in config.parts]
    for pattern in config.targets:
        if not any(_names(pattern, t.name) for t in every):
            known = ", ".join(sorted({t.name.rsplit(".", 1)[1] for t in every}))
            raise ValueError(
                f"lora.targets: {pattern!r} names no layer of the parts {', '.join(config.parts)}; the layers' names "
                f"there end in {known or '(there are none)'}"
            )
    return tuple(t for t in every if any(_names(pattern, t.name) for pattern in config.targets))


def where_of(name: str) -> Where:
    """The part of the model that a layer or parameter of ours belongs to."""
    if name.startswith(("visual.merger.", "visual.adapter.")):
        return "merger"
    return "vision" if name.startswith("visual.") else "text"


def add_lora(
    model: VisionLanguageModel, config: LoraConfig, seed: int = 0, targets: Sequence[Target] | None = None
) -> None:
    """Exchanges layers of `model` for adapted ones that, so far, compute the same (B is zero).

    Args:
        targets: None = those that `config` names.

    Raises:
        ValueError: the model has adapters already, or `config` names nothing.
    """
    if has_lora(model):
        raise ValueError("the model has adapters already; merge them first (merge_lora)")
    generator = torch.Generator().manual_seed(seed)
    by_layer: dict[str, list[Adapter]] = {}
    for target in chosen_targets(model, config) if targets is None else targets:
        layer = model.get_submodule(target.layer)
        assert isinstance(layer, nn.Linear)
        by_layer.setdefault(target.layer, []).append(Adapter(layer.weight, target, config, generator))
    for name, adapters in by_layer.items():
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        adapters.sort(key=lambda adapter: adapter.target.start)
        _put(model, name, LoraLinear(base, adapters, config.dropout))


def merge_lora(model: VisionLanguageModel) -> None:
    """Adds the adapters to the weights, in float32, and takes them away. A model without adapters stays as it is."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLinear):
            _put(model, name, layer.merged())


def adapters(model: nn.Module) -> Iterator[Adapter]:
    """The adapters of a model, in its order."""
    return (module for module in model.modules() if isinstance(module, Adapter))


def has_lora(model: nn.Module) -> bool:
    return next(adapters(model), None) is not None


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is one of an adapter's."""
    return ".lora." in name


def _names(pattern: str, name: str) -> bool:
    return name.endswith(f".{pattern}") or fnmatchcase(name, pattern)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer.train(model.training))


def _plain_view(model: VisionLanguageModel) -> VisionLanguageModel:
    """The same model without memory and without adapters: tables of names are made from it."""
    return hollow(model.config)
