from __future__ import annotations

from qvl.engine.api import Box
from qvl.engine.boxes import Scene, find_boxes, scene_of
from qvl.text.family import ANY_MARKUP, QWEN2_VL, QWEN_VL
from qvl.text.grounding import Coordinates, box, quad, ref
from qvl.text.messages import Image, Message, Text, Video, parse_messages

WIDE = Coordinates(original_hw=(100, 400), resized_hw=(56, 224))
TALL = Coordinates(original_hw=(600, 300), resized_hw=(616, 308))


def test_boxes_are_pixels_of_the_picture_as_given():
    """Neither the resized size nor a square: x by the width 400, y by the height 100."""
    text = f"{ref('the cat')}{box((100, 200, 500, 900))} and {ref('a dog')}{box((0, 0, 999, 999))}{box((5, 5, 5, 5))}"
    assert find_boxes(text, Scene((WIDE,), (0,))) == (
        Box("the cat", (40, 20, 200, 90)),
        Box("a dog", (0, 0, 400, 100)),
        Box("a dog", (2, 1, 2, 1)),
    )


def test_a_quad_becomes_the_upright_box_around_it():
    text = ref("sign") + quad([(200, 100), (500, 200), (400, 900), (100, 800)])
    assert find_boxes(text, Scene((WIDE,), (0,))) == (Box("sign", (40, 10, 200, 90)),)


def test_the_label_may_stand_in_the_question():
    scene = Scene((WIDE,), (0,), question=f"Not {ref('a dog')}. Find {ref('the cat')}")
    assert [b.label for b in find_boxes(box((1, 2, 3, 4)), scene)] == ["the cat"]
    assert [b.label for b in find_boxes(ref("a tail") + box((1, 2, 3, 4)), scene)] == ["a tail"]
    assert [b.label for b in find_boxes(box((1, 2, 3, 4)), Scene((WIDE,), (0,)))] == [""]


def test_qwen_vls_spelling():
    text = "<ref>猫</ref><box>(100,200),(500,900)</box><quad>(0,0),(9,0),(9,9),(0,9)</quad>"
    for markup in (QWEN_VL.markup, ANY_MARKUP):
        found = find_boxes(text, Scene((WIDE,), (0,), question="<ref>狗</ref>", markup=markup))
        assert found == (Box("猫", (40, 20, 200, 90)), Box("猫", (0, 0, 4, 1)))
    assert find_boxes(text, Scene((WIDE,), (0,), markup=QWEN2_VL.markup)) == ()


def test_malformed_places_are_skipped_and_text_without_a_picture_has_none():
    text = "<|box_start|>(1,2),(3<|box_end|><|box_end|>" + box((10, 20, 30, 40))
    assert len(find_boxes(text, Scene((WIDE,), (0,)))) == 1
    assert find_boxes(text, Scene(())) == ()


def test_picture_numbers_choose_the_picture():
    scene = Scene((WIDE, TALL), (0, 1))
    whole = box((0, 0, 999, 999))
    found = find_boxes(f"{whole} Picture 2: {ref('x')}{whole} Picture 9 {whole} Picture 1 {whole}", scene)
    assert [b.image for b in found] == [0, 1, 1, 0]
    assert found[1].xyxy == (0, 0, 300, 599)
    asked = Scene((WIDE, TALL), (0, 1), question="Where is the cat in Picture 2?")
    assert find_boxes(whole, asked)[0].image == 1


def test_the_latest_turn_with_pictures_is_meant_by_default():
    messages = parse_messages(
        [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, "What is it?"]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": [{"type": "video", "video": "b.mp4"}, {"type": "image", "image": "c.png"}]},
            {"role": "assistant", "content": "I see."},
            {"role": "user", "content": f"Where is {ref('it')}?"},
        ]
    )
    scene = scene_of(messages, [WIDE, TALL, WIDE])
    assert (scene.default, scene.pictures, scene.question) == (1, (0, 2), f"Where is {ref('it')}?")


def test_videos_count_as_pictures_in_reading_order_but_not_as_numbered_ones():
    messages = (Message("user", (Video("a.mp4"), Text("and"), Image("b.png"), Text("Picture 1"))),)
    scene = scene_of(messages, [WIDE, TALL])
    assert find_boxes(box((0, 0, 500, 500)), scene)[0].image == 1
