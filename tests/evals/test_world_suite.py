"""The suite fits the embedded world: every kind is taken, truth scores full marks, floors are low."""

import pytest

from qvl.data.world import World, WorldConfig
from qvl.evals.canned import CannedGenerator
from qvl.evals.floors import GREY, blind
from qvl.evals.runner import evaluate
from qvl.evals.tasks.base import true_answer
from qvl.evals.tasks.world import world_names, world_samples, world_suite
from qvl.text.messages import Text, Video


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig(seed=3, zh=0.5))


@pytest.mark.parametrize("style", ["pretrain", "chat"])
def test_truth_scores_full_marks_on_every_task(style, tmp_path):
    config = WorldConfig(seed=3, zh=0.5, style=style)
    suite = world_suite(config)
    samples = world_samples(World(config), "test", 3, World.tasks)
    truth = {id(s.messages[0]): true_answer(s) for s in samples}
    generator = CannedGenerator(lambda request: truth[id(request.messages[0])])
    result = evaluate(generator, suite, samples, tmp_path, progress=False)
    assert set(result.tasks) == {task.name for task in suite}
    for name in set(result.tasks) - {"caption"}:
        assert result.value(name) == 1.0, name
    assert result.value("grounding", "iou") > 0.9  # boxes in thousandths, read back to whole pixels
    assert result.value("caption", "f1") == result.value("caption", "exact") == 1.0


def test_every_question_of_the_world_belongs_to_one_task(world):
    suite = world_suite(world.config)
    kinds = [kind for task in suite for kind in task.kinds]
    assert sorted(kinds) == sorted(World.tasks)


def test_samples_are_distinct_single_questions_of_the_split(world):
    samples = world_samples(world, "train", 2, World.tasks)
    assert len({s.name for s in samples}) == len(samples) == 2 * len(World.tasks)
    assert {s.task for s in samples} == set(World.tasks)
    assert all(len(s.messages) == 2 for s in samples if s.task != "dialogue")


def test_default_kinds_are_those_the_config_trains():
    world = World(WorldConfig(tasks={"count": 1.0, "exists": 0.0, "ocr": 2.0}))
    assert [s.task for s in world_samples(world, "dev", 2)] == ["count", "count", "ocr", "ocr"]


def test_every_sample_of_the_world_can_be_blinded(world):
    for sample in world_samples(world, "test", 2, World.tasks):
        visuals = [p for m in blind(sample).messages for p in m.parts if not isinstance(p, Text)]
        frames = [f for p in visuals for f in (p.source if isinstance(p, Video) else [p.source])]
        assert all((frame == GREY).all() for frame in frames)
        assert bool(visuals) == (sample.task != "text")


def test_names_are_found_in_both_languages(world):
    finder = world_names(world.config.concepts)
    for i in range(30):
        sample = world.sample("test", i, "caption")
        assert set(finder.find(true_answer(sample))) == set(sample.meta["names"]), true_answer(sample)
