"""easy-VQA as a task: the answer is one of 13 words.

Knows: when an answer is right, and what the question alone gives away. Does not know: files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import final

from qvl.data.easy_vqa import OPEN, YES_NO
from qvl.data.records import Sample
from qvl.engine.api import Reply
from qvl.evals.tasks.answers import right
from qvl.evals.tasks.base import Constant, Scores, Task, question, true_answer


@final
class EasyVqaTask(Task):
    """Accuracy over all questions; open ones (not yes-or-no) are a group of their own, because the words of the other
    questions, their "not" and their shapes, already tell most answers."""

    name = "easy_vqa"
    title = "easy-VQA"
    metrics = ("accuracy",)
    kinds = frozenset((YES_NO, OPEN))
    max_new_tokens = 8

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        return [{"accuracy": right(s, r)} for s, r in zip(samples, replies, strict=True)]

    def from_question(self, train: Sequence[Sample], test: Sequence[Sample]) -> list[Reply]:
        """The commonest training answer to the same question (to any, if it was never asked)."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in train:
            counts[question(sample)][true_answer(sample)] += 1
        overall = sum(counts.values(), Counter())
        best = [(counts.get(question(s)) or overall).most_common(1)[0][0] for s in test]
        return [Constant(answer).reply(s) for answer, s in zip(best, test, strict=True)]
