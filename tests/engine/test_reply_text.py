from __future__ import annotations

import pytest

from qvl.engine.reply_text import ReplyText
from qvl.text.tokenizer import Tokenizer


def _pieces(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...]) -> tuple[list[str], ReplyText]:
    text = ReplyText(tokenizer.stream(), stop)
    pieces = []
    for token_id in ids:
        pieces.append(text.push(token_id))
        if text.stopped:
            break
    return [*pieces, text.close()], text


def _bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per byte, so that every border that can be crossed is."""
    of = {tokenizer.token_bytes(i): i for i in range(256)}
    return [of[bytes([b])] for b in text.encode()]


@pytest.mark.parametrize("spelt", [_bytes, lambda t, s: t.encode(s)])
@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("the red circle", (), "the red circle"),
        ("the red circle END more", ("END",), "the red circle "),
        ("the red circle", ("circle",), "the red "),
        ("almost EN", ("END",), "almost EN"),
        ("EEEND", ("EEND",), "E"),
        ("a✿RESULT✿: 1", ("✿RESULT✿", "✿RETURN✿"), "a"),
        ("ab", ("b", "ab"), ""),  # of two that end together, the one that begins first
        ("图中有猫。停", ("停",), "图中有猫。"),
    ],
)
def test_stop_strings_end_the_text_wherever_token_borders_lie(tokenizer, spelt, text, stop, shown):
    pieces, reply = _pieces(tokenizer, spelt(tokenizer, text), stop)
    assert reply.text == "".join(pieces)
    assert reply.text == shown
    assert reply.stopped == any(s in text for s in stop)


def test_pieces_are_whole_characters_and_come_at_once(tokenizer):
    pieces, _ = _pieces(tokenizer, _bytes(tokenizer, "a猫b"), ("stop",))
    assert pieces == ["a", "", "", "猫", "b", ""]


def test_a_possible_beginning_is_held_until_it_is_none(tokenizer):
    pieces, _ = _pieces(tokenizer, _bytes(tokenizer, "a<|x"), ("<|end|>",))
    assert pieces == ["a", "", "", "<|x", ""]


def test_a_character_cut_off_at_the_end_is_marked(tokenizer):
    pieces, _ = _pieces(tokenizer, _bytes(tokenizer, "猫")[:2], ())
    assert pieces == ["", "", "\ufffd"]
