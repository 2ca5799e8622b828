"""Conversations about one picture in which "it" means what was spoken of before, with boxes on both sides.

Knows: what can be asked about the object in focus.
Does not know: single questions (`questions`, `vqa`). Always in chat style: this is material for the last stage.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

from qvl.data.world import facts
from qvl.data.world.compose import Composer
from qvl.data.world.config import Split
from qvl.data.world.questions import Asker, Caption, Turn, box_text
from qvl.data.world.scene import Placed, Scene
from qvl.data.world.story import Activity, Story, scene_meta
from qvl.data.world.vqa import where_words
from qvl.text.grounding import ref
from qvl.text.messages import Image

LEAST_TURNS = 3


@final
class Dialogue(Activity):
    """Opens with a caption half the time; then for one object after the other: point at it, ask about "it"."""

    name = "dialogue"

    def play(self, split: Split, composer: Composer, asker: Asker, wanted: int) -> Story | None:
        scene = composer.draw(split, asker.rng, repeat=False)
        asker = replace(asker, style="chat")
        wanted = max(LEAST_TURNS, wanted)
        turns: list[Turn] = []
        if asker.coin() and (turn := Caption().ask(scene, asker)):
            turns.append(turn)
        for number in asker.rng.permutation(len(scene.objects)):
            focus = scene.objects[int(number)]
            turns.append(_point(scene, focus, asker))
            follow_ups = _follow_ups(scene, focus, asker)
            order = asker.rng.permutation(len(follow_ups))[: int(asker.rng.integers(1, 4))]
            turns += [follow_ups[int(i)] for i in order]
        turns = turns[:wanted]
        if len(turns) < 2:
            return None
        return Story(
            tuple(replace(t, task=self.name) for t in turns), (Image(scene.pixels_HW3),), "", scene_meta(scene)
        )


def _point(scene: Scene, focus: Placed, asker: Asker) -> Turn:
    """Name -> box, or box -> name and box."""
    where = box_text(scene, focus)
    about = {"kind": "point", "name": focus.concept.en}
    if asker.coin():
        words = asker.the(focus.concept)
        return Turn("dialogue", asker.say("find", the=words), ref(words) + where, about, (focus.box_px,))
    return Turn(
        "dialogue", asker.say("this_box", box=where), ref(asker.a(focus.concept)) + where, about, (focus.box_px,)
    )


def _follow_ups(scene: Scene, focus: Placed, asker: Asker) -> list[Turn]:
    """All that can clearly be asked about "it"."""
    turns = []

    def add(kind: str, key: str, answer: str, boxes: tuple = (), **values: str) -> None:
        about: dict[str, Any] = {"kind": kind, "name": focus.concept.en, "key": key}
        turns.append(Turn("dialogue", asker.say(key, **values), answer, about, boxes))

    if facts.cell_is_clear(scene, focus):
        add("where", "it_where", where_words(scene, focus, asker))
    for other in scene.objects:
        if other is focus:
            continue
        b = asker.the(other.concept)
        if side := facts.horizontal(scene, focus, other):
            add("left_right", "it_left_right", asker.word("left_right", asker.say(side)), b=b)
        if side := facts.vertical(scene, focus, other):
            add("above_below", "it_above_below", asker.word("above_below", asker.say(side)), b=b)
        if facts.is_bigger(focus, other) or facts.is_bigger(other, focus):
            add("bigger", "it_bigger", asker.say("yes" if facts.is_bigger(focus, other) else "no"), b=b)
    for relation in (facts.horizontal, facts.vertical):
        sides = {o.concept.key: relation(scene, o, focus) for o in scene.objects if o is not focus}
        for side in {s for s in sides.values() if s}:
            beside = [o for o in scene.objects if sides.get(o.concept.key) == side]
            if len(beside) == 1 and None not in sides.values():
                found = beside[0]
                answer = ref(asker.a(found.concept)) + box_text(scene, found)
                add("beside", f"it_{side}", answer, (found.box_px,))
    return turns
