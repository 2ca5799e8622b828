"""The suite for the embedded world.

Knows: which tasks the world can ask and which names it uses. Does not know: models, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qvl.data.records import Sample
from qvl.data.world import World, WorldConfig
from qvl.data.world.catalogue import default_catalogue
from qvl.data.world.config import Split
from qvl.evals.metrics.names import NameFinder
from qvl.evals.tasks.answers import Clips, Compare, Dialogue, Naming, Ocr, Told, Vqa
from qvl.evals.tasks.base import Task
from qvl.evals.tasks.caption import Caption, GroundedCaption
from qvl.evals.tasks.grounding import Grounding


def world_suite(config: WorldConfig) -> tuple[Task, ...]:
    """Every task of the embedded world; captions know the names of the world's concepts, both languages."""
    names = world_names(config.concepts)
    seen = (Caption(names), GroundedCaption(names), Naming(), Vqa(), Grounding(), Ocr())
    return (*seen, Compare(), Dialogue(), Clips(), Told())


def world_names(concepts: int) -> NameFinder:
    """Finds the first `concepts` objects of the world by English or Chinese name; answers English names."""
    known = default_catalogue().objects[:concepts]
    return NameFinder({c.en: c.en for c in known} | {c.zh: c.en for c in known})


def world_samples(world: World, split: Split, per_kind: int, kinds: Sequence[str] | None = None) -> list[Sample]:
    """`per_kind` samples of every kind of question, all about different scenes.

    Args:
        split: of "train" too (for constant floors) one question each, where the world itself asks several.
        kinds: of `World.tasks`; default: what the world's config gives a weight, that is, what was trained.

    Raises:
        ValueError: an unknown kind, or one that the world's scenes cannot be asked (message of `World.sample`).
    """
    if kinds is None:
        kinds = [kind for kind, weight in world.config.tasks.items() if weight > 0]
    world = World(replace(world.config, turns=1))
    return [
        world.sample(split, number * per_kind + i, kind) for number, kind in enumerate(kinds) for i in range(per_kind)
    ]
