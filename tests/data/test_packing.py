"""Which samples lie together: in order, or by task; where a stopped run goes on; tasks of the targets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from qvl.batch import IGNORE
from qvl.data.fitting import prepare
from qvl.data.packing import Pack, PackLimits, packs, turn_tasks
from qvl.data.records import Sample
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.text.family import QWEN2_VL, QWEN_VL
from qvl.text.messages import Image, Message, Text
from qvl.text.tokenizer import Tokenizer

TASKS = ("caption", "vqa", "ocr")
PIXELS = np.zeros((28, 28, 3), np.uint8)


class Mixed:
    """Samples of three tasks in a fixed mixed order, of different lengths; sample 5 is larger than any pack."""

    tasks = TASKS

    def __getitem__(self, index: int) -> Sample:
        task = TASKS[(index * index + index // 3) % 3]
        words = "a dog and a cat " * (500 if index == 5 else 1 + index % 4)
        picture = () if index % 5 == 0 else (Image(PIXELS),)
        messages = (Message("user", (*picture, Text(f"{task}:"))), Message("assistant", (Text(words),)))
        return Sample(f"s/{index}", task, messages, independent=index % 2 == 0)


@pytest.fixture(scope="module", params=[QWEN2_VL, QWEN_VL], ids=lambda f: f.name)
def processor(request: pytest.FixtureRequest) -> Processor:
    config = ProcessorConfig.qwen_vl(28, 4) if request.param is QWEN_VL else None
    return Processor(Tokenizer.reduced(["a dog and a cat"], 0, request.param), config)


def first(processor: Processor, count: int, form: str, same_task: bool, **start: object) -> list[Pack]:
    limits = PackLimits(300, 40, same_task)
    return list(itertools.islice(packs(Mixed(), processor, limits, form, **start), count))  # type: ignore[arg-type]


def indices(pack: Pack) -> list[int]:
    return list(dict.fromkeys(int(name.split("/")[1]) for name in pack.batch.names))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["raw", "chatml"])
def test_same_task_packs(processor: Processor, form: str) -> None:
    found = first(processor, 12, form, same_task=True)
    taken = [i for pack in found for i in indices(pack)]
    assert len(taken) == len(set(taken))
    for pack in found:
        assert len({Mixed()[i].task for i in indices(pack)}) == 1
        assert indices(pack) == sorted(indices(pack))
        assert sum(pack.batch.seq_lens) <= 300
        assert len(set(pack.task_X.tolist())) == 1
        assert pack.samples == len(indices(pack))
    assert {TASKS[int(pack.task_X[0])] for pack in found} == set(TASKS)
    last = found[-1]
    assert sorted([*taken, *last.waiting, 5]) == [*range(last.next_index)]  # nothing lost; 5 fits nowhere
    assert any(pack.samples > 2 for pack in found)


def test_mixed_packs_take_samples_in_order(processor: Processor) -> None:
    found = first(processor, 8, "raw", same_task=False)
    assert [i for pack in found for i in indices(pack)] == [i for i in range(found[-1].next_index) if i != 5]
    assert all(pack.waiting == () for pack in found)


@pytest.mark.parametrize("same_task", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_stopped_run_goes_on_exactly(processor: Processor, same_task: bool, stop: int) -> None:
    whole = first(processor, 10, "raw", same_task)
    at = whole[stop - 1]
    rest = first(processor, 10 - stop, "raw", same_task, start=at.next_index, waiting=at.waiting)
    for a, b in zip(whole[stop:], rest, strict=True):
        assert a.batch.tokens_T.tolist() == b.batch.tokens_T.tolist()
        assert (a.next_index, a.waiting, a.batch.names) == (b.next_index, b.waiting, b.batch.names)


def test_lanes_share_the_samples(processor: Processor) -> None:
    lanes = [first(processor, 4, "raw", True, start=start, stride=2) for start in (0, 1)]
    for start, lane in enumerate(lanes):
        assert {i % 2 for pack in lane for i in (*indices(pack), *pack.waiting)} == {start}


def test_samples_do_not_see_each_other(processor: Processor) -> None:
    """Isolation is the packed layout itself: own sequence, positions from 0, no label across an end."""
    (pack,) = first(processor, 1, "raw", same_task=True)
    batch = pack.batch
    parents = batch.parents or (-1,) * len(batch.seq_lens)
    for sequence, (start, end) in enumerate(itertools.pairwise(batch.seq_offsets)):
        if parents[sequence] < 0:
            assert int(batch.positions_RT[0, start]) == 0
        assert int(batch.labels_T[end - 1]) == IGNORE  # type: ignore[index]


@pytest.mark.parametrize("form", ["raw", "chatml"])
def test_every_target_has_its_turns_task(processor: Processor, form: str) -> None:
    """Also where frames of turns are learned with the answers (Qwen-VL's ChatML)."""

    class Dialogue:
        tasks = TASKS

        def __getitem__(self, index: int) -> Sample:
            words = ("a dog", "", "and a cat")
            turns = [m for t in words for m in (Message("user", (Text("a"),)), Message("assistant", (Text(t),)))]
            return Sample(f"s/{index}", "mixed", tuple(turns), {"turns": [{"task": task} for task in TASKS]})

    pack = next(packs(Dialogue(), processor, PackLimits(400, 40), form))  # type: ignore[arg-type]
    labels = pack.batch.labels_T[pack.batch.labels_T != IGNORE].tolist()  # type: ignore[index]
    for number, words in enumerate(("a dog", "", "and a cat")):
        ids = [label for label, task in zip(labels, pack.task_X.tolist(), strict=True) if task == number]
        assert processor.tokenizer.decode(ids).replace("\n", "") == words * pack.samples


def test_answers_without_a_description() -> None:
    turn_X: Sequence[int] = [0, 0, 1]
    assert turn_tasks(np.asarray(turn_X), ["b", "a"], {"a": 0, "b": 1}).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match=r"2 supervised answers, but 1 are described \(a\)"):
        turn_tasks(np.asarray(turn_X), ["a"], {"a": 0})


def test_packs_of_a_number_of_samples(processor: Processor) -> None:
    """Every pack holds so many samples, whatever room is left; what is too long for a sample is left out."""
    limits = PackLimits(4000, 400, samples=3, sample_tokens=30)
    for pack in itertools.islice(packs(Mixed(), processor, limits, "raw"), 6):
        assert pack.samples == len(indices(pack)) == 3
        for i in indices(pack):
            assert sum(len(p.tokens_T) for p in prepare(Mixed()[i], processor, "raw")) <= 30
