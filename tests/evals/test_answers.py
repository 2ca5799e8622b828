"""VQA accuracy, exact matches, ANLS, relaxed accuracy, boxes, names: against worked and official examples."""

import hashlib
import json

import pytest

from qvl.evals.metrics.anls import anls, levenshtein
from qvl.evals.metrics.chartqa import relaxed_match
from qvl.evals.metrics.grounding import hit, iou, v1_box_px
from qvl.evals.metrics.names import NameFinder, set_f1
from qvl.evals.metrics.vqa import (
    CONTRACTIONS,
    exact_match,
    gqa_answer,
    normalise_answer,
    normalise_punctuation,
    vqa_accuracy,
)

# digest of the sorted table in the script that Qwen-VL ships
OFFICIAL_CONTRACTIONS = "3e5960526f62912d3b70896069c43c13d7c21be38d50ca28efbb9095b499454f"


def test_contraction_table_is_the_official_one():
    assert hashlib.sha256(json.dumps(sorted(CONTRACTIONS.items())).encode()).hexdigest() == OFFICIAL_CONTRACTIONS
    assert CONTRACTIONS["somebody'd"] == "somebodyd"  # its oddities too


# Right sides come from running the official script.
@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Two dogs, the red ones.", "2 dogs red ones"),
        ("dont", "don't"),
        ("5.5", "5.5"),
        ("at 5.", "at 5"),
        (".5", ".5"),
        ("1,000", "1000"),
        ("1,000 - or/so", "1000 orso"),
        ("black/white", "black white"),
        ("a (big) dog", "big dog"),
        ("none\tof\nthem", "0 of them"),
        ("Yes!", "yes"),
        ("t-shirt", "t shirt"),
    ],
)
def test_official_normaliser(text, normalised):
    assert normalise_answer(text) == normalised


def test_normaliser_drops_at_most_32_full_stops():
    assert normalise_punctuation("x." * 40) == "x" * 32 + "x." * 8  # upstream passes re.UNICODE (32) as the count


@pytest.mark.parametrize(("equal", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_leaves_one_out(equal, score):
    answers = ["dog"] * equal + [f"other {i}" for i in range(10 - equal)]
    assert vqa_accuracy("The dog.", answers) == pytest.approx(score)


def test_vqa_annotators_are_normalised_only_when_they_disagree():
    assert vqa_accuracy("yes.", ["yes."] * 10) == 0.0
    assert vqa_accuracy("yes.", ["yes."] * 9 + ["no"]) == 1.0
    with pytest.raises(ValueError, match="annotators' answers"):
        vqa_accuracy("yes", "yes")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("It is a dog, I think.", "dog"),
        ("Yes! Sure", "yes"),
        ("the top of the hill", "top"),
        ("they are in the pizza slice", "slice"),
        ("an old man", "old man"),
    ],
)
def test_gqa_answer_is_cut_as_upstream_cuts_it(reply, answer):
    assert gqa_answer(reply) == answer


def test_exact_match_ignores_case_and_edges_only():
    assert exact_match(" Dog ", ["cat", "dog"])
    assert not exact_match("dog.", ["dog"])
    with pytest.raises(ValueError, match="list of strings"):
        exact_match("dog", "dog")


def test_levenshtein():
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein("", "abc") == levenshtein("abc", "") == 3
    assert levenshtein("flaw", "lawn") == 2
    assert levenshtein("猫在左", "狗在左") == 1


def test_anls_threshold_and_best_answer():
    assert anls("Hello World", ["hello  world"]) == 1.0  # case and white space cost nothing
    assert anls("abcd", ["abxx"]) == 0.5  # exactly the threshold counts
    assert anls("abcd", ["axxx"]) == 0.0
    assert anls("12", ["13", "12"]) == 1.0
    assert anls("", [""]) == 1.0
    assert anls("abcd", ["abcx   "]) == pytest.approx(1 - 1 / 7)  # raw length divides, as in the official script
    with pytest.raises(ValueError, match="non-empty list"):
        anls("a", [])


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("95", "100", True),
        ("12%", "0.12", True),
        ("12", "12%", False),
        ("0", "0", True),
        ("0.01", "0", False),
        ("Yes", "yes", True),
        ("blue", "red", False),
        ("-5", "-5.2", True),
    ],
)
def test_relaxed_match(prediction, target, right):
    assert relaxed_match(prediction, target) is right


def test_relaxed_match_with_upstreams_swapped_arguments():
    assert not relaxed_match("95", "90.3")  # 5.2 % of the target
    assert relaxed_match("90.3", "95")  # 4.9 % of the prediction: Qwen-VL's published convention


def test_iou():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert iou((0, 0, 4, 4), (1, 1, 3, 3)) == pytest.approx(0.25)
    assert iou((1, 1, 1, 1), (0, 0, 2, 2)) == 0
    assert hit(0.5)
    assert not hit(0.4999)
    with pytest.raises(ValueError, match="got 3 numbers"):
        iou((0, 0, 1), (0, 0, 1, 1))


def test_v1_boxes_divide_by_999():
    assert v1_box_px("<box>(0,0),(999,999)</box>", (300, 200)) == (0, 0, 200, 300)
    assert v1_box_px("(500,250),(999,500)", (1000, 1000), divisor=1000) == (500, 250, 999, 500)
    assert v1_box_px("no box", (10, 10)) == v1_box_px("(1),(2,3)", (10, 10)) == (0, 0, 0, 0)
    assert v1_box_px("(1,2),(3,4)(5,6),(7,8)", (999, 999)) == (1, 2, 3, 4)


def test_names_longest_match_and_word_boundaries():
    finder = NameFinder(
        {"dog": "dog", "hot dog": "hot dog", "狗": "dog", "热狗": "hot dog", "cats": "cat", "cat": "cat"}
    )
    assert finder.find("A Hot Dog and a dog; two cats, a catalogue.") == ["hot dog", "dog", "cat"]
    assert finder.find("热狗在狗的左边，cat在右边") == ["hot dog", "dog", "cat"]
    assert finder.find("dogs") == []
    assert NameFinder(["ice", "ice cream", "冰", "冰淇淋"]).find("ice cream, ice, 冰淇淋和冰") == [
        "ice cream",
        "ice",
        "冰淇淋",
        "冰",
    ]
    with pytest.raises(ValueError, match="at least one"):
        NameFinder([])


def test_set_f1():
    score = set_f1(["cat", "dog", "cat"], ["cat", "tree", "sun"])
    assert (score.precision, score.recall, score.f1) == (pytest.approx(1 / 2), pytest.approx(1 / 3), pytest.approx(0.4))
    assert set_f1([], []).f1 == 1
    assert set_f1([], ["cat"]).f1 == 0
