"""Who may look at whom in a packed batch: a triangle per sequence, a rectangle where a branch sees its beginning.

Knows: sequence lengths, parents, vision rows. Does not know: how attention is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvl.viz.svg import escape, number

if TYPE_CHECKING:
    from qvl.batch import Batch

SIZE = 480
"""Width and height of the drawing, whatever the number of tokens."""


def packing_svg(batch: Batch) -> str:
    """An `<svg>`: row t (downwards) attends to column u (rightwards) where it is filled; vision rows are striped.

    Shapes, not cells: a pack of 10,000 tokens draws as fast as one of ten. Raises ValueError for an empty batch.
    """
    total = sum(batch.seq_lens)
    if not total:
        raise ValueError("the batch has no tokens to draw")
    unit = SIZE / total
    offsets = batch.seq_offsets
    parents = batch.parents or (-1,) * len(batch.seq_lens)
    parts = [
        f'<svg class="packing" viewBox="0 0 {SIZE} {SIZE}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'aria-label="Attention of {len(batch.seq_lens)} packed sequences, {total} tokens">',
        f'<rect width="{SIZE}" height="{SIZE}" fill="none" stroke="#8a8f98"/>',
    ]
    for s, parent in enumerate(parents):
        a, b = offsets[s] * unit, offsets[s + 1] * unit
        name = escape(batch.names[s] if s < len(batch.names) else f"sequence {s}")
        tip = f"<title>{name}: {batch.seq_lens[s]} tokens</title>"
        if parent >= 0:
            x, width = offsets[parent] * unit, batch.seq_lens[parent] * unit
            parts.append(_rect(x, a, width, b - a, "#b4590b", tip))
        corners = f"{number(a)},{number(a)} {number(a)},{number(b)} {number(b)},{number(b)}"
        parts.append(f'<polygon points="{corners}" fill="#0b6e99" fill-opacity=".75">{tip}</polygon>')
    parts += [_rect(0, start * unit, SIZE, (end - start) * unit, "#7a7f87", "", ".18") for start, end in _vision(batch)]
    return "".join([*parts, "</svg>"])


def _rect(x: float, y: float, width: float, height: float, colour: str, tip: str, opacity: str = ".6") -> str:
    return (
        f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}" fill="{colour}" '
        f'fill-opacity="{opacity}">{tip}</rect>'
    )


def _vision(batch: Batch) -> list[tuple[int, int]]:
    """Runs of consecutive vision rows as (start, end)."""
    runs: list[tuple[int, int]] = []
    for row in batch.vision_rows_M.tolist():
        if runs and runs[-1][1] == row:
            runs[-1] = (runs[-1][0], row + 1)
        else:
            runs.append((row, row + 1))
    return runs
