"""How a metric is called and written for people.

Knows: the metrics' names and scales. Does not know: where their values come from.
"""

from __future__ import annotations

from typing import Any

NAMES = {
    "accuracy": "accuracy",
    "acc@0.5": "Acc@0.5",
    "iou": "IoU",
    "readable": "readable box",
    "cider": "CIDEr-D",
    "f1": "names F1",
    "exact": "exact match",
    "grounded_f1": "names and boxes F1",
    "anls": "ANLS",
}
TOPS = {"cider": 10.0}
"""Largest possible value; every other metric goes to 1 and is written in per cent."""


def metric_name(key: str) -> str:
    """ "cider" -> "CIDEr-D"; a metric this table does not know keeps its own name."""
    return NAMES.get(key, key)


def top(key: str) -> float:
    return TOPS.get(key, 1.0)


def show(key: str, value: float) -> str:
    """0.8552 -> "85.5 %" (with a space that does not break); CIDEr 3.456 -> "3.46"."""
    return f"{value:.2f}" if key in TOPS else f"{100 * value:.1f}\u00a0%"


FEWEST = 5
"""Below this many items an interval is not shown: resampling three values says nothing about a fourth."""


def show_interval(key: str, metric: dict[str, Any]) -> str:
    """ "80.0 – 89.7"."""
    if metric["n"] < FEWEST:
        return "too few"
    low, high = metric["ci_low"], metric["ci_high"]
    return f"{low:.2f} – {high:.2f}" if key in TOPS else f"{100 * low:.1f} – {100 * high:.1f}"


def clock(seconds: float) -> str:
    """75 -> "1 min 15 s"; 4000 -> "1 h 7 min"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def count(value: float) -> str:
    """4200000 -> "4.2 million"."""
    if value >= 1e9:
        return f"{value / 1e9:.2f} billion"
    return f"{value / 1e6:.1f} million" if value >= 1e6 else f"{value:,.0f}"
