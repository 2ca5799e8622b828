"""Boxes over a picture, as SVG: true ones solid, predicted ones dashed, asked-about ones dotted.

Knows: xyxy boxes in pixels of the picture as given. Does not know: where they come from.

A box is drawn twice, dark under light, so that it can be seen on any picture; SVG needs no drawing library, scales to
any screen and keeps the picture itself untouched.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw

from qvl.viz.svg import escape, number

Kind = Literal["true", "predicted", "asked"]
_DASHES: dict[Kind, str] = {"true": "", "predicted": "6 4", "asked": "1.5 4"}
_COLOURS: dict[Kind, str] = {"true": "#ffffff", "predicted": "#ffd23f", "asked": "#7fd6ff"}
_MEDIA = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True)
class Drawn:
    """One box to draw."""

    xyxy: Sequence[float]
    """x1, y1, x2, y2 in pixels of the picture."""
    kind: Kind = "predicted"
    label: str = ""


def boxes_svg(boxes: Sequence[Drawn], hw: tuple[int, int], picture: str = "", alt: str = "") -> str:
    """An `<svg>` in the picture's own coordinates; with `picture` (a data URI) the picture lies under the boxes.

    Raises:
        ValueError: a picture of no size, or a box that is not four numbers.
    """
    height, width = hw
    if height < 1 or width < 1:
        raise ValueError(f"a picture has a height and a width of at least 1 pixel, got {hw}")
    parts = [
        f'<svg class="boxes" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    ]
    if picture:
        parts.append(f'<image href="{escape(picture)}" width="{width}" height="{height}"/>')
    parts += [_box(box, hw) for box in boxes]
    return "".join([*parts, "</svg>"])


def boxes_png(picture: Image.Image, boxes: Sequence[Drawn], longest: int) -> bytes:
    """The picture, at most `longest` pixels long, with boxes and labels painted on it: for where SVG has no place."""
    scale = min(1.0, longest / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.convert("RGB").resize(size)
    brush = ImageDraw.Draw(small)
    for box in boxes:
        x1, y1, x2, y2 = (round(v * scale) for v in box.xyxy)
        corners = (x1, y1, max(x1, x2), max(y1, y2))
        brush.rectangle(corners, outline="#000000", width=4)
        brush.rectangle(corners, outline=_COLOURS[box.kind], width=2)
        if box.label:
            place = (x1 + 4, y1 - 14 if y1 >= 16 else y1 + 4)
            brush.text(place, box.label, fill=_COLOURS[box.kind], stroke_width=2, stroke_fill="#000000")
    encoded = io.BytesIO()
    small.save(encoded, format="PNG")
    return encoded.getvalue()


def _box(box: Drawn, hw: tuple[int, int]) -> str:
    if len(box.xyxy) != 4:
        raise ValueError(f"a box is x1, y1, x2, y2, got {tuple(box.xyxy)}")
    x1, y1, x2, y2 = (float(v) for v in box.xyxy)
    rect = (
        f'x="{number(x1)}" y="{number(y1)}" width="{number(max(0.0, x2 - x1))}" height="{number(max(0.0, y2 - y1))}" '
        'fill="none" vector-effect="non-scaling-stroke"'
    )
    dash = f' stroke-dasharray="{_DASHES[box.kind]}" stroke-linecap="round"' if _DASHES[box.kind] else ""
    drawn = (
        f'<rect {rect} stroke="#000" stroke-opacity=".55" stroke-width="4"/>'
        f'<rect {rect} stroke="{_COLOURS[box.kind]}" stroke-width="2"{dash}/>'
    )
    if not box.label:
        return drawn
    size = max(hw) / 18
    y = y1 - size * 0.3 if y1 > size * 1.3 else y1 + size
    return drawn + (
        f'<text x="{number(max(0.0, x1) + size * 0.15)}" y="{number(y)}" font-size="{number(size)}" '
        f'fill="{_COLOURS[box.kind]}" stroke="#000" stroke-opacity=".7" stroke-width="{number(size / 5)}" '
        f'paint-order="stroke" font-family="sans-serif">{escape(box.label)}</text>'
    )


def data_uri(path: str | Path) -> str:
    """A picture file as a `data:` URI, so that a page needs no other file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a webp, png or jpeg file by its name.
    """
    file = Path(path)
    media = _MEDIA.get(file.suffix.lower())
    if media is None:
        raise ValueError(f"picture {file} must be one of {', '.join(sorted(_MEDIA))} to be shown in a page")
    if not file.is_file():
        raise FileNotFoundError(f"picture {file} is not there; run the evaluation again to write it")
    return f"data:{media};base64,{base64.b64encode(file.read_bytes()).decode()}"
