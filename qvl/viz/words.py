"""Words that come from models, prompts and settings, made safe and readable in a page.

Knows: grounding marks, plain JSON values. Does not know: what the words are about.
"""

from __future__ import annotations

from typing import Any

from qvl.text.family import ANY_MARKUP, Mark
from qvl.viz.svg import escape

LONGEST = 900
"""Characters of a text that are shown, marks included (a caption of five boxes has about 600)."""


def said(text: str) -> str:
    """Escaped words; grounding marks become typography: the label underlined, its box small."""
    shown = text.strip()
    shown = shown if len(shown) <= LONGEST else shown[:LONGEST] + " …"
    parts, opened = [], ""
    for piece in ANY_MARKUP.split(shown):
        if not isinstance(piece, Mark):
            parts.append(escape(piece))
            continue
        tag = "u" if piece.kind == "ref" else "small"
        if piece.opens and not opened:
            parts.append(f"<{tag}>")
            opened = tag
        elif not piece.opens and opened == tag:
            parts.append(f"</{tag}>")
            opened = ""
        else:
            parts.append(" ")
    return "".join([*parts, f"</{opened}>" if opened else ""]) or '<i class="none">(nothing)</i>'


def readable(value: Any) -> str:
    """A setting in words: {"min": 1, "max": 2.5} -> "min 1, max 2.5"; [[84, 112], [56, 56]] -> "84 x 112, 56 x 56"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {readable(found)}" for key, found in value.items())
    if isinstance(value, list):
        pairs = all(isinstance(v, list) and len(v) == 2 for v in value)
        return ", ".join(f"{v[0]} x {v[1]}" if pairs else readable(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
