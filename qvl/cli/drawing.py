"""Boxes of a reply over the picture they lie in, as a file and for the terminal.

Knows: file names, sizes for the eye. Does not know: conversations, terminals.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvl.engine.api import Box

TERMINAL_SIDE = 640
"""Longest side of a picture shown in a terminal."""


def draw(picture: Any, boxes: Sequence[Box], folder: Path) -> Path:
    """Writes the picture with boxes over it as the next free `boxes-001.svg` in `folder` (opens in any browser)."""
    from qvl.media.image import open_image
    from qvl.viz.boxes import Drawn, boxes_svg

    upright = open_image(picture)
    encoded = io.BytesIO()
    upright.save(encoded, format="PNG")
    uri = "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()
    svg = boxes_svg([Drawn(box.xyxy, "predicted", box.label) for box in boxes], (upright.height, upright.width), uri)
    folder.mkdir(parents=True, exist_ok=True)
    taken = {file.name for file in folder.glob("boxes-*.svg")}
    number = next(n for n in range(1, len(taken) + 2) if f"boxes-{n:03d}.svg" not in taken)
    file = folder / f"boxes-{number:03d}.svg"
    file.write_text(svg, encoding="utf-8")
    return file


def drawn_png(picture: Any, boxes: Sequence[Box]) -> bytes:
    """The picture with boxes over it as PNG, at most `TERMINAL_SIDE` pixels long."""
    from qvl.media.image import open_image
    from qvl.viz.boxes import Drawn, boxes_png

    return boxes_png(open_image(picture), [Drawn(box.xyxy, "predicted", box.label) for box in boxes], TERMINAL_SIDE)
