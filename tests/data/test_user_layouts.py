"""The four layouts become the same conversation; what is wrong with a line is said with the field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from qvl.data.user.boxes import rescale
from qvl.data.user.layouts import layout_of, read_entry
from qvl.data.user.objects import unit_of
from qvl.text.grounding import parse_grounding
from qvl.text.messages import Image, Message, Text, Video

LLAVA = {
    "id": "0",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}],
}
SHAREGPT = {
    "messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}],
    "images": ["a.png"],
}
OPENAI = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "content": "A cat."},
    ]
}
QWEN_VL = {
    "conversations": [
        {"from": "user", "value": "Picture 1: <img>a.png</img>\nWhat is it?"},
        {"from": "assistant", "value": "A cat."},
    ]
}
LAYOUTS = {"llava": LLAVA, "sharegpt": SHAREGPT, "openai": OPENAI, "qwen_vl": QWEN_VL}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder with a.png, 40 high and 80 wide, and b.png, 50 high and 50 wide."""
    Picture.fromarray(np.zeros((40, 80, 3), np.uint8)).save(tmp_path / "a.png")
    Picture.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / "b.png")
    return tmp_path


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_the_same_conversation(root: Path, name: str) -> None:
    assert layout_of(LAYOUTS[name]) == name
    assert read_entry(LAYOUTS[name], root) == (
        Message("user", (Image(str(root / "a.png")), Text("What is it?"))),
        Message("assistant", (Text("A cat."),)),
    )


def test_several_pictures_clips_systems_and_tools(root: Path) -> None:
    (root / "c.mp4").write_bytes(b"x")
    entry = {
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "<image>and <image>, then <video>\nCompare."},
            {"role": "assistant", "content": "They differ."},
            {"role": "tool", "content": "42"},
            {"role": "assistant", "content": "42."},
        ],
        "images": ["a.png", "b.png"],
        "videos": [["a.png", "b.png"]],
    }
    messages = read_entry(entry, root)
    assert [m.role for m in messages] == ["system", "user", "assistant", "tool", "assistant"]
    pictures = [p.source for p in messages[1].parts if isinstance(p, Image)]
    assert pictures == [str(root / "a.png"), str(root / "b.png")]
    (clip,) = (p for p in messages[1].parts if isinstance(p, Video))
    assert clip.source == (str(root / "a.png"), str(root / "b.png"))
    assert [p.text for p in messages[1].parts if isinstance(p, Text)] == ["and ", ", then ", "Compare."]


def turns(question: str, answer: str = "yes", **more: object) -> dict:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ([1], "not list"),
        ({"text": "a"}, "neither 'messages' nor 'conversations', only 'text'"),
        ({"messages": []}, "messages must be a list with at least one turn"),
        ({"messages": ["hi"]}, r"messages\[0\] must be an object, not str"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"messages\[0\].role is 'bot'; known are user, human"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"messages\[0\].role is \['user'\]; known are user"),
        ({"conversations": [{"from": "human", "value": 3}]}, r"conversations\[0\].value must be text"),
        ({"conversations": [{"from": "human", "value": ["x"]}]}, r"conversations\[0\].value must be text; parts in a"),
        ({"messages": [{"role": "user", "content": "x"}]}, "ends with a turn of the user"),
        (turns("x", ""), "the answer in turn 1 is empty"),
        (turns("x", " \n"), "the answer in turn 1 is empty"),
        (turns("x", system={"a": 1}), "the field 'system' must be text"),
        (turns("<image>", image="iVBORw0K" * 1000), r"'iVBORw0K.*'... \(8000 characters\) is no path"),
        (turns("<image>", image={"bytes": "iVBORw0K" * 1000}), r"not as {'bytes': 'iVBORw0K.{,30}'}$"),
        (turns("<bbox>", objects={"bbox": 5}), "objects.bbox must be a list with one item for each object, got 5"),
        (turns("<ref-object>", objects={"ref": "cat"}), "objects.ref must be a list with one item"),
        (turns("<bbox>", objects={"bbox": [], "image_id": [[0], [1]]}), "image_id names several pictures"),
        (turns("<image>\n<image> which?", image="a.png"), "2 <image> in the text, but 1 given"),
        (turns("no placeholder", image="a.png"), "0 <image> in the text, but 1 given"),
        (turns("<image>", image="a.png", images=["b.png"]), "both 'image' and 'images'"),
        (
            turns("<image>", image={"path": "a.png"}),
            r"conversations\[0\].value: a picture or clip must be given as a p",
        ),
        (turns("Picture 1: <img>a.png"), r"conversations\[0\].value: <img> at character 0"),
        (turns("x", tools="[]"), "'tools' is not read"),
        (turns("<bbox>", objects={"bbox": []}), "1 <bbox> in the text, but objects gives 0"),
        ({**OPENAI, "objects": {"bbox": [[1, 2, 3, 4]]}}, "this entry is in the layout openai"),
        (
            {"messages": [{"role": "user", "content": [{"type": "img"}]}, {"role": "assistant", "content": "x"}]},
            "message 0, part 0 has type 'img'",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_field(root: Path, entry: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_entry(entry, root)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (turns("x", label=False), "'label' is not read"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]},
            r"messages\[1\].weight is 0, but every answer is learned alike",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": [1]}]},
            r"messages\[1\].tool_calls is not read",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "<image>What is it?"}]},
                    {"role": "assistant", "content": "A cat."},
                ],
                "images": ["a.png"],
            },
            "1 files stand beside messages in the layout openai, whose parts show 0",
        ),
        (turns("<ref-object>", objects={"ref": [["a cat"]]}), r"objects.ref must hold texts, got \['a cat'\]"),
    ],
)
def test_nothing_that_changes_what_is_learned_is_passed_over(root: Path, entry: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_entry(entry, root)


def test_what_changes_nothing_may_stand_beside(root: Path) -> None:
    plain = read_entry(OPENAI, root)
    question, answer = OPENAI["messages"]
    assert read_entry({"messages": [question, {**answer, "weight": 1, "tool_calls": None}]}, root) == plain
    assert read_entry({**OPENAI, "images": ["a.png"], "label": None, "tools": []}, root) == plain


def test_paths_in_the_text_of_messages_are_pictures(root: Path) -> None:
    """As older files of ms-swift have them; they were learned as words."""
    entry = {
        "messages": [
            {"role": "user", "content": "<img>a.png</img>What is it?"},
            {"role": "assistant", "content": "A cat."},
        ],
        "images": [],
    }
    assert read_entry(entry, root) == read_entry(QWEN_VL, root)


def test_frames_in_a_part_are_found_from_the_files_folder(root: Path) -> None:
    entry = {
        "messages": [
            {"role": "user", "content": [{"type": "video", "video": ["a.png", "b.png"]}]},
            {"role": "assistant", "content": "A cat."},
        ]
    }
    assert read_entry(entry, root)[0].parts == (Video([str(root / "a.png"), str(root / "b.png")]),)


def test_a_missing_picture_says_where_it_was_looked_for(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"conversations\[0\].value: no file .*gone.png; paths start from"):
        read_entry(turns("<image>", image="gone.png"), root)


def answered(text: str, *pictures: str) -> tuple[Message, ...]:
    return (Message("user", tuple(Image(p) for p in pictures)), Message("assistant", (Text(text),)))


@pytest.mark.parametrize(
    ("unit", "numbers"),
    [
        ("px", "(8,10),(40,20)"),
        ("px", "[8.0, 10.0, 40, 20]"),
        ("relative", "(0.1,0.25),(0.5,0.5)"),
        ("1000", "(100,250),(500,500)"),
    ],
)
def test_every_unit_is_the_same_box(root: Path, unit: str, numbers: str) -> None:
    """Picture of 40 x 80: (8, 10, 40, 20) in pixels; boxes shifted on pictures that are not square were a complaint."""
    for text in (
        f"<ref>a cat</ref><box>{numbers}</box>",
        f"<|object_ref_start|>a cat<|object_ref_end|><box>{numbers}</box>",
    ):
        _, answer = rescale(answered(text, str(root / "a.png")), unit)
        assert parse_grounding(answer.parts[0].text)[0].boxes_1000 == ((100, 250, 500, 500),)
        assert answer.parts[0].text.startswith("<|object_ref_start|>a cat<|object_ref_end|><|box_start|>")


def test_the_far_edge_and_quads(root: Path) -> None:
    _, answer = rescale(
        answered("<box>(0,0),(80,40)</box><quad>(0,0),(80,0),(80,40),(0,40)</quad>", str(root / "a.png")), "px"
    )
    (found,) = parse_grounding(answer.parts[0].text)
    assert found.boxes_1000 == ((0, 0, 999, 999),)
    assert found.quads_1000 == (((0, 0), (999, 0), (999, 999), (0, 999)),)


@pytest.mark.parametrize(
    ("unit", "text", "said"),
    [
        (None, "<box>(1,2),(3,4)</box>", "say boxes: px"),
        ("relative", "<box>(8,10),(40,20)</box>", "cannot be a place with boxes: relative"),
        ("1000", "<box>(0.1,0.2),(0.5,0.5)</box>", "cannot be a place with boxes: 1000.*is it relative or px"),
        ("1000", "<box>(8,10),(1200,20)</box>", "cannot be a place with boxes: 1000"),
        ("px", "<box>(8,10),(400,20)</box>", "leaves the picture of width 80 and height 40"),
        ("px", "<box>(40,10),(8,20)</box>", "x2 < x1"),
        ("px", "<box>(40,10),(50)</box>", "must hold 4 numbers"),
        ("px", "<box>here</box>", "must hold 4 numbers"),
        ("px", "<box>(1,2),(3,4)", "is never closed"),
        ("px", "</box>", "does not fit"),
    ],
)
def test_boxes_that_cannot_be_are_refused(root: Path, unit: str | None, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rescale(answered(text, str(root / "a.png")), unit)


def test_pixels_need_to_know_of_which_picture(root: Path) -> None:
    a, b, text = str(root / "a.png"), str(root / "b.png"), "<box>(1,2),(3,4)</box>"
    rescale(answered(text, a, a), "px")
    rescale(answered("no boxes", a, b), "px")
    with pytest.raises(ValueError, match=r"2 of sizes \[\(40, 80\), \(50, 50\)\]"):
        rescale(answered(text, a, b), "px")
    rescale(answered(text, a, b), "1000")


def test_objects_of_ms_swift(root: Path) -> None:
    entry = {
        "messages": [
            {"role": "user", "content": "<image>Where is <ref-object>?"},
            {"role": "assistant", "content": "<bbox>"},
        ],
        "images": ["a.png"],
        "objects": {"ref": ["the cat"], "bbox": [[8, 10, 40, 20]], "bbox_type": "real"},
    }
    question, answer = rescale(read_entry(entry, root), "px")
    assert question.parts[1].text == "Where is <|object_ref_start|>the cat<|object_ref_end|>?"
    assert answer.parts[0].text == "<|box_start|>(100,250),(500,500)<|box_end|>"


def test_ms_swifts_unit_counts_and_may_not_contradict_the_recipe() -> None:
    shares = {"objects": {"bbox_type": "norm1"}}
    assert unit_of(shares, None) == unit_of(shares, "relative") == "relative"
    assert unit_of({}, "1000") == "1000"
    with pytest.raises(ValueError, match=r"'norm1', which is boxes: relative, but the recipe .* says px"):
        unit_of(shares, "px")
    with pytest.raises(ValueError, match="bbox_type is 'norm1000'; known are real, norm1"):
        unit_of({"objects": {"bbox_type": "norm1000"}}, None)
