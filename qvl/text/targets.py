"""What must hold of text before it is learned.

Knows: marks and tags in the answers of a conversation. Does not know: tokens, labels.
"""

from __future__ import annotations

from collections.abc import Sequence

from qvl.text.family import QWEN_VL, Family
from qvl.text.grounding import check_grounding
from qvl.text.messages import Message, Text


def check_targets(messages: Sequence[Message], family: Family) -> None:
    """Refuses answers whose markup is broken: what is learned once is repeated for ever.

    Raises:
        ValueError: what `check_grounding` refuses; for Qwen-VL also `<img>` or `</img>`, which would be learned as
            letters.
    """
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        text = "".join(part.text for part in message.parts if isinstance(part, Text))
        if "<" not in text:
            continue
        try:
            check_grounding(text, family.markup)
            if family is QWEN_VL:
                _check_no_picture(text, family.picture)
        except ValueError as error:
            raise ValueError(f"message {i} (assistant): {error}") from None


def _check_no_picture(text: str, tags: tuple[str, str, str]) -> None:
    opening, closing, _ = tags
    if opening not in text and closing not in text:
        return
    if text.count(opening) != text.count(closing):
        raise ValueError(
            f"{text.count(opening)} {opening} but {text.count(closing)} {closing} in {text[:80]!r}; "
            "close each picture, and give it as a part of the message instead of text"
        )
    raise ValueError(
        f'{opening} in {text[:80]!r}: give the picture as a part, {{"type": "image", "image": path}}; '
        "official strings are turned into parts by qvl.text.official.parse_prompt"
    )
