"""Floors: the best constant, chosen on training samples only; pictures really taken away."""

import numpy as np
import pytest
from PIL import Image as PIL

from qvl.data.records import Sample
from qvl.evals.floors import GREY, blind, constant_floor
from qvl.evals.tasks.answers import Vqa
from qvl.evals.tasks.base import Constant
from qvl.evals.tasks.grounding import Grounding
from qvl.text.messages import Image, Message, Text, Video


def test_constants_are_chosen_on_training_samples_per_kind_and_language(make_sample):
    train = [make_sample(f"a{i}", "count", answer=" 2" if i < 6 else " 1") for i in range(10)]
    train += [make_sample(f"b{i}", "exists", answer=" no" if i < 2 else " yes") for i in range(5)]
    train += [make_sample(f"c{i}", "exists", answer="是" if i else "不是", lang="zh") for i in range(3)]
    test = [make_sample(f"t{i}", "count", answer=" 1") for i in range(3)]
    test += [make_sample("u", "exists", answer=" yes"), make_sample("v", "exists", answer="是", lang="zh")]
    floor = constant_floor(Vqa(), train, test)
    assert floor.chosen == {"count/en": "2", "exists/en": "yes", "exists/zh": "是"}  # not "1", the answer of the test
    assert [s["accuracy"] for s in Vqa().judge(test, floor.replies)] == [0, 0, 0, 1, 1]


def test_best_constant_box_beats_the_mean_box(make_sample):
    """Six boxes on the left, two on the right: the mean box hits none, a true training box hits six."""
    boxes = [(0, 0, 100, 100)] * 6 + [(300, 300, 400, 400)] * 2
    train = [
        make_sample(f"a{i}", "grounding", hw=(400, 400), answer_boxes_px=[b], answer="x") for i, b in enumerate(boxes)
    ]
    test = [make_sample("t", "grounding", hw=(200, 800), answer_boxes_px=[(0, 0, 200, 50)], answer="x")]
    floor = constant_floor(Grounding(), train, test)
    assert floor.chosen == {"grounding/en": "box (0, 0, 250, 250)"}
    assert floor.replies[0].boxes[0].xyxy == (0, 0, 200, 50)  # relative to each picture's own size


def test_a_group_without_training_samples_is_named(make_sample):
    with pytest.raises(ValueError, match="training samples of count/zh, got none"):
        constant_floor(Vqa(), [make_sample("a", "count")], [make_sample("t", "count", lang="zh")])


def test_constant_reply_scales_its_box(make_sample):
    sample = make_sample("a", "grounding", hw=(100, 50))
    assert Constant(box_1000=(100, 200, 500, 999)).reply(sample).boxes[0].xyxy == (5, 20, 25, 100)


def test_blind_replaces_every_picture_and_nothing_else(make_sample):
    sample = make_sample("a", "count", "How many?", " 2", hw=(30, 50))
    seen = Message("user", (Image(PIL.new("RGB", (20, 10), "red")), Text("First?")))
    sample = Sample("a", "count", (seen, Message("assistant", (Text("1"),)), *sample.messages), sample.meta)
    dark = blind(sample)
    pictures = [p for m in dark.messages for p in m.parts if isinstance(p, Image)]
    assert [p.source.shape for p in pictures] == [(10, 20, 3), (30, 50, 3)]
    assert all((p.source == GREY).all() and p.source.dtype == np.uint8 for p in pictures)
    assert pictures[1].max_pixels == 7840  # the budget stays, so the number of tokens does
    texts = [[p.text for m in s.messages for p in m.parts if isinstance(p, Text)] for s in (sample, dark)]
    assert texts[0] == texts[1]
    assert (dark.name, dark.task, dark.meta) == (sample.name, sample.task, sample.meta)


def test_frames_are_blinded_and_video_files_refused(make_sample):
    answer = make_sample("clip/3", "count").messages[-1]
    frames = [np.zeros((4, 6, 3), dtype=np.uint8)] * 3
    shown = Sample("clip/3", "count", (Message("user", (Video(frames, fps=2.0),)), answer))
    (clip,) = blind(shown).messages[0].parts
    assert clip.fps == 2.0
    assert [f.shape for f in clip.source] == [(4, 6, 3)] * 3
    assert all((f == GREY).all() for f in clip.source)
    with pytest.raises(ValueError, match="sample clip/3 shows a video file"):
        blind(Sample("clip/3", "count", (Message("user", (Video("a.mp4"),)), answer)))
