"""Text only: the scene is told, as a description or as a grid of words, then asked about like a picture.

Knows: how to tell a scene. Teaches a random language model reading, copying and comparing coordinates before it sees.
Does not know: pixels.
"""

from __future__ import annotations

from typing import final

import numpy as np

from qvl.data.world import facts
from qvl.data.world.compose import Composer
from qvl.data.world.config import Split
from qvl.data.world.interview import Interview
from qvl.data.world.phrases import at_place
from qvl.data.world.questions import Asker, box_text, colour_name
from qvl.data.world.scene import COLOURS, Scene
from qvl.data.world.story import Activity, Story, scene_meta
from qvl.text.grounding import ref
from qvl.text.messages import WordPicture

CELL_PX = 28
"""Side of the square that a vision token of Qwen2-VL stands for."""
_COVER = (0.2, 0.5)
"""A square names an object that covers more of it than a threshold from this range, drawn once per picture: how much
of an object a vision token needs to show it is not known beforehand."""
_ANSWERED_BY_PLACES = frozenset(("caption", "what", "count", "exists", "background", "where"))
"""Questions that a description without boxes answers."""


@final
class Told(Activity):
    """`interview` asks the questions."""

    name = "text"

    def __init__(self, interview: Interview):
        self._interview = interview

    def play(self, split: Split, composer: Composer, asker: Asker, wanted: int) -> Story | None:
        scene = composer.draw(split, asker.rng, pixels=False)
        turns = self._interview.turns(scene, asker, self._interview.draw(asker.rng), wanted)
        if not turns:
            return None
        with_boxes = asker.coin() or any(turn.task not in _ANSWERED_BY_PLACES for turn in turns)
        return Story(tuple(turns), (), _tell(scene, asker, with_boxes), scene_meta(scene))


def _tell(scene: Scene, asker: Asker, with_boxes: bool) -> str:
    """Names in random order with boxes, places in words or both."""
    with_places = not with_boxes or asker.coin()
    things = []
    for number in asker.rng.permutation(len(scene.objects)):
        placed = scene.objects[int(number)]
        thing = asker.a(placed.concept)
        if with_boxes:
            thing = ref(thing) + box_text(scene, placed)
        if with_places:
            thing = asker.say("at", thing=thing, place=at_place(asker.language, facts.cell(scene, placed)))
        things.append(thing)
    words = asker.say("text_scene", things=asker.say("join").join(things))
    if scene.background in COLOURS:
        words += asker.say("text_background", colour=colour_name(scene.background, asker.language))
    return words


def in_words(scene: Scene, rng: np.random.Generator, side: int = 0) -> WordPicture:
    """The scene as a grid: each cell holds the English name of the object that covers it, or the background's.

    Args:
        side: cells a side; 0 = one for every 28 pixels.
    """
    height, width = grid_hw(scene.hw, side)
    words = np.full((height, width), scene.background, dtype=object)
    most_HW = np.full((height, width), rng.uniform(*_COVER))
    for placed in scene.objects:
        x1, y1, x2, y2 = placed.box_px
        cover_HW = np.outer(_cover(y1, y2, scene.hw[0], height), _cover(x1, x2, scene.hw[1], width))
        words[cover_HW > most_HW] = placed.concept.en
        most_HW = np.maximum(most_HW, cover_HW)
    return WordPicture(tuple(map(tuple, words)))


def grid_hw(hw: tuple[int, int], side: int = 0) -> tuple[int, int]:
    """Rows and columns of the grid that tells a picture of `hw` pixels."""
    return (side, side) if side else (hw[0] // CELL_PX, hw[1] // CELL_PX)


def _cover(begin: int, end: int, length: int, cells: int) -> np.ndarray:
    """Share of each of the cells along a side of `length` that lies between `begin` and `end` (all in pixels)."""
    edges = np.arange(cells + 1) * (length / cells)
    return np.clip(np.minimum(end, edges[1:]) - np.maximum(begin, edges[:-1]), 0, None) * (cells / length)
