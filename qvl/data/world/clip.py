"""Short clips: what moves, which way, what comes first, how often.

Knows: moving and showing cut-outs over an even number of frames.
Does not know: files, codecs, sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from qvl.data.world.catalogue import Concept
from qvl.data.world.compose import Composer
from qvl.data.world.config import Split
from qvl.data.world.questions import Asker, Turn
from qvl.data.world.scene import SIZE_STEP, paste
from qvl.data.world.story import Activity, Story
from qvl.text.messages import Video

_TRIES = 400
_WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Actor:
    """An object over time: (top, left) in each frame, None where it is not shown."""

    concept: Concept
    size_px: int
    path_px: tuple[tuple[int, int] | None, ...]

    def box_px(self, composer: Composer, frame: int) -> Box | None:
        """xyxy in this frame, None where it is not shown."""
        place = self.path_px[frame]
        if place is None:
            return None
        x1, y1, x2, y2 = composer.cutouts.get(self.concept, self.size_px).box_px
        return place[1] + x1, place[0] + y1, place[1] + x2, place[0] + y2


@final
class Clip(Activity):
    """One of three kinds of clips, each with its own questions."""

    name = "video"

    def play(self, split: Split, composer: Composer, asker: Asker, wanted: int) -> Story | None:
        rng = asker.rng
        hw = composer.draw_size(rng)
        frames = asker.pick(list(composer.config.video_frames))
        kind = asker.pick(["motion", "order", "times"])
        concepts = [composer.concepts[i] for i in composer.held_out.draw_concepts(split, 1 + (kind != "times"), rng)]
        way = asker.pick(list(_WAYS)) if kind == "motion" else ""
        actors = _stage(split, composer, hw, concepts, way, frames, rng)
        if actors is None or (kind != "times" and len(actors) < 2):
            return None
        first = actors[0]
        box_px = first.box_px(composer, 0)
        assert box_px is not None, "an actor is shown in every frame until a kind of clip hides it"
        layout = composer.layout(box_px, first.size_px, hw)
        turns = {"motion": _motion, "order": _order, "times": _times}[kind]
        actors, asked = turns(actors, asker, way, frames)
        background, colour = composer.background(hw, rng)
        pixels, boxes = _render(background, actors, composer, frames)
        meta = {
            "hw": hw,
            "frames": frames,
            "names": [a.concept.en for a in actors],
            "boxes_px": boxes,
            "background": colour,
            "layout": layout,
            "kind": kind,
        }
        order = rng.permutation(len(asked))[:wanted]
        return Story(tuple(asked[int(i)] for i in order), (Video(pixels),), "", meta)


def _stage(
    split: Split,
    composer: Composer,
    hw: tuple[int, int],
    concepts: list[Concept],
    way: str,
    frames: int,
    rng: np.random.Generator,
) -> list[Actor] | None:
    """Places each concept; the first moves `way` over the clip, the others stand clear of its whole path."""
    low, high = composer.config.object_size
    actors: list[Actor] = []
    blocked: list[Box] = []
    for concept in concepts:
        for _ in range(_TRIES):
            size = max(SIZE_STEP, round(rng.uniform(low, (low + high) / 2) * min(hw) / SIZE_STEP) * SIZE_STEP)
            cutout = composer.cutouts.get(concept, size)
            height, width = cutout.keep_HW3.shape[:2]
            free = hw[0] - height, hw[1] - width
            start = int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))
            dy, dx = _WAYS[way] if way and not actors else (0, 0)
            step = rng.uniform(0.35, 0.6) * min(hw)
            end = round(start[0] + dy * step), round(start[1] + dx * step)
            if not (0 <= end[0] <= free[0] and 0 <= end[1] <= free[1]):
                continue
            x1, y1, x2, y2 = cutout.box_px
            box = start[1] + x1, start[0] + y1, start[1] + x2, start[0] + y2
            if not actors and composer.held_out.split_of_layout(*composer.layout(box, size, hw)) != split:
                continue
            swept = (
                min(start[1], end[1]),
                min(start[0], end[0]),
                max(start[1], end[1]) + width,
                max(start[0], end[0]) + height,
            )
            if any(swept[0] < b[2] and b[0] < swept[2] and swept[1] < b[3] and b[1] < swept[3] for b in blocked):
                continue
            blocked.append(swept)
            path = [
                (round(start[0] + (end[0] - start[0]) * t), round(start[1] + (end[1] - start[1]) * t))
                for t in np.linspace(0, 1, frames)
            ]
            actors.append(Actor(concept, size, tuple(path)))
            break
        else:
            return None
    return actors


def _motion(actors: list[Actor], asker: Asker, way: str, frames: int) -> tuple[list[Actor], list[Turn]]:
    moving = actors[0].concept
    about = {"kind": "motion", "name": moving.en, "way": way}
    return actors, [
        _turn(asker.say("moves_what"), asker.thing(moving), asker, {**about, "asked": "what"}),
        _turn(
            asker.say("moves_where", the=asker.the(moving)), asker.say(f"moves_{way}"), asker, {**about, "asked": "way"}
        ),
    ]


def _order(actors: list[Actor], asker: Asker, way: str, frames: int) -> tuple[list[Actor], list[Turn]]:
    """The first one is there from the start or soon after, the other comes at least two frames later; both stay."""
    first, second = actors if asker.coin() else actors[::-1]
    begin = int(asker.rng.integers(0, frames // 2))
    later = int(asker.rng.integers(begin + 2, frames))
    shown = [_shown(first, range(begin, frames)), _shown(second, range(later, frames))]
    a, b = (first, second) if asker.coin() else (second, first)
    text = asker.say("first", a=asker.the(a.concept), b=asker.the(b.concept))
    about = {"kind": "order", "name": first.concept.en}
    return shown, [_turn(text, asker.thing(first.concept), asker, about)]


def _times(actors: list[Actor], asker: Asker, way: str, frames: int) -> tuple[list[Actor], list[Turn]]:
    """Shown for two frames, gone for two: pairs of frames share a patch, so a gap is never inside one."""
    pairs = frames // 2
    times = int(asker.rng.integers(1, (pairs + 1) // 2 + 1))
    starts = sorted(int(i) for i in asker.rng.permutation(pairs - times + 1)[:times])
    visible = {2 * (s + gap) + f for gap, s in enumerate(starts) for f in (0, 1)}
    name = actors[0].concept
    about = {"kind": "times", "name": name.en, "times": times}
    return [_shown(actors[0], visible)], [_turn(asker.say("times", the=asker.the(name)), str(times), asker, about)]


def _shown(actor: Actor, visible: Any) -> Actor:
    path = tuple(p if t in visible else None for t, p in enumerate(actor.path_px))
    return Actor(actor.concept, actor.size_px, path)


def _render(
    background: np.ndarray, actors: list[Actor], composer: Composer, frames: int
) -> tuple[list[np.ndarray], list[list[Box | None]]]:
    """Frames (uint8 [H, W, 3] each) and, per frame, each actor's box in pixels (None where it is not shown)."""
    pictures, boxes = [], []
    for frame in range(frames):
        picture = background.copy()
        for actor in actors:
            place = actor.path_px[frame]
            if place is not None:
                paste(picture, composer.cutouts.get(actor.concept, actor.size_px), *place)
        pictures.append(picture)
        boxes.append([actor.box_px(composer, frame) for actor in actors])
    return pictures, boxes


def _turn(text: str, answer: str, asker: Asker, about: dict[str, Any]) -> Turn:
    return Turn("video", asker.question(text), asker.answer(answer), about)
