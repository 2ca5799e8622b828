"""Words that come from models, prompts and settings, made safe and readable in a page.

Knows: grounding marks, plain JSON values. Does not know: what the words are about.
"""

from __future__ import annotations

import re
from typing import Any

from qvl.viz.svg import escape

LONGEST = 900
"""Characters of a text that are shown, marks included (a caption of five boxes has about 600)."""

_MARK = re.compile(r"<\|(object_ref|box|quad)_(start|end)\|>")


def said(text: str) -> str:
    """Escaped words; grounding marks become typography: the label underlined, its box small."""
    shown = text.strip()
    shown = shown if len(shown) <= LONGEST else shown[:LONGEST] + " …"
    parts, at, opened = [], 0, ""
    for mark in _MARK.finditer(shown):
        parts.append(escape(shown[at : mark.start()]))
        kind, edge = mark.groups()
        tag = "u" if kind == "object_ref" else "small"
        if edge == "start" and not opened:
            parts.append(f"<{tag}>")
            opened = tag
        elif edge == "end" and opened == tag:
            parts.append(f"</{tag}>")
            opened = ""
        else:
            parts.append(" ")
        at = mark.end()
    parts.append(escape(shown[at:]))
    return "".join([*parts, f"</{opened}>" if opened else ""]) or '<i class="none">(nothing)</i>'


def readable(value: Any) -> str:
    """A setting in words: {"min": 1, "max": 2.5} -> "min 1, max 2.5"; [[84, 112], [56, 56]] -> "84 x 112, 56 x 56"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {readable(found)}" for key, found in value.items())
    if isinstance(value, list):
        pairs = all(isinstance(v, list) and len(v) == 2 for v in value)
        return ", ".join(f"{v[0]} x {v[1]}" if pairs else readable(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
