"""easy-VQA: 5,000 pictures of one drawn shape, 48,248 questions with 13 answers, in the official split.

Knows: the files of the package `easy-vqa` 1.0 (64 x 64 PNG, questions.json), how its questions become samples.
Does not know: tokens, metrics. `qvl data parts --only easy-vqa` fetches the files.

Published: 87.6 % (CNN + LSTM). Without looking: always "yes" 37.33 %; the commonest training answer to the same
question 67.00 % (of the questions that are not yes-or-no, which the picture alone decides: 23.30 %).
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Literal, final

import numpy as np

from qvl.data.records import Sample
from qvl.packages import packaged
from qvl.text.messages import Image, Message, Text

YES_NO, OPEN = "easy_yes_no", "easy_open"
_SHUFFLES = 7919

Style = Literal["pretrain", "chat"]


@final
class EasyVqa:
    """Training: `source[index]` asks several questions about one picture, pictures in a new order every round.

    Questions do not need each other (`Sample.independent`). `questions()` gives one sample per question.
    """

    tasks: tuple[str, ...] = (YES_NO, OPEN)

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        style: Style = "chat",
        turns: int = 4,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            style: `pretrain`: "... Answer:" -> " red" (Qwen-VL's stage-2 format); `chat`: plain.
            turns: most questions of a training sample.
            folder: of the package's data; default: where it was fetched to.

        Raises:
            FileNotFoundError: it was not fetched yet.
        """
        self._folder = (folder or packaged("easy-vqa")) / split
        self._split, self._style, self._turns, self._seed = split, style, turns, seed
        rows = json.loads((self._folder / "questions.json").read_text(encoding="utf-8"))
        self._rows: list[tuple[str, str, int]] = [(q, a, int(picture)) for q, a, picture in rows]

    @cached_property
    def _by_picture(self) -> list[list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for i, (_, _, picture) in enumerate(self._rows):
            found[picture].append(i)
        return [found[picture] for picture in sorted(found)]

    def __getitem__(self, index: int) -> Sample:
        pictures = self._by_picture
        round_, place = divmod(index, len(pictures))
        order = np.random.default_rng((self._seed * _SHUFFLES, round_)).permutation(len(pictures))
        own = pictures[order[place]]
        rng = np.random.default_rng((self._seed * _SHUFFLES + 1, index))
        chosen = rng.permutation(own)[: self._turns].tolist()
        messages = [m for n, i in enumerate(chosen) for m in self._ask(i, with_picture=n == 0)]
        turns = [{"task": _task(self._rows[i][1])} for i in chosen]
        name = f"easy-vqa/{self._split}/{index}"
        return Sample(name, "easy_vqa", tuple(messages), {"lang": "en", "turns": turns}, independent=True)

    def questions(self, most: int = 0) -> list[Sample]:
        """One sample per question, evenly from the whole split; `most` = 0: all of them."""
        count = len(self._rows)
        chosen = range(count) if not 0 < most < count else [n * count // most for n in range(most)]
        return [
            Sample(f"easy-vqa/{self._split}/q{i}", _task(self._rows[i][1]), self._ask(i), {"lang": "en"})
            for i in chosen
        ]

    def _ask(self, row: int, *, with_picture: bool = True) -> tuple[Message, Message]:
        question, answer, picture = self._rows[row]
        if self._style == "pretrain":
            question, answer = f"{question} Answer:", f" {answer}"
        shown = (Image(str(self._folder / "images" / f"{picture}.png")),) if with_picture else ()
        return Message("user", (*shown, Text(question))), Message("assistant", (Text(answer),))


def _task(answer: str) -> str:
    return YES_NO if answer in ("yes", "no") else OPEN
