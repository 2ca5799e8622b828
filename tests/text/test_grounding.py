from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qvl.text.family import ANY_MARKUP, QWEN2_VL, QWEN_VL, Mark, Markup
from qvl.text.grounding import (
    EVALUATION_DIVISOR,
    Coordinates,
    Grounded,
    box,
    check_grounding,
    parse_grounding,
    plain_text,
    quad,
    ref,
)

GROUNDING_MARKS = (*QWEN2_VL.markup.written, *QWEN_VL.markup.written)
COORDINATE = st.integers(0, 999)
SPAN = st.tuples(COORDINATE, COORDINATE).map(sorted)
BOXES = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), SPAN, SPAN)
QUADS = st.tuples(*[st.tuples(COORDINATE, COORDINATE)] * 4)
LABELS = st.text(max_size=20).filter(lambda t: "<" not in t)
DEBRIS = st.lists(
    st.one_of(
        st.sampled_from([*GROUNDING_MARKS, "(1,2),(3,4)", "(9,9),(1,1)", "(1234,5),(6,7)", "(1,2", "<|box", "((", " "]),
        st.text(max_size=4),
    ),
    max_size=25,
).map("".join)


# ---------------------------------------------------------------------- writing


def test_written_forms() -> None:
    text = ref("the eyes on a giraffe") + box((176, 106, 232, 160))
    assert text == (
        "<|object_ref_start|>the eyes on a giraffe<|object_ref_end|><|box_start|>(176,106),(232,160)<|box_end|>"
    )
    points = ((568, 121), (625, 131), (624, 182), (567, 172))
    assert quad(points) == "<|quad_start|>(568,121),(625,131),(624,182),(567,172)<|quad_end|>"


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((1, 2, 3), "four integers"),
        ((0, 0, 1000, 5), r"\[0, 999\], got \(0, 0, 1000, 5\)"),
        ((-1, 0, 1, 5), "-1"),
        ((1.0, 2, 3, 4), "four integers"),
        ((True, 2, 3, 4), "four integers"),
        ((5, 0, 4, 5), "x2 < x1"),
        ((0, 9, 4, 5), "y2 < y1"),
    ],
)
def test_bad_boxes_are_not_written(values: tuple, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        box(values)


def test_arrays_are_written_as_numbers() -> None:
    assert box(np.array([1, 2, 30, 40]), QWEN_VL.markup) == "<box>(1,2),(30,40)</box>"
    assert quad(np.array([[1, 2], [3, 4], [5, 6], [7, 8]]), QWEN_VL.markup) == "<quad>(1,2),(3,4),(5,6),(7,8)</quad>"


def test_bad_labels_and_quads_are_not_written() -> None:
    with pytest.raises(ValueError, match="box_start"):
        ref("a <|box_start|>")
    with pytest.raises(ValueError, match="four"):
        quad(((1, 2), (3, 4), (5, 6)))
    with pytest.raises(ValueError, match="1000"):
        quad(((1, 2), (3, 4), (5, 6), (1000, 0)))


# ---------------------------------------------------------------------- reading


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    items=st.lists(
        st.tuples(LABELS, st.lists(BOXES, max_size=3), st.lists(QUADS, max_size=2), LABELS).filter(
            lambda i: i[1] or i[2]
        ),
        max_size=4,
    ),
    markup=st.sampled_from([QWEN_VL.markup, QWEN2_VL.markup]),
)
def test_round_trip(items: list, markup: Markup) -> None:
    text = "".join(
        ref(name, markup) + "".join(box(b, markup) for b in bs) + "".join(quad(q, markup) for q in qs) + tail
        for name, bs, qs, tail in items
    )
    for reader in (markup, ANY_MARKUP):
        check_grounding(text, reader)
        assert parse_grounding(text, reader) == [Grounded(name, tuple(bs), tuple(qs)) for name, bs, qs, _ in items]
        assert plain_text(text, reader) == "".join(name + tail for name, _, _, tail in items)


def test_the_other_familys_marks_are_text() -> None:
    text = "<ref>x</ref><box>(1,2),(3,4)</box>"
    assert parse_grounding(text, QWEN2_VL.markup) == []
    assert plain_text(text, QWEN2_VL.markup) == text
    assert parse_grounding(text) == parse_grounding(text, QWEN_VL.markup) == [Grounded("x", ((1, 2, 3, 4),))]


def test_pieces_make_up_the_text() -> None:
    text = "a<ref>b</ref><|box_start|>(1,2)"
    pieces = list(ANY_MARKUP.split(text))
    assert "".join(map(str, pieces)) == text
    assert [(p.kind, p.opens) for p in pieces if isinstance(p, Mark)] == [("ref", True), ("ref", False), ("box", True)]


def test_examples_of_the_qwen_vl_papers_and_readme() -> None:
    woman = "<ref> Woman</ref><box>(451,379),(731,806)</box> and<ref> her dog</ref><box>(219,424),(576,896)</box>"
    assert parse_grounding(woman) == [
        Grounded(" Woman", ((451, 379, 731, 806),)),
        Grounded(" her dog", ((219, 424, 576, 896),)),
    ]
    assert plain_text(woman + " playing") == " Woman and her dog playing"
    ocr = "<ref>It is managed</ref> <quad>(568,121), (625,131), (624,182), (567,172)</quad>"
    assert parse_grounding(ocr) == [Grounded("It is managed", (), (((568, 121), (625, 131), (624, 182), (567, 172)),))]


def test_who_owns_a_place() -> None:
    one, two = (1, 2, 3, 4), (5, 6, 7, 8)
    assert parse_grounding(box(one) + "and" + box(two)) == [Grounded("", (one, two))]
    # text between a label and its box, and a label without a place
    text = f"{ref('a dog')} sits at {box(one)}, {ref('nothing')}, {ref(' cats')}{box(two)}{box(one)}"
    assert parse_grounding(text) == [Grounded("a dog", (one,)), Grounded(" cats", (two, one))]


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<|box_start|>(1,2),(3,4)", []),  # cut off
        ("(1,2),(3,4)<|box_end|>", []),
        ("<|box_start|>(1,2),<|box_start|>(1,2),(3,4)<|box_end|>", [(1, 2, 3, 4)]),
        ("<|box_start|>(1,2),(3,4)<|quad_end|><|box_end|>", []),
        ("<|box_start|>(9,2),(3,4)<|box_end|><|box_start|>(1,9),(3,4)<|box_end|>", []),
        ("<|box_start|>(1,2),(3,1001)<|box_end|><|box_start|>(1,2),(3,99999)<|box_end|>", []),
        ("<|box_start|>(0,2),(1000,1000)<|box_end|>", [(0, 2, 999, 999)]),
        ("<|box_start|>(1, 2), (3, 4)<|box_end|>", [(1, 2, 3, 4)]),
        ("<|box_start|>(1,2),(3,4),(5,6)<|box_end|>", []),
        ("<|box_start|>(-1,2),(3,4)<|box_end|><|box_start|>(1.5,2),(3,4)<|box_end|>", []),
        ("<|box_start|>(١,٢),(٣,٤)<|box_end|>", []),  # int() would read these digits, models do not write them
        ("<|box_start|>[1,2,3,4]<|box_end|><|box_start|><|box_end|>", []),
        ("<|object_ref_start|>x<|box_start|>(1,2),(3,4)<|box_end|>", [(1, 2, 3, 4)]),
    ],
)
def test_malformed_output_is_skipped(text: str, boxes: list) -> None:
    assert [b for g in parse_grounding(text) for b in g.boxes_1000] == boxes


@settings(max_examples=300, deadline=None)
@given(text=DEBRIS)
def test_what_may_be_learned_is_read_back_whole(text: str) -> None:
    """Whatever the strict check lets through, the tolerant reader loses nothing of."""
    try:
        check_grounding(text)
    except ValueError:
        return
    found = parse_grounding(text)
    closing = [mark.kind for mark in ANY_MARKUP.find(text) if not mark.opens]
    assert sum(len(g.boxes_1000) for g in found) == closing.count("box")
    assert sum(len(g.quads_1000) for g in found) == closing.count("quad")


@settings(max_examples=300, deadline=None)
@given(text=DEBRIS)
def test_never_raises_and_returns_only_sound_places(text: str) -> None:
    for found in parse_grounding(text):
        assert found.boxes_1000 or found.quads_1000
        for x1, y1, x2, y2 in found.boxes_1000:
            assert 0 <= x1 <= x2 <= 999
            assert 0 <= y1 <= y2 <= 999
    assert len(plain_text(text)) <= len(text)


def test_plain_text_of_malformed_places() -> None:
    assert plain_text("a<|box_start|>oops<|box_end|>b<|object_ref_end|>") == "aoopsb"
    assert plain_text("<|box_start|>(1,2),(3,4)") == "(1,2),(3,4)"
    assert plain_text("no marks") == "no marks"


@pytest.mark.parametrize(
    "text",
    [
        "<|box_start|>" * 8_000,
        "<|box_start|>" + "(" * 100_000,
        "<|box_start|>" + "(1,2)," * 17_000 + "<|box_end|>",
        "<|box_start|>" + " " * 100_000 + "<|box_end|>",
        "<|object_ref_start|>" + "<|" * 50_000,
        "<|" * 50_000,
        "<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>" * 1_300,
    ],
)
def test_huge_text_takes_linear_time(text: str) -> None:
    start = time.perf_counter()
    parse_grounding(text)
    plain_text(text)
    with contextlib.suppress(ValueError):
        check_grounding(text)
    assert time.perf_counter() - start < 1.0  # measured at most 0.04 s


# ---------------------------------------------------------------------- coordinates


def test_worked_example() -> None:
    picture = Coordinates(original_hw=(480, 640), resized_hw=(476, 644))
    assert picture.box_px_to_1000((64, 48, 320, 480)) == (100, 100, 500, 999)
    assert picture.box_1000_to_px((100, 100, 500, 999)) == (64, 48, 320, 480)
    assert picture.box_1000_to_resized_px((100, 100, 500, 500)) == (64, 48, 322, 238)
    assert picture.box_1000_to_px((-50, 0, 2000, 1000)) == (0, 0, 640, 480)


def test_three_readings_of_one_box() -> None:
    """Replies and drawings divide by 1000, Qwen-VL's evaluation by 999; only metrics keep fractions."""
    picture = Coordinates(original_hw=(480, 640), resized_hw=(448, 448))
    there = picture.box_px_to_1000((320, 120, 640, 480))
    assert there == (500, 250, 999, 999)
    assert picture.box_1000_to_px(there) == (320, 120, 639, 480)
    assert picture.box_1000_to_resized_px(there) == (224, 112, 448, 448)
    assert picture.box_1000_to_exact_px(there) == pytest.approx((320, 120, 639.36, 479.52))
    exact = picture.box_1000_to_exact_px(there, EVALUATION_DIVISOR)
    assert exact == pytest.approx((320.3203, 120.1201, 640, 480), abs=1e-4)


SIZES = st.integers(1, 5000)


@settings(max_examples=300, deadline=None)
@given(hw=st.tuples(SIZES, SIZES), fractions=st.tuples(*[st.floats(0, 1)] * 4))
def test_pixels_there_and_back(hw: tuple[int, int], fractions: tuple[float, ...]) -> None:
    height, width = hw
    (x1, x2), (y1, y2) = (
        sorted((int(a * s), int(b * s))) for a, b, s in zip(fractions[:2], fractions[2:], hw[::-1], strict=True)
    )
    picture = Coordinates(hw, (28, 28))
    there = picture.box_px_to_1000((x1, y1, x2, y2))
    assert 0 <= there[0] <= there[2] <= 999
    assert 0 <= there[1] <= there[3] <= 999
    back = picture.box_1000_to_px(there)
    for before, after, side in zip((x1, y1, x2, y2), back, (width, height) * 2, strict=True):
        assert abs(before - after) <= max(1, side / 1000 + 0.5)


@settings(max_examples=300, deadline=None)
@given(hw=st.tuples(SIZES, SIZES), there=BOXES)
def test_thousandths_there_and_back(hw: tuple[int, int], there: tuple[int, int, int, int]) -> None:
    height, width = hw
    picture = Coordinates(hw, (28, 28))
    back = picture.box_px_to_1000(picture.box_1000_to_px(there))
    for before, after, side in zip(there, back, (width, height) * 2, strict=True):
        assert abs(before - after) <= max(1, 500 / side + 0.5)


@settings(max_examples=100, deadline=None)
@given(hw=st.tuples(st.integers(1000, 5000), st.integers(1000, 5000)), there=BOXES)
def test_thousandths_survive_exactly_in_large_pictures(hw: tuple[int, int], there: tuple[int, int, int, int]) -> None:
    assume(min(hw) > 1000)
    picture = Coordinates(hw, (28, 28))
    assert picture.box_px_to_1000(picture.box_1000_to_px(there)) == there


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((5, 0, 4, 5), "x2 < x1"),
        ((0, 5, 4, 4), "y2 < y1"),
        ((0, 0, 101, 5), "leaves the picture of width 100 and height 50"),
        ((-0.5, 0, 4, 5), "leaves the picture"),
        ((0, 0, 4), "four finite numbers"),
        ((0, 0, float("nan"), 5), "four finite numbers"),
        ((0, 0, float("inf"), 5), "four finite numbers"),
    ],
)
def test_boxes_that_cannot_be_meant(values: tuple, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Coordinates((50, 100), (56, 112)).box_px_to_1000(values)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"\(0, 5\)"):
        Coordinates((0, 5), (28, 28))
