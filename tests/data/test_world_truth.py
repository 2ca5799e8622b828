"""Recomputes every answer from the words of the question and the true boxes alone, with its own geometry."""

import re
from collections import Counter

import numpy as np
import pytest

from qvl.data.world import World, WorldConfig
from qvl.data.world.scene import COLOURS
from qvl.text.grounding import parse_grounding, plain_text

CELLS_EN = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"]
CELLS_ZH = ["左上", "上面", "右上", "左边", "中间", "右边", "左下", "下面", "右下"]
STYLES = ("pretrain", "chat")
MARGIN = 0.1


class Truth:
    """Answers questions about one picture from `Sample.meta`."""

    def __init__(self, meta, concepts):
        self.zh = meta["lang"] == "zh"
        self.names = meta["names_zh"] if self.zh else meta["names"]
        self.boxes = meta["boxes_px"]
        self.hw = meta["hw"]
        self.background = meta["background"]
        self.places = CELLS_ZH if self.zh else CELLS_EN
        self.articles = (
            {} if self.zh else {c.en_phrase: c.en for c in concepts} | {f"the {c.en}": c.en for c in concepts}
        )

    def bare(self, words):
        return self.articles.get(words, words)

    def only(self, name):
        name = self.bare(name)
        assert self.names.count(name) == 1, f"{name} is not unique in {self.names}"
        return self.boxes[self.names.index(name)]

    def x(self, box):
        return (box[0] + box[2]) / 2 / self.hw[1]

    def y(self, box):
        return (box[1] + box[3]) / 2 / self.hw[0]

    @staticmethod
    def area(box):
        return (box[2] - box[0]) * (box[3] - box[1])

    def place(self, box):
        row, column = (3 * (box[i] + box[i + 2]) // (2 * side) for i, side in ((1, self.hw[0]), (0, self.hw[1])))
        return self.places[3 * row + column]

    def side(self, a, b, axis):
        difference = self.x(a) - self.x(b) if axis == "x" else self.y(a) - self.y(b)
        assert abs(difference) >= MARGIN - 1e-9, "too close to call"
        words = {"x": (("left", "左边"), ("right", "右边")), "y": (("above", "上面"), ("below", "下面"))}[axis]
        return words[difference > 0][self.zh]

    def colour(self):
        return COLOURS[self.background][0] if self.zh else self.background

    def to_1000(self, box):
        h, w = self.hw
        return tuple(min(999, int(v * 1000 / s + 0.5)) for v, s in zip(box, (w, h, w, h), strict=True))

    def described(self, words):
        """The one box that the words can mean."""
        words = self.bare(words)
        if words in self.names:
            return self.only(words)
        rules = {
            "the biggest object|最大的物体": lambda b: -self.area(b),
            "the smallest object|最小的物体": self.area,
            "the leftmost object|最左边的物体": self.x,
            "the rightmost object|最右边的物体": lambda b: -self.x(b),
            "the topmost object|最上面的物体": self.y,
            "the lowest object|最下面的物体": lambda b: -self.y(b),
        }
        for pattern, key in rules.items():
            if re.fullmatch(pattern, words):
                return min(self.boxes, key=key)
        match = re.fullmatch(r"the object (?:at|on|in) the (.+)|(..)的物体", words)
        if match and (found := match[1] or match[2]) in self.places:
            fits = [b for b in self.boxes if self.place(b) == found]
        else:
            match = re.fullmatch(r"the object (to the left of|to the right of|above|below) (.+)", words)
            if match:
                side, anchor = match[1].replace("to the ", "").replace(" of", ""), match[2]
            else:
                anchor, side = re.fullmatch(r"(.+)(左边|右边|上面|下面)的物体", words).groups()
            box = self.only(anchor)
            axis = "x" if side in ("left", "right", "左边", "右边") else "y"
            fits = [b for b in self.boxes if b != box and self.side(b, box, axis) == side]
        assert len(fits) == 1, f"{words!r} fits {len(fits)} objects"
        return fits[0]


def check_caption(truth, turn):
    text = plain_text(turn["answer"])
    detailed = "detail" in turn["question"] or "详细" in turn["question"]
    assert (truth.colour() in text) or not detailed
    for name in truth.names:
        assert name in text
    if len(truth.names) == 2 and not detailed:
        pattern = r"(.+)在(.+)的(左边|上面)" if truth.zh else r"(.+) (to the left of|above) (.+)"
        groups = re.fullmatch(pattern, text).groups()
        a, b, relation = groups if truth.zh else (groups[0], groups[2], groups[1])
        if truth.bare(a) != truth.bare(b):
            first, second = truth.only(a), truth.only(b)
            key = truth.x if "left" in relation or relation == "左边" else truth.y
            assert key(first) <= key(second)
        return
    body = re.sub(r"(, on a \w+ background|，背景是..)$", "", text)
    said = Counter()
    for part in body.split("，" if truth.zh else ", "):
        match = re.fullmatch(r"(.+)在(..)" if truth.zh else r"(.+) (?:at|on|in) the (.+)", part)
        said[truth.bare(match[1]), match[2]] += 1
    assert said == Counter((n, truth.place(b)) for n, b in zip(truth.names, truth.boxes, strict=True))


def check_caption_grounded(truth, turn):
    check_caption(truth, turn)
    said = Counter((truth.bare(g.label), g.boxes_1000[0]) for g in parse_grounding(turn["answer"]))
    assert said == Counter((n, truth.to_1000(b)) for n, b in zip(truth.names, truth.boxes, strict=True))


def check_box(truth, turn):
    [asked] = re.findall(
        r"<\|object_ref_start\|>(.+)<\|object_ref_end\|>|Give the box of (.+)\.|给出(.+)的方框。",
        turn["question"],
    )
    box = truth.described("".join(asked))
    assert [g.boxes_1000 for g in parse_grounding(turn["answer"])] == [(truth.to_1000(box),)]
    assert [tuple(b) for b in turn["boxes_px"]] == [tuple(box)]


def check_box_to_name(truth, turn):
    [(given,)] = [g.boxes_1000 for g in parse_grounding(turn["question"])]
    fits = {n for n, b in zip(truth.names, truth.boxes, strict=True) if truth.to_1000(b) == given}
    assert fits == {truth.bare(turn["answer"])}


def match(turn, english, chinese):
    found = re.search(english, turn["question"]) or re.search(chinese, turn["question"])
    assert found, turn["question"]
    return found.groups()


def check_what(truth, turn):
    place = next(g for g in match(turn, r"What is (?:at|on|in) the (.+)\?", r"(?:^|。)(..)是什么") if g)
    fits = [n for n, b in zip(truth.names, truth.boxes, strict=True) if truth.place(b) == place]
    assert fits == [truth.bare(turn["answer"])]


def check_count(truth, turn):
    assert turn["answer"] == str(len(truth.names))


def check_count_same(truth, turn):
    (name,) = match(turn, r"see the (.+)\?", r"图片里有几个(.+)？")
    assert turn["answer"] == str(truth.names.count(name))
    assert len(set(truth.names)) < len(truth.names)


def check_exists(truth, turn):
    (name,) = match(turn, r"Is there (.+)\?", r"(?:^|。)有(.+)吗？")
    present = truth.bare(name) in truth.names
    assert turn["answer"] == (("没有", "有") if truth.zh else ("no", "yes"))[present]


def word(turn):
    """The answer without the words a conversation puts around it."""
    return re.sub(r"^(?:it is|to) (?:(?:at|on|in) )?(?:the )?", "", turn["answer"])


def check_background(truth, turn):
    assert word(turn) == truth.colour()


def check_left_right(truth, turn):
    a, b = match(turn, r"Is (.+) left or right of (.+)\?", r"(?:^|。)([^。]+)在(.+)的左边还是右边")
    assert word(turn) == truth.side(truth.only(a), truth.only(b), "x")


def check_above_below(truth, turn):
    a, b = match(turn, r"Is (.+) above or below (.+)\?", r"(?:^|。)([^。]+)在(.+)的上面还是下面")
    assert word(turn) == truth.side(truth.only(a), truth.only(b), "y")


def check_where(truth, turn):
    (name,) = match(turn, r"Where is (.+)\?", r"(?:^|。)([^。]+)在哪里")
    assert word(turn) == truth.place(truth.only(name))


def check_bigger(truth, turn):
    a, b = match(turn, r"Which is bigger, (.+) or (.+)\?", r"(?:^|。)([^。]+)和(.+)哪个更大")
    area = {truth.bare(n): truth.area(truth.only(n)) for n in (a, b)}
    small, big = sorted(area, key=area.get)
    assert truth.bare(turn["answer"]) == big
    assert area[big] >= 1.4 * area[small]


CHECKS = {
    "caption": check_caption,
    "caption_grounded": check_caption_grounded,
    "grounding": check_box,
    "referring": check_box,
    "box_to_name": check_box_to_name,
    "what": check_what,
    "count": check_count,
    "count_same": check_count_same,
    "exists": check_exists,
    "background": check_background,
    "left_right": check_left_right,
    "above_below": check_above_below,
    "where": check_where,
    "bigger": check_bigger,
}


@pytest.fixture(scope="module", params=STYLES)
def world(request):
    return World(WorldConfig(style=request.param, zh=0.5, turns=4))


@pytest.mark.parametrize("task", CHECKS)
def test_answers_about_a_picture_are_true(world, task):
    asked = Counter()
    for index in range(50):
        sample = world.sample(("train", "dev", "test")[index % 3], index, task)
        truth = Truth(sample.meta, world.concepts)
        for turn in sample.meta["turns"]:
            assert turn["task"] == task
            CHECKS[task](truth, turn)
            asked[turn["lang"]] += 1
    assert min(asked["en"], asked["zh"]) >= 10


def test_answers_about_a_told_scene_are_true_and_all_is_told(world):
    styles = Counter()
    for index in range(120):
        sample = world.sample("train", index, "text")
        truth = Truth(sample.meta, world.concepts)
        told = sample.messages[0].parts[0].text
        assert len(sample.messages[0].parts) == 1
        boxed = "<|box_start|>" in told
        styles[boxed] += 1
        for name, box in zip(truth.names, truth.boxes, strict=True):
            assert ("({},{}),({},{})".format(*truth.to_1000(box)) in told) == boxed
            assert name in told
        assert truth.colour() in told
        for turn in sample.meta["turns"]:
            assert boxed or turn["task"] not in ("grounding", "referring", "box_to_name", "caption_grounded", "bigger")
            CHECKS[turn["task"]](truth, turn)
    assert len(styles) == 2


@pytest.mark.parametrize("language", ["en", "zh"])
def test_word_pictures_show_the_scene(language):
    told = World(WorldConfig(medium="words", repeats=0, zh=float(language == "zh"), sizes=((112, 140), (140, 84))))
    drawn = World(WorldConfig(repeats=0, zh=float(language == "zh"), sizes=((112, 140), (140, 84))))
    found = 0
    for index in range(60):
        sample = told.sample("train", index, "what")
        (height, width), meta = sample.meta["hw"], sample.meta
        assert meta["boxes_px"] == drawn.sample("train", index, "what").meta["boxes_px"]
        words = sample.messages[0].parts[0].words
        assert (len(words), {len(row) for row in words}) == (height // 28, {width // 28})
        for y, row in enumerate(words):
            for x, word in enumerate(row):
                covers = {n: _covered(b, x, y) for n, b in zip(meta["names"], meta["boxes_px"], strict=True)}
                # Nothing is named that covers less than a fifth; what covers more than half is never left out.
                assert word == meta["background"] or covers[word] >= 0.2
                assert word != meta["background"] or max(covers.values()) <= 0.5
                found += word != meta["background"]
    assert found > 150


def _covered(box, x, y):
    """Share of the 28-pixel square in column x and row y that the box covers."""
    x1, y1, x2, y2 = box
    wide = max(0, min(x2, 28 * x + 28) - max(x1, 28 * x))
    high = max(0, min(y2, 28 * y + 28) - max(y1, 28 * y))
    return wide * high / 28**2


def test_comparisons_are_true(world):
    kinds = Counter()
    for index in range(120):
        meta = world.sample("dev", index, "compare").meta
        shown = meta["names"]
        (turn,) = meta["turns"]
        about, answer = turn["about"], turn["answer"]
        ordinals = {"the first": 0, "the second": 1, "the third": 2, "第一张": 0, "第二张": 1, "第三张": 2}
        kinds[about["kind"]] += 1
        if about["kind"] == "which":
            assert [i for i, names in enumerate(shown) if about["name"] in names] == [ordinals[answer]]
        elif about["kind"] == "every":
            assert (answer in ("yes", "有")) == all(about["name"] in names for names in shown)
        else:
            most = max(map(len, shown))
            assert [i for i, names in enumerate(shown) if len(names) == most] == [ordinals[answer]]
    assert set(kinds) == {"which", "every", "most"}


def test_dialogues_speak_the_truth_about_it(world):
    followed = 0
    for index in range(120):
        sample = world.sample("train", index, "dialogue")
        truth = Truth(sample.meta, world.concepts)
        focus = None
        for turn in sample.meta["turns"]:
            question, answer = turn["question"], turn["answer"]
            grounded = parse_grounding(answer)
            if turn["about"].get("kind") == "point":
                focus = truth.only(grounded[0].label)
                assert grounded[0].boxes_1000 == (truth.to_1000(focus),)
                asked = parse_grounding(question)
                assert not asked or asked[0].boxes_1000 == grounded[0].boxes_1000
                continue
            if focus is None:
                check_caption(truth, turn)
                continue
            followed += 1
            if question.startswith("What") or question.endswith("是什么？"):
                assert grounded
            elif other := re.search(r"right of (.+)\?|它在(.+)的左边还是", question):
                assert word(turn) == truth.side(focus, truth.only(other[1] or other[2]), "x")
            elif other := re.search(r"below (.+)\?|它在(.+)的上面还是", question):
                assert word(turn) == truth.side(focus, truth.only(other[1] or other[2]), "y")
            elif other := re.search(r"bigger than (.+)\?|它比(.+)大吗", question):
                bigger = truth.area(focus) > truth.area(truth.only(other[1] or other[2]))
                assert (answer in ("yes", "是")) == bigger
            else:
                assert question in ("Where is it?", "它在哪里？")
                assert word(turn) == truth.place(focus)
            if grounded:
                box = truth.only(grounded[0].label)
                side = re.search(r"left|right|above|below|左边|右边|上面|下面", question)[0]
                axis = "x" if side in ("left", "right", "左边", "右边") else "y"
                assert truth.side(box, focus, axis) == side
                assert grounded[0].boxes_1000 == (truth.to_1000(box),)
    assert followed > 100


def test_clips_show_what_their_answers_say(world):
    kinds = Counter()
    for index in range(90):
        sample = world.sample("train", index, "video")
        meta, frames = sample.meta, sample.messages[0].parts[0].source
        assert len(frames) == meta["frames"] == len(meta["boxes_px"])
        assert len(frames) % 2 == 0
        paths = dict(zip(meta["names"], zip(*meta["boxes_px"], strict=True), strict=True))
        for turn in meta["turns"]:
            about, answer = turn["about"], turn["answer"]
            kinds[about["kind"]] += 1
            if about["kind"] == "motion":
                moving = [n for n, path in paths.items() if path[0] != path[-1]]
                assert moving == [about["name"]]
                dx, dy = np.subtract(paths[moving[0]][-1], paths[moving[0]][0])[:2]
                way = {(1, 0): "right", (-1, 0): "left", (0, 1): "down", (0, -1): "up"}[np.sign(dx), np.sign(dy)]
                zh = {"right": "向右", "left": "向左", "down": "向下", "up": "向上"}
                if about["asked"] == "way":
                    assert answer in (way, zh[way])
            elif about["kind"] == "order":
                start = {n: next(i for i, b in enumerate(path) if b) for n, path in paths.items()}
                assert min(start, key=start.get) == about["name"]
                assert len(set(start.values())) == 2
            else:
                visible = [b is not None for b in paths[about["name"]]]
                starts = sum(v and not (i and visible[i - 1]) for i, v in enumerate(visible))
                assert answer == str(starts)
        changed = np.zeros(meta["hw"], bool)
        covered = np.zeros(meta["hw"], bool)
        for frame, boxes in zip(frames, meta["boxes_px"], strict=True):
            changed |= (np.abs(frame.astype(int) - frames[0]) > 128).any(2)
            for x1, y1, x2, y2 in filter(None, boxes):
                covered[y1:y2, x1:x2] = True
        assert not (changed & ~covered).any()
    assert set(kinds) == {"motion", "order", "times"}
