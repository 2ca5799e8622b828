"""The embedded world: an endless, seeded source of training and evaluation samples.

Knows: how stories become samples, which splits and tasks there are.
Does not know: tokens, pixel budgets, batches.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from qvl.data.records import Sample
from qvl.data.world.catalogue import Concept, default_catalogue
from qvl.data.world.clip import Clip
from qvl.data.world.compare import Compare
from qvl.data.world.compose import Composer
from qvl.data.world.config import QUESTION_WEIGHTS, Split, WorldConfig
from qvl.data.world.dialogue import Dialogue
from qvl.data.world.interview import QUESTIONS, Draw, Interview
from qvl.data.world.lexicon import lexicon
from qvl.data.world.ocr import Ocr
from qvl.data.world.questions import Asker
from qvl.data.world.story import Activity, Story, scene_meta
from qvl.data.world.told import Told, in_words
from qvl.text.messages import Image, Part

ACTIVITIES: tuple[str, ...] = (Told.name, Ocr.name, Compare.name, Dialogue.name, Clip.name)
_SPLIT_IDS = {split: number for number, split in enumerate(get_args(Split))}
_TRIES = 200


class World:
    """Samples of the world that `config` describes.

    `sample(split, index)` is a pure function of (config, split, index): any process gets the same sample.
    A training sample asks `config.turns` questions about one picture (its task is "mixed" unless all questions have
    the same task); `dev` and `test` samples ask one question each (a dialogue: its last), show only held-out layouts
    and held-out pairs.

    Tasks about one picture: `caption` (sometimes detailed), `caption_grounded` (with boxes), `grounding` (name ->
    box), `referring` (description -> box), `box_to_name`, `what` (place -> name), `where` (name -> place), `count`,
    `count_same`, `exists`, `background`, `left_right`, `above_below`, `bigger`. Tasks with their own material: `text`
    (the scene is told instead of shown), `ocr` (rendered lines, quads), `compare` (two or three pictures), `dialogue`
    (several turns, "it", boxes on both sides), `video` (what moves, which way, what comes first, how often).

    `Sample.meta`: `lang`, `split`, `turns` (task, lang, question, answer, boxes_px, about), `answer` and
    `answer_boxes_px` of the last turn, and the truth of the picture: `hw`, `names`, `boxes_px` (xyxy, per object),
    `boxes_1000`, `background`. `compare` holds a list of each of these, one entry per picture; `video` boxes per
    frame; `ocr` has `lines` with `text` and `quad_px`.

    Raises:
        ValueError: the config names an unknown task.
    """

    tasks: tuple[str, ...] = (*(q.name for q in QUESTIONS), *ACTIVITIES)

    def __init__(self, config: WorldConfig | None = None):
        self.config = config or WorldConfig()
        unknown = set(self.config.tasks) - set(self.tasks)
        if unknown:
            raise ValueError(f"unknown world tasks {sorted(unknown)}; there are {', '.join(self.tasks)}")
        self._composer = Composer(self.config, default_catalogue())
        asked = {name: w for name, w in self.config.tasks.items() if name not in ACTIVITIES and w > 0}
        self._interview = Interview(asked or QUESTION_WEIGHTS)
        told, others = Told(self._interview), (Ocr(), Compare(), Dialogue(), Clip())
        self._activities: dict[str, Activity] = {a.name: a for a in (told, *others)}
        self._draw = Draw(self.config.tasks)

    def __reduce__(self):
        return World, (self.config,)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What can stand in a scene."""
        return self._composer.concepts

    def lexicon(self) -> list[str]:
        """Every name, template, colour, digit and mark the world can say (for `Tokenizer.reduced`)."""
        return lexicon(self.concepts)

    def sample(self, split: Split, index: int, task: str | None = None) -> Sample:
        """Sample `index` of the split; `task` asks only that (default: drawn by the config's weights).

        Raises:
            ValueError: an unknown split or task, a negative index, or a task that the config's scenes cannot be
                asked (such as `left_right` with one object).
        """
        if split not in _SPLIT_IDS:
            raise ValueError(f"split must be one of {', '.join(_SPLIT_IDS)}, got {split!r}")
        if index < 0:
            raise ValueError(f"index must not be negative, got {index}")
        if task is not None and task not in self.tasks:
            raise ValueError(f"unknown world task {task!r}; there are {', '.join(self.tasks)}")
        rng = np.random.default_rng([self.config.seed, _SPLIT_IDS[split], index])
        language = "zh" if rng.random() < self.config.zh else "en"
        asker = Asker(language, self.config.style, rng, self.concepts)
        main = task or self._draw(rng)
        wanted = self.config.turns if split == "train" else 1
        story = self._story(split, asker, main, wanted, only=task is not None)
        name = f"world/{split}/{self.config.seed}/{index}" + (f"/{task}" if task else "")
        if main not in ACTIVITIES and len({t.task for t in story.turns}) > 1:
            main = "mixed"
        return Sample(name, main, story.messages(asker), _meta(story, split, language))

    def _story(self, split: Split, asker: Asker, task: str, wanted: int, *, only: bool) -> Story:
        for _ in range(_TRIES):
            if task in self._activities:
                story = self._activities[task].play(split, self._composer, asker, wanted)
                if story is not None:
                    return story
                continue
            repeat, drawn = (True if task == "count_same" else None), self.config.medium != "words"
            scene = self._composer.draw(split, asker.rng, repeat=repeat, pixels=drawn)
            turns = self._interview.turns(scene, asker, task, wanted, only_first=only)
            if turns:
                shown: list[Part] = [Image(scene.pixels_HW3)] if drawn else []
                if self.config.medium != "pixels":
                    shown.append(in_words(scene, asker.rng, self.config.words_side))
                return Story(tuple(turns), tuple(shown), "", scene_meta(scene))
        raise ValueError(
            f"none of {_TRIES} scenes could be asked {task!r} clearly with objects={self.config.objects} and "
            f"sizes={self.config.sizes}; allow more objects or leave the task out"
        )


def _meta(story: Story, split: Split, language: str) -> dict[str, Any]:
    last = story.turns[-1]
    return {
        **story.meta,
        "split": split,
        "lang": language,
        "answer": last.answer.strip(),
        "answer_boxes_px": list(last.boxes_px),
        "turns": [
            {
                "task": turn.task,
                "lang": language,
                "question": turn.question,
                "answer": turn.answer.strip(),
                "boxes_px": list(turn.boxes_px),
                "about": turn.about,
            }
            for turn in story.turns
        ],
    }
