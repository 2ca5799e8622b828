"""Text only: the scene is told in words and boxes, then asked about like a picture.

Knows: how to tell a scene. Teaches a random language model reading, copying and comparing coordinates before it sees.
Does not know: pixels.
"""

from __future__ import annotations

from typing import final

from qvl.data.world import facts
from qvl.data.world.compose import Composer
from qvl.data.world.config import Split
from qvl.data.world.interview import Interview
from qvl.data.world.phrases import at_place
from qvl.data.world.questions import Asker, box_text, colour_name
from qvl.data.world.scene import COLOURS, Scene
from qvl.data.world.story import Activity, Story, scene_meta
from qvl.text.grounding import ref

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
