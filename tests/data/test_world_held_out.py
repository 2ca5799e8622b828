from itertools import combinations

import numpy as np
import pytest

from qvl.data.world import World, WorldConfig
from qvl.data.world.catalogue import default_catalogue
from qvl.data.world.heldout import HeldOut
from qvl.data.world.ocr import split_of_line

SCENES = ("caption", "text", "compare", "dialogue", "video", "count_same")


def pictures(meta):
    """(names, layout) of each picture of a sample."""
    if "pictures" in meta:
        return list(zip(meta["names"], meta["layout"], strict=True))
    return [(meta["names"], meta["layout"])]


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig(turns=1))


@pytest.mark.parametrize("task", SCENES)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_picture_shows_only_pairs_and_layouts_of_its_split(world, split, task):
    held_out = HeldOut(world.concepts, 3)
    position = {c.en: i for i, c in enumerate(world.concepts)}
    pairs = 0
    for index in range(60):
        for names, layout in pictures(world.sample(split, index, task).meta):
            assert held_out.split_of_layout(*layout) == split
            for a, b in combinations(sorted(set(names)), 2):
                pairs += 1
                assert held_out.split_of_pair(position[a], position[b]) == split
    assert pairs > 10 or task == "count_same"


@pytest.mark.parametrize("count", [9, 12, 40, 112, 300, 849])
def test_about_a_tenth_of_the_pairs_is_held_out_and_every_concept_takes_part(count):
    held_out = HeldOut(default_catalogue().objects[:count], 3)
    splits = {pair: held_out.split_of_pair(*pair) for pair in combinations(range(count), 2)}
    shares = {s: sum(v == s for v in splits.values()) / len(splits) for s in ("train", "dev", "test")}
    if count >= 112:
        assert 0.03 < shares["dev"] < 0.06
        assert 0.03 < shares["test"] < 0.06
    assert shares["train"] > 0.4
    assert all(held_out.split_of_pair(b, a) == s for (a, b), s in splits.items())
    for split in ("dev", "test"):
        if count >= 16:
            assert {c for pair, s in splits.items() if s == split for c in pair} == set(range(count))


@pytest.mark.parametrize("count", [9, 16, 112])
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_drawn_concepts_differ_and_belong_to_the_split(count, split):
    held_out = HeldOut(default_catalogue().objects[:count], 3)
    rng = np.random.default_rng(0)
    for i in range(200):
        include = i % count if i % 2 else None
        chosen = held_out.draw_concepts(split, 3, rng, include)
        assert len(set(chosen)) == len(chosen)
        assert include is None or include in chosen
        assert len(chosen) == 3 or split != "train"
        assert all(held_out.split_of_pair(a, b) == split for a, b in combinations(chosen, 2))


def test_evaluation_scenes_reach_three_objects(world):
    for split in ("dev", "test"):
        counts = [len(world.sample(split, i, "count").meta["names"]) for i in range(200)]
        assert {1, 2, 3} <= set(counts)


def test_layouts_of_the_three_splits_share_nothing():
    held_out = HeldOut(default_catalogue().objects[:112], 3)
    rng = np.random.default_rng(0)
    splits = [held_out.split_of_layout(*rng.random(3)) for _ in range(5000)]
    for split in ("dev", "test"):
        assert 0.03 < splits.count(split) / len(splits) < 0.07


def test_rendered_lines_are_held_out_by_their_text(world):
    seen = {}
    for split in ("train", "dev", "test"):
        for index in range(40):
            for line in world.sample(split, index, "ocr").meta["lines"]:
                assert split_of_line(line["text"]) == split
                assert seen.setdefault(line["text"], split) == split


def test_names_of_samples_differ_between_splits(world):
    names = [world.sample(s, i).name for s in ("train", "dev", "test") for i in range(20)]
    assert len(set(names)) == 60
