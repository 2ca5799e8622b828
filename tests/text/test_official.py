"""Official strings to messages, and what answers must not hold."""

from __future__ import annotations

import pytest

from qvl.text.family import QWEN2_VL, QWEN_VL
from qvl.text.grounding import box, ref
from qvl.text.messages import Image, Message, Text
from qvl.text.official import parse_conversation, parse_prompt
from qvl.text.targets import check_targets


def test_pictures_become_parts_and_text_stays_verbatim() -> None:
    assert parse_prompt("Picture 1: <img>a b.png</img>\nWhat?") == (
        Text("Picture 1: "),
        Image("a b.png"),
        Text("\nWhat?"),
    )
    assert parse_prompt("<img>a</img><img>b</img>") == (Image("a"), Image("b"))
    assert parse_prompt("<ref>x</ref>") == (Text("<ref>x</ref>"),)
    assert parse_prompt("") == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("see <img>a.png", "<img> at character 4 of 'see <img>a.png' is never closed"),
        ("a.png</img>", "</img> at character 5 .* closes nothing"),
        ("<img>a<img>b</img>", "<img> at character 0 .* not closed before the next one"),
        ("<img></img>", "names no picture"),
    ],
)
def test_unbalanced_pictures(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_prompt(text)


def test_conversations_of_fine_tuning_files() -> None:
    turns = [{"from": "user", "value": "<img>a</img>?"}, {"from": "assistant", "value": "A cat."}]
    assert parse_conversation(turns) == (
        Message("user", (Image("a"), Text("?"))),
        Message("assistant", (Text("A cat."),)),
    )
    for wrong, complaint in (
        ([], "at least one turn"),
        (["hi"], "turn 0 must be an object with 'from' and 'value', not str"),
        ([{"from": "human", "value": "x"}], "turn 0 must be .*user.*from='human'"),
        ([*turns, {"from": "user", "value": None}], "turn 2 must be .*NoneType"),
        ([*turns, {"from": "user", "value": "<img>"}], "turn 2: <img> .* never closed"),
    ):
        with pytest.raises(ValueError, match=complaint):
            parse_conversation(wrong)


def answered(text: str) -> list[Message]:
    return [Message("user", (Text(text),)), Message("assistant", (Text(text[:3]), Text(text[3:])))]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a <img>b.png", "1 <img> but 0 </img>"),
        ("a </img>", "0 <img> but 1 </img>"),
        ("a <img>b.png</img>", "as a part"),
        ("<ref>a<box>(1,2),(3,4)</box>", "<ref> at character 0 .* is not closed"),
        ("<ref>a", "<ref> at character 0 .* is never closed"),
        ("a</ref>", "</ref> at character 1 .* closes nothing"),
        ("<box>(1,2),(3,4)</quad>", "</quad> .* closes nothing"),
        ("<box>(5,2),(3,4)</box>", r"x2 < x1"),
        ("<box>(1,2),(1000,4)</box>", r"in \[0, 999\], got \(1, 2, 1000, 4\)"),
        ("<box>(1,2),(3,4),(5,6)</box>", "a box is four integers"),
        ("<box>1,2,3,4</box>", r"\(x,y\),\(x,y\) in whole numbers, got '1,2,3,4'"),
        ("<quad>(1,2),(3,4)</quad>", "a quad is four"),
        ("<quad>(1,2),(3,4),(5,6),(-7,8)</quad>", "-7"),
    ],
)
def test_broken_answers_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"message 1 .assistant.: .*{complaint}"):
        check_targets(answered(text), QWEN_VL)
    check_targets(answered(text), QWEN2_VL)  # there it is plain text
    check_targets([Message("user", (Text(text),))], QWEN_VL)  # questions are not learned


def test_sound_answers_pass_in_either_spelling() -> None:
    for markup in (QWEN_VL.markup, QWEN2_VL.markup):
        text = f"3 < 4: {ref(' a cat', markup)}{box((1, 2, 30, 999), markup)}"
        check_targets(answered(text), QWEN_VL)
    check_targets(answered("<quad>(568,121), (625,131), (624,182), (567,172)</quad>"), QWEN_VL)
    with pytest.raises(ValueError, match=r"<\|box_start\|> at character 0 .* never closed"):
        check_targets(answered("<|box_start|>(1,2)"), QWEN2_VL)
