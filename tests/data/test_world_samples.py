import dataclasses
import hashlib
import pickle
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from qvl.data.world import World, WorldConfig
from qvl.data.world.ocr import Ocr, find_chinese_font, line_quad
from qvl.text.grounding import parse_grounding
from qvl.text.messages import Image, Text, Video, WordPicture, parse_messages
from qvl.text.tokenizer import Tokenizer

ALL = dict.fromkeys(World.tasks, 1.0)


def digest(sample):
    """A hash of all a sample says and shows."""
    state = hashlib.sha256(repr((sample.name, sample.task, sample.meta)).encode())
    for message in sample.messages:
        for part in message.parts:
            if isinstance(part, Text):
                state.update(part.text.encode())
            else:
                arrays = part.source if isinstance(part, Video) else [part.source]
                for array in arrays:
                    state.update(repr(array.shape).encode() + array.tobytes())
    return state.hexdigest()


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig(tasks=ALL))


@pytest.mark.slow
def test_a_sample_does_not_depend_on_process_or_history(world):
    code = (
        "from tests.data.test_world_samples import *\n"
        "w = World(WorldConfig(tasks=ALL))\n"
        "print(*[digest(w.sample(s, i)) for i in reversed(range(8)) for s in ('train', 'dev')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [digest(world.sample(s, i)) for i in reversed(range(8)) for s in ("train", "dev")]
    assert run.stdout.split() == here
    assert len(set(here)) == 16
    copy = pickle.loads(pickle.dumps(world))
    assert digest(copy.sample("test", 3)) == digest(world.sample("test", 3))


def test_seed_split_and_index_change_the_sample(world):
    other = World(WorldConfig(tasks=ALL, seed=1))
    samples = [world.sample("train", 0), world.sample("train", 1), world.sample("test", 0), other.sample("train", 0)]
    assert len({digest(s) for s in samples}) == 4


def test_a_fifth_to_a_quarter_is_chinese():
    world = World(WorldConfig(turns=1))
    share = np.mean([world.sample("train", i, "count").meta["lang"] == "zh" for i in range(600)])
    assert abs(share - 0.23) < 0.052  # three standard errors of 600 draws


@pytest.mark.parametrize("style", ["pretrain", "chat"])
@pytest.mark.parametrize("task", World.tasks)
def test_every_task_makes_valid_conversations(task, style):
    world = World(WorldConfig(style=style, zh=0.5))
    for index in range(12):
        for split in ("train", "dev"):
            sample = world.sample(split, index, task)
            assert sample.task == task
            assert parse_messages(sample.messages) == sample.messages
            assert [m.role for m in sample.messages] == ["user", "assistant"] * (len(sample.messages) // 2)
            assert all(isinstance(p, Text) for m in sample.messages[1:] for p in m.parts)
            for part in sample.messages[0].parts[:-1]:
                arrays = part.source if isinstance(part, Video) else [part.source]
                assert isinstance(part, Image | Video)
                assert all(a.dtype == np.uint8 and a.ndim == 3 and a.shape[2] == 3 for a in arrays)
            turns = sample.meta["turns"]
            assert len(sample.messages) == 2 * len(turns)
            assert [m.parts[0].text.strip() for m in sample.messages[1::2]] == [t["answer"] for t in turns]
            assert sample.meta["answer"] == turns[-1]["answer"] != ""
            if split == "dev" and task != "dialogue":
                assert len(turns) == 1


def test_training_pictures_are_asked_several_different_questions(world):
    samples = [World(WorldConfig(turns=6)).sample("train", i) for i in range(50)]
    lengths = [len(s.meta["turns"]) for s in samples]
    assert np.mean(lengths) > 5
    assert all(len({t["question"] for t in s.meta["turns"]}) == len(s.meta["turns"]) for s in samples)
    assert {s.task for s in samples} == {"mixed"}


def test_the_mix_follows_the_weights():
    world = World(WorldConfig(turns=1, tasks={"count": 3.0, "background": 1.0, "caption": 0.0}))
    drawn = Counter(world.sample("train", i).task for i in range(400))
    assert set(drawn) == {"count", "background"}
    assert abs(drawn["count"] / 400 - 0.75) < 0.065


def test_yes_and_no_are_equally_frequent_and_half_of_the_absent_ones_are_hard():
    world = World(WorldConfig(turns=1, zh=0.0))
    subgroup = {c.en: c.subgroup for c in world.concepts}
    answers, near = Counter(), []
    for i in range(400):
        meta = world.sample("train", i, "exists").meta
        answers[meta["answer"]] += 1
        if meta["answer"] == "no":
            kinds = {subgroup[n] for n in meta["names"]}
            near.append(subgroup[meta["turns"][0]["about"]["name"]] in kinds)
    assert abs(answers["yes"] / 400 - 0.5) < 0.075
    assert np.mean(near) > 0.35


@pytest.mark.parametrize("task", ["left_right", "above_below", "bigger"])
def test_the_first_word_of_a_choice_is_right_half_of_the_time(task):
    world = World(WorldConfig(turns=1, zh=0.0))
    first = []
    for i in range(150):
        meta = world.sample("train", i, task).meta
        answer, about = meta["answer"], meta["turns"][0]["about"]
        first.append(answer in ("left", "above", about["a"]))
    assert abs(np.mean(first) - 0.5) < 0.125


def test_published_formats_of_the_pretrain_style():
    world = World(WorldConfig(zh=0.0, turns=1))

    def turn(task):
        sample = world.sample("train", 0, task)
        return sample.messages[0].parts[-1].text, sample.messages[1].parts[0].text

    box = r"<\|box_start\|>\(\d+,\d+\),\(\d+,\d+\)<\|box_end\|>"
    ref = r"<\|object_ref_start\|>{}<\|object_ref_end\|>"
    question, answer = turn("grounding")
    assert re.fullmatch(ref.format(r"the [\w -]+"), question)
    assert re.fullmatch(box, answer)
    question, answer = turn("box_to_name")
    assert re.fullmatch(ref.format("This") + box + " is", question)
    assert re.fullmatch(r" [\w -]+", answer)
    question, answer = turn("exists")
    assert re.fullmatch(r"Is there .+\? Answer:", question)
    assert answer in (" yes", " no")
    question, answer = turn("caption_grounded")
    assert question == "Generate the caption in English with grounding:"
    assert re.match(" " + ref.format(r"[\w -]+") + box, answer)


@pytest.mark.slow
def test_the_lexicon_spells_everything_with_whole_pieces():
    """A vocabulary reduced to the lexicon cuts every sample as the full vocabulary does."""
    tokenizer = Tokenizer.qwen2_vl()
    for style in ("pretrain", "chat"):
        world = World(WorldConfig(style=style, zh=0.5, tasks=ALL))
        known = {i for phrase in world.lexicon() for i in tokenizer.encode(phrase)}
        first_special = min(tokenizer.specials.values())
        for index in range(60):
            sample = world.sample("train", index)
            for message in sample.messages:
                text = message.parts[-1].text
                used = {i for i in tokenizer.encode(text, markup=True) if i < first_special}
                assert used <= known, (text, [tokenizer.decode([i]) for i in used - known])


def test_user_errors():
    world = World()
    with pytest.raises(ValueError, match=r"unknown world tasks.*poem.*caption"):
        World(WorldConfig(tasks={"poem": 1.0}))
    with pytest.raises(ValueError, match="unknown world task 'poem'"):
        world.sample("train", 0, "poem")
    with pytest.raises(ValueError, match="split must be one of train, dev, test, got 'eval'"):
        world.sample("eval", 0)
    with pytest.raises(ValueError, match="index must not be negative, got -1"):
        world.sample("train", -1)
    alone = World(WorldConfig(objects=(1.0,), repeats=0.0))
    with pytest.raises(ValueError, match="'left_right'"):
        alone.sample("train", 0, "left_right")


# ---------------------------------------------------------------------------- OCR


def inside(quad, points, slack):
    """Whether points (x, y) lie inside the clockwise (y down) quad grown by `slack` pixels."""
    ok = np.ones(len(points), bool)
    for (x1, y1), (x2, y2) in zip(quad, quad[1:] + quad[:1], strict=True):
        edge = np.hypot(x2 - x1, y2 - y1)
        ok &= ((x2 - x1) * (points[:, 1] - y1) - (y2 - y1) * (points[:, 0] - x1)) / edge >= -slack
    return ok


@pytest.mark.parametrize("font", ["", find_chinese_font()], ids=["built-in", "chinese"])
def test_quads_hug_the_ink(font):
    world = World(WorldConfig(zh=1.0 if font else 0.0, chinese_font=font, gradients=0.0, turns=2))
    chinese = 0
    for index in range(25):
        sample = world.sample("train", index, "ocr")
        pixels = sample.messages[0].parts[0].source.astype(int)
        ink = np.abs(pixels - np.median(pixels.reshape(-1, 3), 0)).max(2) > 70
        points = np.argwhere(ink)[:, ::-1] + 0.5
        covered = np.zeros(len(points), bool)
        for line in sample.meta["lines"]:
            quad = tuple(line["quad_px"])
            chinese += bool(re.search("[\u4e00-\u9fff]", line["text"]))
            own = inside(quad, points, 1.0)
            covered |= own
            for (x1, y1), (x2, y2) in zip(quad, quad[1:] + quad[:1], strict=True):
                normal = np.asarray([-(y2 - y1), x2 - x1]) / np.hypot(x2 - x1, y2 - y1)
                assert ((points[own] - (x1, y1)) @ normal).min() < 3.0  # some ink close to every side
        assert covered.all()
    assert bool(chinese) == bool(font)


def test_ocr_answers_hold_the_lines_and_their_quads():
    world = World(WorldConfig(turns=2))
    for index in range(30):
        sample = world.sample("train", index, "ocr")
        lines, (height, width) = sample.meta["lines"], sample.meta["hw"]
        grounded, plain = sample.meta["turns"]
        found = parse_grounding(grounded["answer"])
        assert [g.label for g in found] == [line["text"] for line in lines]
        assert plain["answer"] == " ".join(line["text"] for line in lines)
        for g, line in zip(found, lines, strict=True):
            expected = np.asarray(line["quad_px"]) / (width, height) * 1000
            assert np.abs(np.asarray(g.quads_1000[0]) - expected).max() <= 1.0


@pytest.mark.parametrize("medium", ["both", "words"])
def test_what_is_written_is_told_where_it_is_written(medium):
    world = World(WorldConfig(medium=medium, turns=1, gradients=0.0, text_size=(0.3, 0.5), text_lines=2))
    named = numbered = 0
    for index in range(40):
        sample = world.sample("train", index, "ocr")
        parts = sample.messages[0].parts
        assert [type(part) for part in parts[:-1]] == [Image, WordPicture][medium == "words" :]
        words = parts[-2].words
        height, width = sample.meta["hw"]
        assert (len(words), len(words[0])) == (height // 28, width // 28)
        lines = sample.meta["lines"]
        written = {line["text"].rstrip("0123456789 ") for line in lines} | {c for line in lines for c in line["text"]}
        assert {word for row in words for word in row} <= written | {sample.meta["background"]}
        if len(lines) > 1:  # lines that share a square hide each other
            continue
        text, quad = lines[0]["text"], np.asarray(lines[0]["quad_px"])
        name = text.rstrip("0123456789 ")
        cells = []
        for place in range(len(text)):
            share = (place + 0.5) / len(text)
            x, y = (quad[[0, 3]].mean(0) * (1 - share) + quad[[1, 2]].mean(0) * share) // 28
            cells.append((int(y), int(x)))
        told = [words[y][x] for y, x in cells]
        assert told[len(name) :] == [c if c != " " else told[len(name) + i] for i, c in enumerate(text[len(name) :])]
        if name:
            assert told[0] == told[len(name) - 1] == name
        digits = [cell for cell, c in zip(cells, text, strict=True) if c.isdigit()]
        assert len(set(digits)) == len(digits), "two digits in one square could not be read"
        named, numbered = named + bool(name), numbered + bool(digits)
    assert named > 3
    assert numbered > 3
    four = World(WorldConfig(medium=medium, turns=1, words_side=4)).sample("train", 0, "ocr")
    assert [len(row) for row in four.messages[0].parts[-2].words] == [4] * 4


def test_text_is_as_large_and_as_much_as_the_config_says():
    world = World(WorldConfig(sizes=((112, 112),), text_size=(0.36, 0.5), text_lines=1, zh=0.0))
    for index in range(20):
        (line,) = world.sample("test", index, "ocr").meta["lines"]
        (x1, y1), _, _, (x2, y2) = line["quad_px"]
        assert 0.18 * 112 < np.hypot(x2 - x1, y2 - y1) < 0.6 * 112  # ink is lower than its font
    for size, lines in (((0.5, 0.4), 1), ((0.1, 1.0), 1), ((0.1, 0.2), 0)):
        with pytest.raises(ValueError, match=r"text_size must be 0 <= low <= high <= 0\.9 and text_lines at least 1"):
            WorldConfig(text_size=size, text_lines=lines)


def test_several_pictures_may_be_told():
    world = World(WorldConfig(medium="words", turns=3, zh=0.0))
    for index in range(10):
        sample = world.sample("train", index, "compare")
        told = [part for part in sample.messages[0].parts if isinstance(part, WordPicture)]
        assert len(told) == sample.meta["pictures"] == len(sample.meta["names"])
        for picture, names, ground in zip(told, sample.meta["names"], sample.meta["background"], strict=True):
            words = {word for row in picture.words for word in row}
            assert words <= {*names, ground}  # a small thing may cover no square
            assert words & set(names)


def test_line_quad_turns_counter_clockwise():
    straight = line_quad((10, 20), 0.0, (50.0, 40.0))
    assert straight == ((40.0, 35.0), (60.0, 35.0), (60.0, 45.0), (40.0, 45.0))
    quarter = line_quad((10, 20), 90.0, (50.0, 40.0))
    assert quarter == ((45.0, 50.0), (45.0, 30.0), (55.0, 30.0), (55.0, 50.0))


def test_a_missing_font_says_so():
    world = World(WorldConfig(zh=1.0, chinese_font="/nowhere/font.otf"))
    with pytest.raises(FileNotFoundError, match=r"/nowhere/font\.otf.*find_chinese_font"):
        world.sample("train", 0, "ocr")


def test_without_a_chinese_font_chinese_samples_render_latin_text():
    world = World(WorldConfig(zh=1.0))
    lines = [line["text"] for i in range(20) for line in world.sample("train", i, "ocr").meta["lines"]]
    assert all(line.isascii() for line in lines)
    assert Ocr.name in World.tasks
    assert dataclasses.is_dataclass(world.config)
