"""Relaxed accuracy, the score for charts: a number may be 5 % off, a word may not.

Knows: two strings. Does not know: units other than the percent sign.
"""

from __future__ import annotations


def relaxed_match(prediction: str, target: str, *, tolerance: float = 0.05) -> bool:
    """True when both are numbers at most `tolerance` apart relative to the *target*, or equal texts (case apart).

    Reference: ChartQA (Masry et al. 2022, section 5.1) through pix2struct's `relaxed_correctness`: "12%" is 0.12, and
    a target of 0 falls back to comparing texts.

    Qwen-VL's published ChartQA number swaps the two arguments (its `evaluate_vqa.py` passes the model's answer as
    target), so its error is relative to the prediction: call `relaxed_match(target, prediction)` to reproduce it.
    """
    wanted, given = _number(target), _number(prediction)
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= tolerance
    return prediction.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
