"""The task protocol: samples -> requests, replies -> values per sample -> metrics with intervals.

Knows: samples, requests, replies. Does not know: the model behind them, files, how long it takes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qvl.data.records import Sample
from qvl.engine.api import Box, Reply, Request, Sampling, Usage
from qvl.evals.metrics.stats import Metric, mean_metric
from qvl.text.grounding import Coordinates
from qvl.text.messages import Image, Message, Text

Format = Literal["chatml", "raw"]
Scores = dict[str, float]
"""Metric name -> value of one sample; every sample of a task has the same names."""

MOST_FREQUENT = 24
"""Constant answers that are tried as floors."""


@dataclass(frozen=True)
class Constant:
    """An answer given without looking: a text, or a box in 0..999 of whatever picture it is asked about."""

    text: str = ""
    box_1000: tuple[int, int, int, int] | None = None

    def reply(self, sample: Sample) -> Reply:
        boxes: tuple[Box, ...] = ()
        if self.box_1000 is not None:
            hw = sample.meta["hw"]
            boxes = (Box("", Coordinates(hw, hw).box_1000_to_px(self.box_1000)),)
        return Reply(self.text, (), "stop", boxes, Usage(0, 0, 0))

    def __str__(self) -> str:
        return self.text if self.box_1000 is None else f"box {self.box_1000}"


class Task(ABC):
    """One row of the results: which samples it takes, what it asks, how it judges."""

    name: str
    title: str
    metrics: tuple[str, ...]
    """Names of the values of a sample; the first is the headline."""
    kinds: frozenset[str]
    """`Sample.task` names that belong to this task."""
    max_new_tokens: int

    def requests(self, samples: Sequence[Sample], chat_format: Format | None = None) -> list[Request]:
        """One greedy request per sample: the conversation without its last assistant turn, which is the answer.

        Raises:
            ValueError: a sample whose last turn is not the assistant's, named.
        """
        sampling = Sampling(max_new_tokens=self.max_new_tokens, stop_on_repetition=False)
        return [Request(asked(sample), sampling, chat_format) for sample in samples]

    @abstractmethod
    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        """Values of each sample, in order. Corpus metrics (CIDEr) may depend on all samples given."""

    def groups(self, sample: Sample) -> dict[str, str]:
        """The breakdowns a sample counts in: {"lang": "en", "kind": "count", "objects": "2"}."""
        found = {"lang": language(sample)}
        if len(self.kinds) > 1:
            found["kind"] = sample.task
        if "boxes_px" in sample.meta and shows_one_picture(sample):
            found["objects"] = str(len(sample.meta["boxes_px"]))
        return found

    def constants(self, samples: Sequence[Sample]) -> list[Constant]:
        """Constant answers worth trying, learned from training samples: the most frequent answers."""
        counts = Counter(true_answer(s) for s in samples)
        return [Constant(text) for text, _ in counts.most_common(MOST_FREQUENT)]

    def from_question(self, train: Sequence[Sample], test: Sequence[Sample]) -> list[Reply] | None:
        """Replies learned from the words of training questions alone, a floor; None = this task has no such floor."""
        return None

    def score(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> dict[str, Metric]:
        """Metrics with 95 % intervals: each name over all samples, and as `name/lang=en` per group."""
        return self.summarise(samples, self.judge(samples, replies))

    def summarise(self, samples: Sequence[Sample], scores: Sequence[Scores]) -> dict[str, Metric]:
        values: dict[str, list[float]] = defaultdict(list)
        for sample, own in zip(samples, scores, strict=True):
            suffixes = ["", *(f"/{group}={value}" for group, value in self.groups(sample).items())]
            for name in self.metrics:
                for suffix in suffixes:
                    values[name + suffix].append(own[name])
        return {key: mean_metric(found) for key, found in sorted(values.items())}


def asked(sample: Sample) -> tuple[Message, ...]:
    """The conversation up to the answer. Raises ValueError when there is no answer to compare with."""
    if len(sample.messages) < 2 or sample.messages[-1].role != "assistant":
        raise ValueError(f"sample {sample.name} must end with an assistant turn (the true answer) after a question")
    return sample.messages[:-1]


def true_answer(sample: Sample) -> str:
    """Text of the last assistant turn, stripped."""
    asked(sample)
    return message_text(sample.messages[-1]).strip()


def question(sample: Sample) -> str:
    """What is asked, for people: the last user turn, pictures as `<image>`."""
    return message_text(asked(sample)[-1]).strip()


def shows_one_picture(sample: Sample) -> bool:
    """One picture and no video: only then do `meta["hw"]` and `meta["boxes_px"]` belong to what is shown."""
    visuals = [p for m in asked(sample) for p in m.parts if not isinstance(p, Text)]
    return len(visuals) == 1 and isinstance(visuals[0], Image)


def message_text(message: Message) -> str:
    pieces = []
    for part in message.parts:
        if isinstance(part, Text):
            pieces.append(part.text)
        else:
            pieces.append("<image>" if isinstance(part, Image) else "<video>")
    return "".join(pieces)


def language(sample: Sample) -> str:
    return sample.meta.get("lang", "en")


_EDGE_PUNCTUATION = " \t\n.,!?:;。，！？：；\"'“”‘’"
_ARTICLE = re.compile(r"^(?:an?|the)\s+")


def plain_answer(text: str) -> str:
    """For comparing short answers: lower case, white space collapsed, edge punctuation and one article dropped.

    " A  Dog." -> "dog"; "狗。" -> "狗".
    """
    flat = " ".join(text.lower().split()).strip(_EDGE_PUNCTUATION)
    return _ARTICLE.sub("", flat)
