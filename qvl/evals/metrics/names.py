"""Names in a caption: which known things does it mention, and how well do they match what is in the picture?

Knows: a list of names, English and Chinese. Does not know: word order, counts, places (CIDEr sees those).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PrecisionRecall:
    precision: float
    recall: float
    f1: float


class NameFinder:
    """Finds known names in a text; of overlapping ones the longest wins ("hot dog" is not a "dog").

    Args:
        names: surface form -> canonical name ("cats" -> "cat"), or just the names. Latin forms match whole words,
            case apart; Chinese forms match anywhere.

    Raises:
        ValueError: no names, or an empty one.
    """

    def __init__(self, names: Mapping[str, str] | Iterable[str]) -> None:
        table = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        if not table or not all(table):
            raise ValueError(f"a name finder needs at least one non-empty name, got {list(table)[:5]}")
        self._canonical = {surface.lower(): name for surface, name in table.items()}
        longest_first = sorted(self._canonical, key=len, reverse=True)
        self._pattern = re.compile("|".join(_bounded(surface) for surface in longest_first), re.IGNORECASE)

    def find(self, text: str) -> list[str]:
        """Canonical names in order of mention, repeats included."""
        return [self._canonical[found.group().lower()] for found in self._pattern.finditer(text)]


def _bounded(surface: str) -> str:
    """Word boundaries where the form begins or ends with a Latin letter or digit (Chinese has none to find)."""
    left = r"(?<![A-Za-z0-9])" if re.match(r"[A-Za-z0-9]", surface) else ""
    right = r"(?![A-Za-z0-9])" if re.search(r"[A-Za-z0-9]$", surface) else ""
    return f"{left}{re.escape(surface)}{right}"


def set_f1(predicted: Iterable[str], true: Iterable[str]) -> PrecisionRecall:
    """Precision, recall and F1 of two sets of names; two empty sets agree perfectly.

    ({cat, dog}, {cat, tree, sun}) -> precision 1/2, recall 1/3, F1 0.4.
    """
    given, wanted = set(predicted), set(true)
    if not given and not wanted:
        return PrecisionRecall(1.0, 1.0, 1.0)
    common = len(given & wanted)
    precision = common / len(given) if given else 0.0
    recall = common / len(wanted) if wanted else 0.0
    f1 = 2 * common / (len(given) + len(wanted))
    return PrecisionRecall(precision, recall, f1)
