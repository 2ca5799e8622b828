"""Questions with answers of one or two words: what, how many, is there, which colour, which side, where, which one.

Knows: what each asks and when the answer is clear.
Does not know: how scenes are drawn.
"""

from __future__ import annotations

from typing import Any, final

from qvl.data.world import facts
from qvl.data.world.catalogue import Concept
from qvl.data.world.phrases import at_place, place
from qvl.data.world.questions import Asker, Question, Turn
from qvl.data.world.scene import COLOURS, Placed, Scene


@final
class What(Question):
    """Place -> name, where one object alone is in that part of the picture."""

    name = "what"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        alone = [o for o in scene.objects if facts.alone(scene, o)]
        if not alone:
            return None
        placed = asker.pick(alone)
        cell = facts.cell(scene, placed)
        text = asker.say("what", place=at_place(asker.language, cell))
        return _turn(self.name, text, asker.thing(placed.concept), asker, {"cell": cell, "name": placed.concept.en})


@final
class Count(Question):
    name = "count"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        return _turn(self.name, asker.say("count"), str(len(scene.objects)), asker, {})


@final
class CountSame(Question):
    """How often one concept is there; asked of scenes that repeat one, half the time of an object that does not."""

    name = "count_same"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        kinds = list(dict.fromkeys(o.concept for o in scene.objects))
        if len(kinds) == len(scene.objects):
            return None
        concept = asker.pick(kinds)
        number = sum(o.concept == concept for o in scene.objects)
        text = asker.say("count_same", the=asker.the(concept))
        return _turn(self.name, text, str(number), asker, {"name": concept.en})


@final
class Exists(Question):
    """Yes or no, 50 : 50; half of the absent ones are of the same kind as something that is there."""

    name = "exists"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        present = asker.coin()
        concept = asker.pick(list(scene.objects)).concept if present else self._absent(scene, asker)
        text = asker.say("exists", a=asker.a(concept))
        return _turn(self.name, text, asker.say("there_is" if present else "there_is_not"), asker, {"name": concept.en})

    def _absent(self, scene: Scene, asker: Asker) -> Concept:
        there = {o.concept.key for o in scene.objects}
        if asker.coin():
            kinds = {o.concept.subgroup for o in scene.objects}
            near = [c for c in asker.concepts if c.subgroup in kinds and c.key not in there]
            if near:
                return asker.pick(near)
        while True:
            concept = asker.concepts[int(asker.rng.integers(len(asker.concepts)))]
            if concept.key not in there:
                return concept


@final
class Background(Question):
    name = "background"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        if scene.background not in COLOURS:
            return None
        colour = COLOURS[scene.background][0] if asker.language == "zh" else scene.background
        return _turn(self.name, asker.say("background"), asker.word(self.name, colour), asker, {})


@final
class LeftRight(Question):
    name = "left_right"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        return _relation(self.name, facts.horizontal, scene, asker)


@final
class AboveBelow(Question):
    name = "above_below"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        return _relation(self.name, facts.vertical, scene, asker)


@final
class Where(Question):
    """Name -> part of the picture."""

    name = "where"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        clear = [o for o in facts.unique(scene) if facts.cell_is_clear(scene, o)]
        if not clear:
            return None
        placed = asker.pick(clear)
        text = asker.say("where", the=asker.the(placed.concept))
        answer = where_words(scene, placed, asker)
        return _turn(self.name, text, answer, asker, {"name": placed.concept.en})


def where_words(scene: Scene, placed: Placed, asker: Asker) -> str:
    """The part of the picture as the whole answer: "top left" after "Answer:", "it is at the top left" in a talk."""
    words = at_place if asker.style == "chat" else place
    return asker.word("where", words(asker.language, facts.cell(scene, placed)))


@final
class Bigger(Question):
    name = "bigger"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        known = facts.unique(scene)
        pairs = [(a, b) for a in known for b in known if facts.is_bigger(a, b)]
        if not pairs:
            return None
        big, small = asker.pick(pairs)
        a, b = (big, small) if asker.coin() else (small, big)
        text = asker.say("bigger", a=asker.the(a.concept), b=asker.the(b.concept))
        about = {"a": a.concept.en, "b": b.concept.en}
        return _turn(self.name, text, asker.thing(big.concept), asker, about)


def _relation(task: str, relation: Any, scene: Scene, asker: Asker) -> Turn | None:
    known = facts.unique(scene)
    pairs: list[tuple[Placed, Placed]] = [(a, b) for a in known for b in known if a is not b and relation(scene, a, b)]
    if not pairs:
        return None
    a, b = asker.pick(pairs)
    text = asker.say(task, a=asker.the(a.concept), b=asker.the(b.concept))
    about = {"a": a.concept.en, "b": b.concept.en}
    return _turn(task, text, asker.word(task, asker.say(relation(scene, a, b))), asker, about)


def _turn(task: str, text: str, answer: str, asker: Asker, about: dict[str, Any]) -> Turn:
    return Turn(task, asker.question(text), asker.answer(answer), about)
