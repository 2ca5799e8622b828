"""Asks several questions about one scene.

Knows: the questions and their weights.
Does not know: how scenes are drawn, whether the scene is shown or told.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np

from qvl.data.world.questions import Asker, BoxToName, Caption, Grounding, Question, Referring, Turn
from qvl.data.world.scene import Scene
from qvl.data.world.vqa import (
    AboveBelow,
    Background,
    Bigger,
    Count,
    CountSame,
    Exists,
    LeftRight,
    What,
    Where,
)

QUESTIONS: tuple[Question, ...] = (
    Caption(),
    Caption(grounded=True),
    Grounding(),
    Referring(),
    BoxToName(),
    What(),
    Count(),
    CountSame(),
    Exists(),
    Background(),
    LeftRight(),
    AboveBelow(),
    Where(),
    Bigger(),
)


class Draw:
    """Draws names by weight."""

    def __init__(self, weights: Mapping[str, float]):
        self.names = [name for name, weight in weights.items() if weight > 0]
        values = np.asarray([weights[name] for name in self.names], dtype=np.float64)
        self._cumulative: list[float] = np.cumsum(values / values.sum())[:-1].tolist()

    def __call__(self, rng: np.random.Generator) -> str:
        return self.names[bisect_right(self._cumulative, rng.random())]


class Interview:
    """`weights`: of question names; all must be known."""

    def __init__(self, weights: Mapping[str, float]):
        self.questions = {q.name: q for q in QUESTIONS}
        self.draw = Draw(weights)

    def turns(self, scene: Scene, asker: Asker, first: str, wanted: int, *, only_first: bool = False) -> list[Turn]:
        """Up to `wanted` different questions, the first of kind `first`; none if the scene cannot be asked that.

        `only_first`: all of them are of that kind.
        """
        turn = self.questions[first].ask(scene, asker)
        if turn is None:
            return []
        turns = {turn.question: turn}
        for _ in range(3 * (wanted - 1)):
            if len(turns) == wanted:
                break
            turn = self.questions[first if only_first else self.draw(asker.rng)].ask(scene, asker)
            if turn is not None:
                turns.setdefault(turn.question, turn)
        return list(turns.values())
