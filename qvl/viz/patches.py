"""What the vision tower sees: the grid of patches and of merged vision tokens over a picture, numbers in the cells.

Knows: grids in patches, Qwen2-VL's merge order, rope positions of a packed batch. Does not know: pixels, models.

Worked example: a 56 x 84 picture has 4 x 6 patches of 14 pixels; merged 2 x 2 they are 2 x 3 vision tokens, row by row
0 1 2 / 3 4 5. The patches of token 0 are rows 0..3 of the packed patches, those of token 1 rows 4..7, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qvl.viz.svg import escape, number

if TYPE_CHECKING:
    from qvl.batch import Batch


def grid_svg(
    grid_hw: tuple[int, int], cells: Sequence[str] = (), *, picture: str = "", patch_px: int = 14, merge: int = 2
) -> str:
    """An `<svg>` of one picture or one temporal patch: thin lines between patches, thick ones between vision tokens.

    Args:
        grid_hw: (height, width) in patches.
        cells: text of each vision token, row by row (such as `rope_cells`); empty = no text.
        picture: data URI of the *resized* picture to lie under the grid.

    Raises:
        ValueError: a grid that `merge` does not divide, or another number of texts than vision tokens.
    """
    height, width = grid_hw
    if height < 1 or width < 1 or height % merge or width % merge:
        raise ValueError(f"a grid of {height} x {width} patches cannot be merged {merge} x {merge}")
    rows, columns = height // merge, width // merge
    if cells and len(cells) != rows * columns:
        raise ValueError(f"{len(cells)} texts for {rows} x {columns} = {rows * columns} vision tokens")
    high, wide, side = height * patch_px, width * patch_px, patch_px * merge
    parts = [
        f'<svg class="grid" viewBox="0 0 {wide} {high}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'aria-label="{height} x {width} patches, {rows} x {columns} vision tokens">'
    ]
    if picture:
        parts.append(f'<image href="{escape(picture)}" width="{wide}" height="{high}" preserveAspectRatio="none"/>')
    parts.append(_lines(high, wide, patch_px, "0.5", ".5"))
    parts.append(_lines(high, wide, side, "1.5", ".9"))
    for i, text in enumerate(cells):
        x, y = (i % columns + 0.5) * side, (i // columns + 0.5) * side
        size = min(side / 3, 1.7 * side / max(1, len(text)))
        parts.append(
            f'<text x="{number(x)}" y="{number(y + size / 3)}" font-size="{number(size)}" text-anchor="middle" '
            f'fill="#fff" stroke="#000" stroke-width="{number(size / 5)}" paint-order="stroke" '
            f'font-family="monospace">{escape(text)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _lines(high: int, wide: int, step: int, stroke: str, opacity: str) -> str:
    across = "".join(f"M0 {y} L{wide} {y}" for y in range(0, high + 1, step))
    down = "".join(f"M{x} 0 L{x} {high}" for x in range(0, wide + 1, step))
    return (
        f'<path d="{across}{down}" fill="none" stroke="#000" stroke-opacity="{opacity}" stroke-width="{stroke}"/>'
        f'<path d="{across}{down}" fill="none" stroke="#fff" stroke-opacity="{opacity}" stroke-width="{stroke}" '
        'stroke-dasharray="2 2"/>'
    )


def rope_cells(batch: Batch, index: int, frame: int = 0, merge: int = 2) -> list[str]:
    """Rotary positions ("time row column", or one number) of each vision token of one temporal patch, for `grid_svg`.

    Args:
        index: which of the batch's pictures and videos (`batch.grids`).
        frame: which temporal patch of it.

    Raises:
        ValueError: there is no such picture or frame.
    """
    if not 0 <= index < len(batch.grids):
        raise ValueError(f"there is no picture {index}: the batch has {len(batch.grids)}")
    frames, height, width = batch.grids[index]
    if not 0 <= frame < frames:
        raise ValueError(f"there is no temporal patch {frame}: picture {index} has {frames}")
    tokens = [t * h * w // merge**2 for t, h, w in batch.grids]
    per_frame = height * width // merge**2
    start = sum(tokens[:index]) + frame * per_frame
    rows = batch.vision_rows_M[start : start + per_frame]
    return [" ".join(map(str, ids)) for ids in batch.positions_RT[:, rows].T.tolist()]
