"""easy-VQA: samples, orders, and the floors that a score is read against."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from qvl.data.easy_vqa import OPEN, YES_NO, EasyVqa
from qvl.evals.metrics.stats import Metric
from qvl.evals.tasks.base import Constant, true_answer
from qvl.evals.tasks.easy_vqa import EasyVqaTask
from qvl.packages import packaged
from qvl.text.messages import Image, Text

QUESTIONS = [
    ["what shape is it?", "circle", 0], ["is it red?", "yes", 0], ["is it blue?", "no", 0],
    ["what shape is it?", "square", 1], ["is it red?", "no", 1], ["what shape is it?", "square", 2],
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "questions.json").write_text(json.dumps(QUESTIONS))
        for i in range(3):
            Pillow.fromarray(np.full((64, 64, 3), i, np.uint8)).save(tmp_path / split / "images" / f"{i}.png")
    return tmp_path


def test_training_samples(folder: Path) -> None:
    source = EasyVqa(turns=2, folder=folder)
    names = []
    for index in range(6):
        sample = source[index]
        first, answer = sample.messages[:2]
        assert isinstance(first.parts[0], Image)
        picture = Path(first.parts[0].source)
        assert picture.is_file()
        assert sample.independent
        assert not any(isinstance(p, Image) for m in sample.messages[1:] for p in m.parts)
        assert len(sample.meta["turns"]) * 2 == len(sample.messages) <= 4
        assert answer.parts[0] in {Text(a) for _, a, i in QUESTIONS if i == int(picture.stem)}
        names.append(picture.stem)
    assert sorted(names[:3]) == sorted(names[3:]) == ["0", "1", "2"], "every picture once a round"
    assert EasyVqa(turns=2, folder=folder)[4] == source[4]
    assert [EasyVqa(seed=9, folder=folder)[i] for i in range(6)] != [EasyVqa(folder=folder)[i] for i in range(6)]


def test_questions(folder: Path) -> None:
    questions = EasyVqa("test", folder=folder).questions()
    assert [q.task for q in questions] == [OPEN, YES_NO, YES_NO, OPEN, YES_NO, OPEN]
    assert [q.name for q in EasyVqa("test", folder=folder).questions(2)] == ["easy-vqa/test/q0", "easy-vqa/test/q3"]
    plain = EasyVqa("test", style="pretrain", folder=folder).questions()[1]
    assert [p for m in plain.messages for p in m.parts][1:] == [Text("is it red? Answer:"), Text(" yes")]


def test_what_the_question_tells(folder: Path) -> None:
    train, test = EasyVqa(folder=folder).questions(), EasyVqa("test", folder=folder).questions()
    replies = EasyVqaTask().from_question(train, test)
    assert [r.text for r in replies] == ["square", "yes", "no", "square", "yes", "square"]
    assert EasyVqaTask().score(test, replies)["accuracy"].value == pytest.approx(4 / 6)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QVL_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"easy-vqa .* is not on this machine: fetch it once with `qvl data parts"
    ):
        EasyVqa()


@pytest.mark.slow
def test_floors_of_the_whole() -> None:
    """Always "yes" 37.33 %, the question alone 67.00 %, open questions of these 23.30 %."""
    try:
        packaged("easy-vqa")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    train, test = EasyVqa("train").questions(), EasyVqa("test").questions()
    assert (len(train), len(test)) == (38_575, 9_673)
    assert len({true_answer(s) for s in train}) == 13

    def percent(metric: Metric) -> float:
        return round(100 * metric.value, 2)

    task = EasyVqaTask()
    assert percent(task.score(test, [Constant("yes").reply(s) for s in test])["accuracy"]) == 37.33
    found = task.score(test, task.from_question(train, test))
    assert percent(found["accuracy"]) == 67.00
    assert percent(found[f"accuracy/kind={OPEN}"]) == 23.30
