"""What each task asks, what it calls right, what it reports per group."""

import pytest

from qvl.evals.metrics.names import NameFinder
from qvl.evals.tasks.answers import Compare, Dialogue, Naming, Ocr, Vqa
from qvl.evals.tasks.base import plain_answer, question, true_answer
from qvl.evals.tasks.caption import Caption, GroundedCaption
from qvl.evals.tasks.grounding import Grounding
from qvl.text.messages import Message, Text

NAMES = NameFinder({"cat": "cat", "dog": "dog", "tree": "tree", "猫": "cat", "狗": "dog"})


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (" A  Dog.", "dog"),
        ("the old  man!", "old man"),
        ("狗。", "狗"),
        ("an axe", "axe"),
        ("anchor", "anchor"),
        ("theatre", "theatre"),
        ("", ""),
    ],
)
def test_plain_answer(text, plain):
    assert plain_answer(text) == plain


def test_requests_hide_the_answer_and_decode_greedily(make_sample):
    sample = make_sample("a", "count", "How many?", " 2")
    (request,) = Vqa().requests([sample], "raw")
    assert request.messages == sample.messages[:-1]
    assert request.sampling.temperature == 0
    assert request.sampling.max_new_tokens == Vqa.max_new_tokens
    assert request.chat_format == "raw"
    assert question(sample) == "<image>How many?"
    assert true_answer(sample) == "2"


def test_a_sample_without_an_answer_is_named(make_sample):
    sample = make_sample("s/7", "count")
    unanswered = type(sample)("s/7", "count", sample.messages[:1])
    with pytest.raises(ValueError, match="sample s/7 must end with an assistant turn"):
        Vqa().requests([unanswered])


def test_naming_and_vqa_report_groups(make_sample, make_reply):
    samples = [
        make_sample("1", "what", answer=" dog", boxes_px=[(0, 0, 1, 1)]),
        make_sample("2", "what", answer=" cat", boxes_px=[(0, 0, 1, 1)] * 2),
        make_sample("3", "box_to_name", answer="狗", lang="zh", boxes_px=[(0, 0, 1, 1)]),
        make_sample("4", "box_to_name", answer=" a cat", boxes_px=[(0, 0, 1, 1)]),
    ]
    replies = [make_reply("A dog."), make_reply("dog"), make_reply("狗"), make_reply("hot cat")]
    metrics = Naming().score(samples, replies)
    assert {k: (m.value, m.n) for k, m in metrics.items()} == {
        "accuracy": (0.5, 4),
        "accuracy/kind=what": (0.5, 2),
        "accuracy/kind=box_to_name": (0.5, 2),
        "accuracy/lang=en": (pytest.approx(1 / 3), 3),
        "accuracy/lang=zh": (1.0, 1),
        "accuracy/objects=1": (pytest.approx(2 / 3), 3),
        "accuracy/objects=2": (0.0, 1),
    }
    assert metrics["accuracy"].ci_low < 0.5 < metrics["accuracy"].ci_high


def test_grounding_takes_the_first_box(make_sample, make_reply):
    true = {"answer_boxes_px": [(0, 0, 20, 10)], "boxes_px": [(0, 0, 20, 10)]}
    samples = [make_sample(str(i), "grounding", "Where?", "x", **true) for i in range(4)]
    replies = [
        make_reply("", ("", (0, 0, 20, 10)), ("", (30, 30, 40, 40))),
        make_reply("", ("", (0, 0, 10, 10))),  # IoU exactly 0.5 counts
        make_reply("", ("", (0, 0, 9, 10))),
        make_reply("(1,2)"),
    ]
    judged = Grounding().judge(samples, replies)
    assert [j["acc@0.5"] for j in judged] == [1, 1, 0, 0]
    assert [j["iou"] for j in judged] == pytest.approx([1, 0.5, 0.45, 0])
    assert [j["readable"] for j in judged] == [1, 1, 1, 0]


def test_captions_are_scored_per_language(make_sample, make_reply):
    samples = [
        make_sample("1", "caption", answer=" a cat on the left side", names=["cat"]),
        make_sample("2", "caption", answer=" a dog at the top right", names=["dog"]),
        make_sample("3", "caption", answer="一只猫在左边", lang="zh", names=["cat"]),
        make_sample("4", "caption", answer="一只狗在右上", lang="zh", names=["dog"]),
    ]
    right = [make_reply(true_answer(s)) for s in samples]
    metrics = Caption(NAMES).score(samples, right)
    assert metrics["cider"].value == pytest.approx(10)
    assert metrics["cider/lang=zh"].value == pytest.approx(10)  # document frequencies of the Chinese half alone
    assert metrics["exact"].value == metrics["f1"].value == 1
    swapped = [make_reply("A dog, a cat."), *right[1:2], make_reply("狗"), *right[3:]]
    judged = Caption(NAMES).judge(samples, swapped)
    assert judged[0]["f1"] == pytest.approx(2 / 3)
    assert judged[2]["f1"] == judged[2]["exact"] == 0
    assert judged[1]["cider"] == pytest.approx(10)
    assert 0 < judged[0]["cider"] < 5


def test_captions_use_several_references_where_there_are(make_sample, make_reply):
    samples = [
        make_sample("1", "caption", answer="one thing", names=[], references=["a red cat sits", "one red cat"]),
        make_sample("2", "caption", answer="a blue dog", names=[]),
    ]
    judged = Caption(NAMES).judge(samples, [make_reply("a red cat sits"), make_reply("no idea")])
    assert judged[0]["cider"] > 5


def test_grounded_f1_needs_name_and_place(make_sample, make_reply):
    meta = {"names": ["cat", "dog"], "boxes_px": [(0, 0, 10, 10), (20, 0, 30, 10)]}
    sample = make_sample("1", "caption_grounded", answer="a cat and a dog", **meta)
    other = make_sample("2", "caption_grounded", answer="a tree", names=["tree"], boxes_px=[(0, 0, 5, 5)])
    cat, dog = ("a cat", (0, 0, 10, 9)), (" dog", (20, 0, 30, 10))
    cases = {
        (cat, dog): 1.0,
        (cat,): 2 / 3,
        (cat, ("a cat", (0, 0, 10, 10))): 0.5,  # the same object twice counts once
        (("a dog", (0, 0, 10, 10)), ("a cat", (20, 0, 30, 10))): 0.0,  # names swapped
        ((("a cat", (0, 0, 10, 4))),): 0.0,  # overlap 0.4
        (): 0.0,
    }
    for boxes, value in cases.items():
        judged = GroundedCaption(NAMES).judge([sample, other], [make_reply("", *boxes), make_reply("")])
        assert judged[0]["grounded_f1"] == pytest.approx(value), boxes


def test_nothing_there_and_nothing_said_is_right(make_sample, make_reply):
    empty = make_sample("1", "caption_grounded", answer="an empty table", names=[], boxes_px=[])
    cat = make_reply("a cat", ("a cat", (0, 0, 5, 5)))
    assert GroundedCaption(NAMES).judge([empty], [make_reply("nothing")])[0]["grounded_f1"] == 1.0
    assert GroundedCaption(NAMES).judge([empty], [cat])[0]["grounded_f1"] == 0.0


def test_a_dialogue_ends_with_words_or_with_a_place(make_sample, make_reply):
    words = make_sample("1", "dialogue", answer="left", answer_boxes_px=[])
    place = make_sample("2", "dialogue", answer="there", answer_boxes_px=[(0, 0, 10, 10)])
    replies = [make_reply("Left."), make_reply("here", ("a dog", (0, 0, 10, 9))), make_reply("there"), make_reply("up")]
    judged = Dialogue().judge([words, place, place, words], replies)
    assert [j["accuracy"] for j in judged] == [1, 1, 0, 0]


def test_objects_are_counted_only_for_a_single_picture(make_sample, make_reply):
    sample = make_sample("1", "compare", answer="no", boxes_px=[[(0, 0, 1, 1)], []])
    first, *rest = sample.messages
    two = type(sample)("1", "compare", (Message("user", (first.parts[0], *first.parts)), *rest), sample.meta)
    assert set(Compare().score([two], [make_reply("No")])) == {"accuracy", "accuracy/lang=en"}


def test_ocr_scores_by_edit_distance(make_sample, make_reply):
    samples = [make_sample("1", "ocr", answer="Hello"), make_sample("2", "ocr", answer="x", answers=["你好", "您好"])]
    judged = Ocr().judge(samples, [make_reply("Hallo"), make_reply("您好")])
    assert judged == [{"anls": pytest.approx(0.8), "exact": 0.0}, {"anls": 1.0, "exact": 1.0}]
    quads = "<|object_ref_start|>Hello<|object_ref_end|><|quad_start|>(1,1),(9,1),(9,5),(1,5)<|quad_end|>"
    (judged,) = Ocr().judge([make_sample("3", "ocr", answer=quads)], [make_reply(quads.replace("(9,5)", "(8,5)"))])
    assert judged == {"anls": 1.0, "exact": 1.0}  # words count, places do not


def test_true_answer_reads_the_last_turn(make_sample):
    sample = make_sample("1", "count", answer="1")
    longer = (*sample.messages, Message("user", (Text("And now?"),)), Message("assistant", (Text(" 2 "),)))
    sample = type(sample)("1", "count", longer, sample.meta)
    assert (question(sample), true_answer(sample)) == ("And now?", "2")
