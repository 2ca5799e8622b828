"""ANLS, the score for reading (DocVQA, InfographicVQA): 1 minus the normalised edit distance, 0 below a threshold.

Knows: two strings. Does not know: how an answer was read out of a reply.
"""

from __future__ import annotations

from collections.abc import Sequence


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average Normalized Levenshtein Similarity of one prediction with its best answer, in {0} or [threshold, 1].

    Reference: the DocVQA/InfographicVQA script that Qwen-VL's `eval_mm` runs. Both sides are lower-cased with white
    space collapsed for the distance; the length that divides it is that of the *raw* strings, as there.

    Raises:
        ValueError: no answer to compare with.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"ANLS needs a non-empty list of accepted answers, got {answers!r}")
    similarity = max(_similarity(prediction, answer) for answer in answers)
    return similarity if similarity >= threshold else 0.0


def _similarity(prediction: str, answer: str) -> float:
    length = max(len(answer.upper()), len(prediction.upper()))
    if length == 0:
        return 1.0
    return 1 - levenshtein(_plain(answer), _plain(prediction)) / length


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def levenshtein(a: str, b: str) -> int:
    """Number of one-character insertions, deletions and replacements that turn `a` into `b`: (kitten, sitting) -> 3."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal if x == y else 1 + min(diagonal, above, row[j - 1])
            diagonal = above
    return row[-1]
