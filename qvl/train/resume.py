"""Going on from the newest saved state that can be read.

Knows: which state is tried first, what is said about one that is damaged. Does not know: files, the training loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from qvl.train.optim import Optimizers
from qvl.train.ranks import Ranks
from qvl.train.saved import Damaged, Point, Saved, saved_states
from qvl.train.state import load_into, random_states

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from; the model has it already."""

    point: Point
    optimizers: Optimizers | None
    """Of the stage under way; None if one is about to begin."""
    random: Mapping[str, Tensor]
    """States of this lane's random generators; empty if there were fewer lanes."""


def resume(
    checkpoint: Path,
    stages: tuple[str, ...],
    model: nn.Module,
    optimizers_of: Callable[[int], Optimizers],
    ranks: Ranks,
    group: ProcessGroup | None,
) -> Resumed | None:
    """Fills the model, and the optimizers of the stage under way, from a run's newest state; None if there is none.

    A state that is damaged is told in a warning, and the one before it is taken. All ranks call it.

    Args:
        optimizers_of: new optimizers for the stage of this index.
        group: ranks that read together.

    Raises:
        ValueError: no state can be read, or they are those of another recipe.
    """
    found = ranks.from_first(saved_states(checkpoint) if ranks.first else [])
    for saved in found:
        try:
            if isinstance(saved, Damaged):
                raise saved
            _check_same_recipe(saved, stages)
            optimizers = optimizers_of(saved.point.stage) if saved.point.under_way else None
            random = random_states(ranks.lane, ranks.device)
            known = load_into(saved, model, optimizers.all if optimizers else (), random, group)
            return Resumed(saved.point, optimizers, {key: random[key] for key in known})
        except Damaged as error:
            if saved is found[-1]:
                raise ValueError(f"{error}, and there is no older state; delete {checkpoint} to begin anew") from error
            if ranks.first:
                log.warning("%s; going on from the state before it", error)
    return None


def _check_same_recipe(saved: Saved, stages: tuple[str, ...]) -> None:
    if saved.point.stages != stages:
        raise ValueError(
            f"{saved.folder} is of a run with the stages {', '.join(saved.point.stages)}, this recipe has "
            f"{', '.join(stages)}: choose another run folder (--run) or delete that one"
        )
