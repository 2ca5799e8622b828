"""Questions about one scene and their true, short answers.

Knows: each task's formats (Qwen-VL's seven stage-2 formats in the `pretrain` style) and when it can be asked.
Does not know: how scenes are drawn or samples put together.

`pretrain`: "What is on the left? Answer:" -> " dog" (published targets start with a space; Chinese ones have none);
`<ref>the dog</ref>` -> `<box>`; `<ref>This</ref><box> is` -> " a dog". `chat`: plain questions, no leading space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from qvl.data.world import facts
from qvl.data.world.catalogue import Concept
from qvl.data.world.config import Style
from qvl.data.world.phrases import at_place, say
from qvl.data.world.scene import COLOURS, Placed, Scene
from qvl.text.grounding import Coordinates, box, ref


@dataclass(frozen=True)
class Turn:
    """One question and its answer. `about` holds what a checker needs to recompute the answer."""

    task: str
    question: str
    answer: str
    """As supervised, with the leading space of the pretrain style."""
    about: dict[str, Any] = field(default_factory=dict)
    boxes_px: tuple[tuple[int, int, int, int], ...] = ()
    """True boxes where the answer is a place."""


@dataclass(frozen=True)
class Asker:
    """All a question needs besides the scene."""

    language: str
    style: Style
    rng: np.random.Generator
    concepts: tuple[Concept, ...]
    """Every concept of the world: absent ones for "is there ..."."""

    def say(self, key: str, **values: str) -> str:
        return say(self.language, key, **values)

    def a(self, concept: Concept) -> str:
        """ "a dog"; Chinese has no article."""
        return concept.zh if self.language == "zh" else concept.en_phrase

    def the(self, concept: Concept) -> str:
        return concept.zh if self.language == "zh" else f"the {concept.en}"

    def name(self, concept: Concept) -> str:
        return concept.name(self.language)

    def thing(self, concept: Concept) -> str:
        """A thing as the whole answer: "dog" after "Answer:", "a dog" in a conversation.

        So an English name follows a space wherever it stands, and is the same tokens everywhere; `word` likewise.
        """
        return self.a(concept) if self.style == "chat" else self.name(concept)

    def word(self, task: str, word: str) -> str:
        """A colour, side or place as the whole answer: "blue" after "Answer:", "it is blue" in a conversation."""
        return self.say(f"says_{task}", word=word) if self.style == "chat" else word

    def prompt(self, key: str) -> str:
        """A prompt that has its own wording in chat."""
        return self.say(f"{key}_chat" if self.style == "chat" else key)

    def question(self, text: str) -> str:
        return self.say("answer", question=text) if self.style == "pretrain" else text

    def answer(self, text: str) -> str:
        return f" {text}" if self.style == "pretrain" and self.language == "en" else text

    def coin(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def pick(self, items: list[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]


class Question(ABC):
    """A kind of question about one scene."""

    name: str

    @abstractmethod
    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        """A turn, or None where the scene gives no clear answer."""


def box_1000(scene: Scene, placed: Placed) -> tuple[int, int, int, int]:
    """The object's box in [0, 1000)."""
    return Coordinates(scene.hw, scene.hw).box_px_to_1000(placed.box_px)


def box_text(scene: Scene, placed: Placed) -> str:
    return box(box_1000(scene, placed))


@final
class Caption(Question):
    """All objects with their places or their relation; sometimes detailed, which adds the background.

    `grounded`: with the boxes (then the task is "caption_grounded" and never detailed).
    """

    def __init__(self, *, grounded: bool = False):
        self.name = "caption_grounded" if grounded else "caption"
        self.grounded = grounded

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        detailed = not self.grounded and asker.rng.random() < 0.25
        prompt = self.name + ("_detailed" if detailed else "")
        things = asker.answer(self._things(scene, asker, detailed))
        if detailed and scene.background in COLOURS:
            colour = colour_name(scene.background, asker.language)
            things = asker.say("detailed", things=things, colour=colour)
        elif detailed:
            things = asker.say("photo", things=things)
        boxes = tuple(o.box_px for o in scene.objects) if self.grounded else ()
        return Turn(self.name, asker.prompt(prompt), things, {"detailed": detailed}, boxes)

    def _things(self, scene: Scene, asker: Asker, detailed: bool) -> str:
        order = sorted(scene.objects, key=lambda o: scene.centre(o)[1])
        if len(order) == 2 and not detailed:
            (y1, x1), (y2, x2) = map(scene.centre, order)
            if x2 - x1 >= abs(y2 - y1):
                return asker.say(
                    "left_of", a=self._thing(scene, order[0], asker), b=self._thing(scene, order[1], asker)
                )
            order.sort(key=lambda o: scene.centre(o)[0])
            return asker.say("above_of", a=self._thing(scene, order[0], asker), b=self._thing(scene, order[1], asker))
        placed = (
            asker.say("at", thing=self._thing(scene, o, asker), place=at_place(asker.language, facts.cell(scene, o)))
            for o in order
        )
        return asker.say("join").join(placed)

    def _thing(self, scene: Scene, placed: Placed, asker: Asker) -> str:
        words = asker.a(placed.concept)
        return ref(words) + box_text(scene, placed) if self.grounded else words


@final
class Grounding(Question):
    """Name -> box."""

    name = "grounding"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        known = facts.unique(scene)
        if not known:
            return None
        placed = asker.pick(known)
        return _grounded(self.name, asker.the(placed.concept), placed, scene, asker, {"name": placed.concept.en})


@final
class Referring(Question):
    """Description by place, relation or extreme -> box."""

    name = "referring"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        described = self._described(scene, asker)
        if not described:
            return None
        words, placed = asker.pick(described)
        return _grounded(self.name, words, placed, scene, asker, {"words": words})

    def _described(self, scene: Scene, asker: Asker) -> list[tuple[str, Placed]]:
        found = []
        for placed in scene.objects:
            if facts.alone(scene, placed):
                where = at_place(asker.language, facts.cell(scene, placed))
                found.append((asker.say("object", place=where), placed))
        if len(scene.objects) == 1:
            return found
        for key, placed in (
            ("ref_biggest", facts.by_size(scene, 1)),
            ("ref_smallest", facts.by_size(scene, -1)),
            ("ref_leftmost", facts.extreme(scene, 1, -1)),
            ("ref_rightmost", facts.extreme(scene, 1, 1)),
            ("ref_topmost", facts.extreme(scene, 0, -1)),
            ("ref_lowest", facts.extreme(scene, 0, 1)),
        ):
            if placed is not None:
                found.append((asker.say(key), placed))
        for anchor in facts.unique(scene):
            found += self._beside(scene, anchor, asker)
        return found

    def _beside(self, scene: Scene, anchor: Placed, asker: Asker) -> list[tuple[str, Placed]]:
        others = [o for o in scene.objects if o is not anchor]
        found = []
        for relation in (facts.horizontal, facts.vertical):
            sides = [relation(scene, o, anchor) for o in others]
            if None in sides:
                continue
            for side in dict.fromkeys(sides):
                if sides.count(side) == 1:
                    words = asker.say(f"ref_{side}", the=asker.the(anchor.concept))
                    found.append((words, others[sides.index(side)]))
        return found


@final
class BoxToName(Question):
    """Box -> name (the papers' grounded caption)."""

    name = "box_to_name"

    def ask(self, scene: Scene, asker: Asker) -> Turn | None:
        placed = asker.pick(list(scene.objects))
        where = box_text(scene, placed)
        if asker.style == "pretrain":
            prompt = ref(asker.say("this")) + where + asker.say("is")
        else:
            prompt = asker.say("box_to_name_chat", box=where)
        about = {"box_px": placed.box_px, "name": placed.concept.en}
        return Turn(self.name, prompt, asker.answer(asker.a(placed.concept)), about)


def _grounded(task: str, words: str, placed: Placed, scene: Scene, asker: Asker, about: dict[str, Any]) -> Turn:
    where = box_text(scene, placed)
    if asker.style == "pretrain":
        return Turn(task, ref(words), where, about, (placed.box_px,))
    return Turn(task, asker.say("grounding_chat", the=words), ref(words) + where, about, (placed.box_px,))


def colour_name(background: str, language: str) -> str:
    """A background's name in the language."""
    return COLOURS[background][0] if language == "zh" else background
