"""What the ranks of a step tell each other, as one vector that one small sum carries.

Knows: which number lies where. Does not know: how it is summed, what is done with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass
class Tally:
    """Sums over packs, and after `add_up` over ranks. The three decisions are the first rank's or anybody's."""

    elapsed: float = 0.0
    """Seconds of the stage by the first rank's clock; the others leave 0."""
    taken: float = 0.0
    """Where the first rank stands in the stream of samples; the others leave 0."""
    save: float = 0.0
    """Above 0: the first rank wants the state saved."""
    stop: float = 0.0
    """Above 0: somebody was asked to stop."""
    loss: float = 0.0
    items: float = 0.0
    """What the loss is divided by: supervised tokens, or whatever the objective counts."""
    tokens: float = 0.0
    samples: float = 0.0
    wait: float = 0.0
    """Seconds that ranks waited for data."""
    flops: float = 0.0
    """What the packs meant to compute, forward and backward."""
    tasks: dict[str, tuple[float, float]] = field(default_factory=dict)
    """(loss, items) per task."""

    def add_task(self, name: str, loss: float, items: float) -> None:
        before = self.tasks.get(name, (0.0, 0.0))
        self.tasks[name] = (before[0] + loss, before[1] + items)

    def vector(self, names: tuple[str, ...]) -> Tensor:
        """float64, exact for counts; `names`: every task there can be, the same on all ranks."""
        assert set(self.tasks) <= set(names), f"{sorted(self.tasks)} are not all in {names}"
        per_task = [number for name in names for number in self.tasks.get(name, (0.0, 0.0))]
        return torch.tensor([*(getattr(self, key) for key in _NUMBERS), *per_task], dtype=torch.float64)

    @classmethod
    def of(cls, vector_X: Tensor, names: tuple[str, ...]) -> Tally:
        """The inverse of `vector`; tasks without items are left out."""
        numbers = vector_X.tolist()
        per_task = numbers[len(_NUMBERS) :]
        pairs = zip(names, per_task[::2], per_task[1::2], strict=True)
        plain = dict(zip(_NUMBERS, numbers, strict=False))
        return cls(**plain, tasks={name: (loss, items) for name, loss, items in pairs if items})


_NUMBERS = tuple(f.name for f in fields(Tally) if f.name != "tasks")
