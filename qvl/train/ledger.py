"""The books of a step on tensors that have shapes and no memory: every storage that is alive, and what it is for.

Knows: when storages are born and die, which module they are computed in. Does not know: training, parts of a device.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qvl.models.vlm import VisionLanguageModel
from qvl.train.heap import Heap

Phase = Literal["forward pass", "backward pass", "optimizer step"]
COPIES = "copies of weights"
_SOUGHT = torch.ops.aten.nonzero.default
_CAST = torch.ops.aten._to_copy.default


@final
class Ledger(TorchDispatchMode):
    """Every storage that is alive, its bytes and what it is for."""

    def __init__(self, labelled: int, heap: Heap | None = None) -> None:
        """
        Args:
            labelled: how many labels are found where labels are looked for (there are no values to look at).
            heap: where storages lie, if they lie in one.
        """
        super().__init__()
        self.purpose = "model"
        self._labelled = labelled
        self._held: dict[int, tuple[int, str, int]] = {}
        """Storage -> bytes, purpose, block of the heap."""
        self._heap = heap
        self._now = self._peak = 0
        self._most = self._most_held = 0
        self._weights: set[int] = set()
        self._outer: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _SOUGHT:
            out = torch.empty(self._labelled, args[0].ndim, dtype=torch.long)
        else:
            out = func(*args, **(kwargs or {}))
        cast = func is _CAST and _key(args[0]) in self._weights
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._enter(leaf, COPIES if cast else self.purpose)
        return out

    def _enter(self, tensor: Tensor, purpose: str) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._held:
            return
        self._held[key] = storage.nbytes(), purpose, self._heap.take(storage.nbytes()) if self._heap else 0
        self._now += storage.nbytes()
        self._peak = max(self._peak, self._now)
        self._most = max(self._most, self._now)
        self._most_held = max(self._most_held, self._heap.held if self._heap else self._now)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        size, _, block = self._held.pop(key)
        self._now -= size
        if self._heap:
            self._heap.give(block)

    @property
    def slack(self) -> int:
        """By how much the most that the heap held was more than the most that the storages were."""
        return self._most_held - self._most

    def follow(self, model: VisionLanguageModel) -> None:
        """Books what a part computes to that part, and smaller copies of the weights apart."""
        self._weights = {_key(p) for p in model.parameters()}
        bridges = (m for name, m in model.visual.named_children() if name in ("merger", "adapter"))
        for module, part in ((model.visual, "vision"), *((m, "merger") for m in bridges)):
            module.register_forward_pre_hook(partial(self._enter_part, part))
            module.register_forward_hook(self._leave_part)

    def _enter_part(self, part: str, *_: Any) -> None:
        self._outer.append(self.purpose)
        self.purpose = part

    def _leave_part(self, *_: Any) -> None:
        self.purpose = self._outer.pop()

    @contextmanager
    def counts(self, purpose: str) -> Iterator[None]:
        before, self.purpose = self.purpose, purpose
        yield
        self.purpose = before

    @contextmanager
    def phase(self, name: Phase, peaks: dict[Phase, int]) -> Iterator[None]:
        """Notes the most that is held in the meantime."""
        self._peak = self._now
        with self.counts("text" if name == "forward pass" else name):
            yield
        peaks[name] = max(self._peak, peaks.get(name, 0))

    def held_by_purpose(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for size, purpose, _ in self._held.values():
            held[purpose] += size
        return held


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
