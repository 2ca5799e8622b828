"""What is true about a scene, with margins: a question is asked only where a person would not hesitate.

Knows: places, relations, sizes, uniqueness.
Does not know: words.
"""

from __future__ import annotations

from collections import Counter

from qvl.data.world.scene import Placed, Scene

SIDE_MARGIN = 0.10
"""Centres must differ by this part of the scene's side before "left of" or "above" is said."""
CELL_MARGIN = 0.03
"""Distance of a centre from the border of its grid cell before it is asked about."""
SIZE_RATIO = 1.4
"""Box areas must differ by this factor before "bigger" is said."""


def cell(scene: Scene, placed: Placed) -> int:
    """Grid cell (0..8, row by row, 3 x 3) that holds the centre of the box."""
    x1, y1, x2, y2 = placed.box_px
    height, width = scene.hw
    return 3 * (y1 + y2) // (2 * height) * 3 + 3 * (x1 + x2) // (2 * width)  # whole numbers: exact at the borders


def alone(scene: Scene, placed: Placed) -> bool:
    """Whether "the object at the top left" can only mean this one.

    For the middle of a side ("on the left") nothing else may stand in that whole row or column, because a person
    could mean that.
    """
    own = cell(scene, placed)
    row, column = divmod(own, 3)
    taken = [divmod(cell(scene, o), 3) for o in scene.objects if o is not placed]
    if (row, column) in taken or not cell_is_clear(scene, placed):
        return False
    if column == 1 and row != 1:
        return all(r != row for r, _ in taken)
    return row != 1 or column == 1 or all(c != column for _, c in taken)


def cell_is_clear(scene: Scene, placed: Placed) -> bool:
    return all(abs(v - border) >= CELL_MARGIN for v in scene.centre(placed) for border in (1 / 3, 2 / 3))


def unique(scene: Scene) -> list[Placed]:
    """Objects whose concept occurs once: only they can be called "the dog"."""
    counts = Counter(o.concept.key for o in scene.objects)
    return [o for o in scene.objects if counts[o.concept.key] == 1]


def horizontal(scene: Scene, a: Placed, b: Placed) -> str | None:
    """ "left" if a is left of b, "right", or None when it is not clear."""
    return _side(scene.centre(a)[1] - scene.centre(b)[1], "left", "right")


def vertical(scene: Scene, a: Placed, b: Placed) -> str | None:
    """ "above" if a is above b, "below", or None when it is not clear."""
    return _side(scene.centre(a)[0] - scene.centre(b)[0], "above", "below")


def is_bigger(a: Placed, b: Placed) -> bool:
    return a.area_px >= SIZE_RATIO * b.area_px


def extreme(scene: Scene, axis: int, sign: int) -> Placed | None:
    """The object furthest along an axis (0 down, 1 right; sign -1 turns it round), if it is so clearly."""
    ranked = sorted(scene.objects, key=lambda o: sign * scene.centre(o)[axis], reverse=True)
    if len(ranked) > 1 and sign * (scene.centre(ranked[0])[axis] - scene.centre(ranked[1])[axis]) < SIDE_MARGIN:
        return None
    return ranked[0]


def by_size(scene: Scene, sign: int) -> Placed | None:
    """The biggest (sign 1) or smallest (-1) object, if it is so clearly."""
    ranked = sorted(scene.objects, key=lambda o: sign * o.area_px, reverse=True)
    if len(ranked) > 1:
        big, small = ranked[:2] if sign > 0 else ranked[1::-1]
        if not is_bigger(big, small):
            return None
    return ranked[0]


def _side(difference: float, negative: str, positive: str) -> str | None:
    if abs(difference) < SIDE_MARGIN:
        return None
    return negative if difference < 0 else positive
