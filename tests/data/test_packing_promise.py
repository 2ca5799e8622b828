"""What packing promises, on samples that nobody thought of: a bounded number of tokens and patches in every pack,
pictures whole, text whole, and nothing lost without its name and a reason."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvl.batch import Batch
from qvl.data.fitting import TooLarge, fit, prepare
from qvl.data.packing import PackLimits, packs
from qvl.data.records import Sample
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.media.resize import PixelBudget
from qvl.text.family import QWEN2_VL, QWEN_VL
from qvl.text.messages import Image, Message, Text, Video
from qvl.text.tokenizer import Tokenizer

TASKS = ("caption", "vqa")
PROCESSORS = {
    "qwen2-vl": Processor(
        Tokenizer.reduced(["a dog"], 0, QWEN2_VL), ProcessorConfig(pixels=PixelBudget(784, 1 << 20), resize="fast")
    ),
    "qwen-vl": Processor(Tokenizer.reduced(["a dog"], 0, QWEN_VL), ProcessorConfig.qwen_vl(28, 4, resize="fast")),
}
sizes = st.tuples(st.integers(10, 420), st.integers(10, 420))


class Told(logging.Handler):
    """What was said about samples."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@dataclass(frozen=True)
class Form:
    """A sample to be made."""

    pictures: tuple[tuple[int, int], ...]
    frames: int
    """Of a clip beside the pictures; 0 = none."""
    answers: tuple[int, ...]
    """Words of each answer."""
    independent: bool
    task: int
    later: bool
    """The last question shows the pictures again."""

    def sample(self, name: str, videos: bool) -> Sample:
        shown: list[Image | Video] = [Image(np.full((*hw, 3), 90, np.uint8)) for hw in self.pictures]
        if videos and self.frames:
            shown.append(Video(np.full((self.frames, 60, 90, 3), 30, np.uint8)))
        messages = []
        for turn, words in enumerate(self.answers):
            with_pictures = turn == 0 or (self.later and turn == len(self.answers) - 1)
            messages.append(Message("user", (*(shown if with_pictures else ()), Text("a dog?"))))
            messages.append(Message("assistant", (Text("a dog " * words),)))
        return Sample(name, TASKS[self.task], tuple(messages), independent=self.independent)


forms = st.builds(
    Form,
    st.lists(sizes, max_size=3).map(tuple),
    st.sampled_from((0, 0, 2, 3, 5)),
    st.lists(st.integers(1, 60), min_size=1, max_size=4).map(tuple),
    st.booleans(),
    st.integers(0, 1),
    st.booleans(),
)
SHORT = Form((), 0, (1,), False, 0, False)
"""Fits into any pack."""
limits = st.builds(
    PackLimits,
    st.integers(60, 500),
    st.integers(16, 700),
    st.booleans(),
    st.sampled_from((0, 0, 1, 3)),
    st.sampled_from((0, 0, 50, 200)),
    st.sampled_from((1.0, 1.0, 0.5, 1 / 3)),
)


@dataclass(frozen=True)
class Source:
    """The forms again and again."""

    forms: tuple[Form, ...]
    videos: bool
    tasks: tuple[str, ...] = TASKS

    def __getitem__(self, index: int) -> Sample:
        return self.forms[index % len(self.forms)].sample(f"s/{index}/", self.videos)


def words_of(processor: Processor, batch: Batch, name: str) -> list[list[int]]:
    """Tokens of the named sample's sequences without those that pictures fill."""
    rows = set(batch.vision_rows_M.tolist())
    found = []
    for own, (start, end) in zip(batch.names, itertools.pairwise(batch.seq_offsets), strict=True):
        if own == name:
            found.append([t for i, t in enumerate(batch.tokens_T[start:end].tolist(), start) if i not in rows])
    return found


def runs(rows: list[int]) -> Iterator[int]:
    """Lengths of the runs of neighbouring rows."""
    for _, run in itertools.groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0]):
        yield len(list(run))


@pytest.mark.slow
@pytest.mark.parametrize("family", PROCESSORS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(chosen=st.lists(forms, min_size=1, max_size=5).map(tuple), bounds=limits)
def test_the_promise(family: str, chosen: tuple[Form, ...], bounds: PackLimits) -> None:
    processor = PROCESSORS[family]
    source = Source((*chosen, SHORT), videos=family == "qwen2-vl")
    told = Told()
    logger = logging.getLogger("qvl.data")
    logger.addHandler(told)
    try:
        made = list(itertools.islice(packs(source, processor, bounds, "raw"), 4))
    finally:
        logger.removeHandler(told)
    taken: list[int] = []
    for pack in made:
        batch = pack.batch
        names = list(dict.fromkeys(batch.names))
        tokens, patches = sum(batch.seq_lens), sum(batch.segment_lens)
        assert tokens <= bounds.tokens
        assert patches <= bounds.patches
        assert pack.samples == len(names)
        if pack.samples > 1:  # alone, a sample may take more than a rank's part
            assert tokens <= bounds.part * bounds.tokens
            assert patches <= bounds.part * bounds.patches
        if bounds.samples:
            assert pack.samples <= max(1, bounds.part * bounds.samples + 1e-6)
        _check_pictures(processor, batch)
        for name in names:
            sample = source[int(name.split("/")[1])]
            whole = processor.pack(prepare(sample, processor, "raw"))
            assert words_of(processor, batch, name) == words_of(processor, whole, name), "text is never cut"
            if bounds.sample_tokens:
                own = sum(n for n, by in zip(batch.seq_lens, batch.names, strict=True) if by == name)
                assert own <= bounds.sample_tokens
        taken += [int(name.split("/")[1]) for name in names]
    left_out = {int(m[1]) for line in told.lines if (m := re.match(r"left out s/(\d+)/: \d+ tokens .* room for", line))}
    last = made[-1]
    assert len(taken) == len(set(taken))
    assert {*taken, *last.waiting, *left_out} >= set(range(last.next_index)), "nothing is lost without its name"
    assert not left_out & {*taken, *last.waiting}


def _check_pictures(processor: Processor, batch: Batch) -> None:
    """Every picture is there with all its patches and all its tokens, side by side."""
    each = [t * h * w for t, h, w in batch.grids]
    assert sum(each) == sum(batch.segment_lens)
    merged = [4 if processor.config.square else n // 4 for n in each]
    assert list(runs(batch.vision_rows_M.tolist())) == merged


def test_what_can_be_shrunk_is_not_left_out() -> None:
    """A small picture beside a large one keeps its size; the large one makes the room."""
    processor = PROCESSORS["qwen2-vl"]
    form = Form(((400, 400), (56, 56)), 0, (2,), False, 0, False)
    (whole,) = prepare(form.sample("s", False), processor, "raw")
    (small,) = fit(form.sample("s", False), processor, "raw", 60, 10_000)
    assert len(whole.tokens_T) > 180
    assert len(small.tokens_T) <= 60
    assert small.visuals[1].resized_hw == whole.visuals[1].resized_hw == (56, 56)
    assert 30 < small.visuals[0].grid[1] * small.visuals[0].grid[2] / 4 < 50


def test_a_picture_in_a_later_question_is_seen() -> None:
    """Questions that do not need each other share pictures; one that brings its own makes it a conversation."""
    processor = PROCESSORS["qwen2-vl"]
    sample = Form(((56, 56),), 0, (2, 2), True, 0, True).sample("s", False)
    prepared = prepare(sample, processor, "raw")
    assert [len(p.visuals) for p in prepared] == [2]
    assert len(prepare(Form(((56, 56),), 0, (2, 2), True, 0, False).sample("s", False), processor, "raw")) == 3


def test_the_reason_names_the_size_it_had() -> None:
    processor = PROCESSORS["qwen2-vl"]
    sample = Form(((400, 400),), 0, (100,), False, 0, False).sample("s/7", False)
    (whole,) = prepare(sample, processor, "raw")
    with pytest.raises(TooLarge, match=rf"s/7: {len(whole.tokens_T)} tokens .* {whole.patch_count} patches, there is"):
        fit(sample, processor, "raw", 90, 10_000)
