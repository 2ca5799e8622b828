"""The embedded world: an endless, seeded source of training and evaluation samples.

Knows: how scenes and questions become samples, which splits there are.
Does not know: tokens, pixels budgets, batches.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from qvl.data.records import Sample
from qvl.data.world.catalogue import default_catalogue
from qvl.data.world.compose import Composer
from qvl.data.world.config import Split, WorldConfig
from qvl.data.world.lexicon import lexicon
from qvl.data.world.questions import Asker, BoxToName, Caption, Grounding, Question, Referring, Turn, box_1000
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
from qvl.text.messages import Image, Message, Text

QUESTIONS: tuple[Question, ...] = (
    Caption(),
    Caption("caption_grounded", grounded=True),
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
_SPLIT_IDS = {split: number for number, split in enumerate(get_args(Split))}
_TRIES = 200


class World:
    """Samples of the world that `config` describes.

    `sample(split, index)` is a pure function of (config, split, index): any process gets the same sample.
    A training sample asks `config.turns` questions about one picture (its task is "mixed" unless all questions have
    the same task); `dev` and `test` samples ask one question each, show only held-out layouts and held-out pairs.

    Raises:
        ValueError: the config names an unknown task.
    """

    tasks: tuple[str, ...] = tuple(q.name for q in QUESTIONS)

    def __init__(self, config: WorldConfig | None = None):
        self.config = config or WorldConfig()
        unknown = set(self.config.tasks) - set(self.tasks)
        if unknown:
            raise ValueError(f"unknown world tasks {sorted(unknown)}; there are {', '.join(self.tasks)}")
        self._composer = Composer(self.config, default_catalogue())
        self._questions = {q.name: q for q in QUESTIONS}
        self._names = [name for name, weight in self.config.tasks.items() if weight > 0]
        weights = np.asarray([self.config.tasks[name] for name in self._names], dtype=np.float64)
        self._cumulative = np.cumsum(weights / weights.sum())

    def __reduce__(self):
        return World, (self.config,)

    def sample(self, split: Split, index: int, task: str | None = None) -> Sample:
        """Sample `index` of the split; `task` asks only that (default: drawn by the config's weights).

        Raises:
            ValueError: an unknown split or task, or a negative index.
        """
        if split not in _SPLIT_IDS:
            raise ValueError(f"split must be one of {', '.join(_SPLIT_IDS)}, got {split!r}")
        if index < 0:
            raise ValueError(f"index must not be negative, got {index}")
        if task is not None and task not in self._questions:
            raise ValueError(f"unknown world task {task!r}; there are {', '.join(self.tasks)}")
        rng = np.random.default_rng([self.config.seed, _SPLIT_IDS[split], index])
        language = "zh" if rng.random() < self.config.zh else "en"
        asker = Asker(language, self.config.style, rng, self._composer.concepts)
        wanted = self.config.turns if split == "train" else 1
        scene, turns = self._asked_scene(split, asker, task, wanted)
        names = {t.task for t in turns}
        name = f"world/{split}/{self.config.seed}/{index}" + (f"/{task}" if task else "")
        return Sample(
            name, names.pop() if len(names) == 1 else "mixed", _messages(scene, turns), _meta(scene, turns, language)
        )

    def lexicon(self) -> list[str]:
        """Every name, template, colour, digit and mark the world can say (for `Tokenizer.reduced`)."""
        return lexicon(self._composer.concepts)

    def _asked_scene(self, split: Split, asker: Asker, task: str | None, wanted: int) -> tuple[Scene, list[Turn]]:
        first = task or self._draw_task(asker.rng)
        for _ in range(_TRIES):
            scene = self._composer.draw(split, asker.rng, repeat=True if first == "count_same" else None)
            turns = self._turns(scene, asker, first, task, wanted)
            if turns:
                return scene, turns
        raise ValueError(
            f"none of {_TRIES} scenes could be asked {first!r}; with objects={self.config.objects} this question has "
            "no clear answer"
        )

    def _turns(self, scene: Scene, asker: Asker, first: str, only: str | None, wanted: int) -> list[Turn]:
        turn = self._questions[first].ask(scene, asker)
        if turn is None:
            return []
        turns = {turn.question: turn}
        for _ in range(3 * (wanted - 1)):
            if len(turns) == wanted:
                break
            turn = self._questions[only or self._draw_task(asker.rng)].ask(scene, asker)
            if turn is not None:
                turns.setdefault(turn.question, turn)
        return list(turns.values())

    def _draw_task(self, rng: np.random.Generator) -> str:
        return self._names[int(np.searchsorted(self._cumulative, rng.random(), side="right"))]


def _messages(scene: Scene, turns: list[Turn]) -> tuple[Message, ...]:
    messages = []
    for number, turn in enumerate(turns):
        picture = (Image(scene.pixels_HW3),) if number == 0 else ()
        messages.append(Message("user", (*picture, Text(turn.question))))
        messages.append(Message("assistant", (Text(turn.answer),)))
    return tuple(messages)


def _meta(scene: Scene, turns: list[Turn], language: str) -> dict[str, Any]:
    return {
        "lang": language,
        "hw": scene.hw,
        "names": [o.concept.en for o in scene.objects],
        "names_zh": [o.concept.zh for o in scene.objects],
        "boxes_px": [o.box_px for o in scene.objects],
        "boxes_1000": [box_1000(scene, o) for o in scene.objects],
        "background": scene.background,
        "layout": scene.layout,
        "answer": turns[-1].answer.strip(),
        "answer_boxes_px": list(turns[-1].boxes_px),
        "turns": [
            {
                "task": t.task,
                "lang": language,
                "question": t.question,
                "answer": t.answer.strip(),
                "boxes_px": list(t.boxes_px),
                "about": t.about,
            }
            for t in turns
        ],
    }
