from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from qvl.text.messages import Image, Message, Text, Video, parse_messages


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def test_a_string_is_one_text() -> None:
    assert parse_messages([{"role": "assistant", "content": "hi"}]) == (Message("assistant", (Text("hi"),)),)


def test_numbers_of_other_types_are_numbers() -> None:
    """numpy.prod gives one of numpy's own; inside they are Python's, the only ones that Fraction takes."""
    part = {"type": "video", "video": "x", "max_pixels": np.prod((28, 28)), "fps": np.float32(0.5)}
    (message,) = parse_messages(user({**part, "video_end": Fraction(3, 2)}))
    assert message.parts == (Video("x", max_pixels=784, fps=0.5, video_end=1.5),)
    assert [type(vars(message.parts[0])[k]) for k in ("max_pixels", "fps", "video_end")] == [int, float, float]


def test_parts_in_order_with_their_budgets() -> None:
    (message,) = parse_messages(
        user(
            {"type": "image", "image": "a.png", "max_pixels": 4096},
            "and",
            {"type": "text", "text": "this"},
            {"type": "video", "video": ["1.png", "2.png"], "fps": 0.5, "nframes": 4},
        )
    )
    assert message.parts == (
        Image("a.png", max_pixels=4096),
        Text("and"),
        Text("this"),
        Video(["1.png", "2.png"], fps=0.5, nframes=4),
    )


def test_openai_spellings() -> None:
    (message,) = parse_messages(
        user(
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "high"}},
            {"type": "image_url", "image_url": "b.png", "min_pixels": 784},
            {"type": "video_url", "video_url": {"url": "c.mp4", "fps": 2}},
        )
    )
    assert message.parts == (Image("data:image/png;base64,AA=="), Image("b.png", min_pixels=784), Video("c.mp4", fps=2))


def test_parsed_messages_and_parts_pass_through() -> None:
    message = Message("user", (Text("x"), Image("y")))
    assert parse_messages([message]) == (message,)
    assert parse_messages(user(Text("x"), Image("y"))) == (message,)


def test_all_roles() -> None:
    roles = ("system", "user", "assistant", "tool")
    assert tuple(m.role for m in parse_messages([{"role": r, "content": ""} for r in roles])) == roles


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "at least one message"),
        ("hello", "must be a list.*not str"),
        ({"role": "user", "content": "x"}, "must be a list.*not dict"),
        (None, "must be a list.*not NoneType"),
        (["hello"], "message 0 must be an object.*not str"),
        (
            [{"role": "user", "content": "x"}, {"role": "bot", "content": "x"}],
            "message 1 has role 'bot'; allowed: system",
        ),
        ([{"content": "x"}], "message 0 has role None"),
        ([{"role": "user", "content": "x", "name": "y"}], r"unknown keys \['name'\]"),
        ([{"role": "user"}], "content must be a string or a list of parts, not NoneType"),
        ([{"role": "user", "content": {"type": "text"}}], "not dict"),
        (user(3), "message 0, part 0 must be an object with a 'type', not int"),
        (user("x", {"text": "y"}), "message 0, part 1 has type None; allowed: text, image"),
        (user({"type": "audio"}), "type 'audio'; allowed: text, image, image_url, video, video_url"),
        (user({"type": "text"}), "'text' must be a string, not NoneType"),
        (user({"type": "text", "text": "x", "size": 1}), r"\(text\) has unknown keys \['size'\]"),
        (user({"type": "image"}), "'image' but no 'image' key"),
        (user({"type": "image_url", "image": "x"}), "'image_url' but no 'image_url' key"),
        (user({"type": "image", "image": None}), "'image' is empty"),
        (user({"type": "image_url", "image_url": {}}), "'image_url' is empty"),
        (user({"type": "image", "image": "x", "fps": 2}), r"unknown keys \['fps'\]; allowed: max_pixels"),
        (user({"type": "video", "video": "x", "fps": "2"}), "fps must be a positive number, got '2'"),
        (user({"type": "image", "image": "x", "min_pixels": -1}), "min_pixels must be a positive number, got -1"),
        (user({"type": "video", "video": "x", "fps": 10**400}), "fps must be a positive number, got 10000"),
        (user({"type": "video", "video": "x", "video_end": float("nan")}), "video_end must be a pos.* got nan"),
        (user({"type": "image", "image": "x", "min_pixels": True}), "min_pixels must be a positive number, got True"),
        (user({"type": "image", "image": "x", "min_pixels": np.True_}), "min_pixels must be a positive number"),
    ],
)
def test_errors_name_the_place_and_the_way_out(messages: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_messages(messages)
