"""A model without memory: names, shapes and structure.

Knows: how torch builds a module whose tensors have no values. Does not know: where values will come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch.overrides import TorchFunctionMode

from qvl.models.registry import build_model
from qvl.models.vlm import VisionLanguageModel, VLMConfig

_FILLS = frozenset(("normal_", "uniform_", "trunc_normal_", "fill_", "zero_"))


def hollow(config: VLMConfig) -> VisionLanguageModel:
    """The model of `config` on the meta device."""
    with torch.device("meta"), _Unfilled():
        return build_model(config)


@final
class _Unfilled(TorchFunctionMode):
    """Constructors' first values are not computed. There is no memory to hold them, and still torch would be busy: its
    `normal_` without values alone imports modules for over a second."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__name__", "") not in _FILLS:
            return func(*args, **named)
        return args[0] if args else named["tensor"]  # as `torch.nn.init` calls it
