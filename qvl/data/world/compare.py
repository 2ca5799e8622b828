"""Two or three pictures and questions that need all of them.

Knows: drawing scenes that share a concept, naming pictures by their order.
Does not know: single-picture questions.
"""

from __future__ import annotations

from typing import Any, final

from qvl.data.world.compose import Composer
from qvl.data.world.config import Split
from qvl.data.world.questions import Asker, Turn
from qvl.data.world.scene import Scene
from qvl.data.world.story import Activity, Story, scene_meta
from qvl.data.world.told import in_words
from qvl.text.messages import Image


@final
class Compare(Activity):
    """Which picture shows it, is it in every picture, which has the most objects."""

    name = "compare"

    def play(self, split: Split, composer: Composer, asker: Asker, wanted: int) -> Story | None:
        count = 2 + int(asker.rng.random() < 0.35)
        shared = int(asker.rng.integers(len(composer.concepts))) if asker.coin() else None
        told = composer.config.medium == "words"
        scenes = [composer.draw(split, asker.rng, repeat=False, include=shared, pixels=not told) for _ in range(count)]
        turns = [t for t in (_which(scenes, asker), _every(scenes, composer, asker), _most(scenes, asker)) if t]
        if not turns:
            return None
        order = asker.rng.permutation(len(turns))[: max(1, wanted)]
        metas = [scene_meta(scene) for scene in scenes]
        meta = {key: [m[key] for m in metas] for key in metas[0]}
        shown = tuple(
            in_words(s, asker.rng, composer.config.words_side) if told else Image(s.pixels_HW3) for s in scenes
        )
        return Story(tuple(turns[int(i)] for i in order), shown, "", {**meta, "pictures": count})


def _which(scenes: list[Scene], asker: Asker) -> Turn | None:
    """A concept that exactly one picture shows."""
    shown = [{o.concept.en: o.concept for o in s.objects} for s in scenes]
    single = [
        (concept, number)
        for number, names in enumerate(shown)
        for name, concept in names.items()
        if sum(name in other for other in shown) == 1
    ]
    if not single:
        return None
    concept, number = asker.pick(single)
    return _turn(
        "which",
        asker.say("compare_which", the=asker.the(concept)),
        asker.say(f"picture_{number + 1}"),
        asker,
        name=concept.en,
    )


def _every(scenes: list[Scene], composer: Composer, asker: Asker) -> Turn | None:
    """Yes and no equally often: scenes share a concept in half of the stories."""
    shown = [{o.concept.en: o.concept for o in s.objects} for s in scenes]
    common = set.intersection(*(set(names) for names in shown))
    if common:
        name = asker.pick(sorted(common))
    else:
        name = asker.pick(sorted({n for names in shown for n in names}))
    concept = next(names[name] for names in shown if name in names)
    answer = asker.say("there_is" if common else "there_is_not")
    return _turn("every", asker.say("compare_every", the=asker.the(concept)), answer, asker, name=name)


def _most(scenes: list[Scene], asker: Asker) -> Turn | None:
    counts = [len(s.objects) for s in scenes]
    if counts.count(max(counts)) > 1:
        return None
    return _turn("most", asker.say("compare_most"), asker.say(f"picture_{counts.index(max(counts)) + 1}"), asker)


def _turn(kind: str, text: str, answer: str, asker: Asker, **about: Any) -> Turn:
    return Turn("compare", asker.question(text), asker.answer(answer), {"kind": kind, **about})
