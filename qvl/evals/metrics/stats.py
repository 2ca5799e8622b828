"""How sure is a mean: confidence intervals and paired differences.

Knows: per-item values. Does not know: what they measure. Items are taken as independent: ask one question per picture,
or the interval is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Metric:
    """A mean over `n` items with the limits of its confidence interval (95 % unless said otherwise)."""

    value: float
    n: int
    ci_low: float
    ci_high: float


def mean_metric(values: Sequence[float], *, confidence: float = CONFIDENCE, seed: int = 0) -> Metric:
    """Mean with a confidence interval: Wilson's for right/wrong values, else a seeded percentile bootstrap.

    (A bootstrap of 50 right answers out of 50 would claim certainty; Wilson's interval says 0.929 to 1.)

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("a metric needs at least one value, got none; is the split empty for this task?")
    mean = math.fsum(values) / len(values)
    if all(v in (0.0, 1.0) for v in values):
        low, high = wilson(sum(values), len(values), confidence)
    else:
        low, high = bootstrap(values, confidence=confidence, seed=seed)
    return Metric(mean, len(values), low, high)


def wilson(right: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a proportion: 5 of 10 -> (0.2366, 0.7634) at 95 %."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = right / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap(
    values: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron). The same seed gives the same interval."""
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(data))  # resamples drawn at a time, so that memory stays small
    blocks = [
        data[rng.integers(len(data), size=(min(rows, resamples - i), len(data)))].mean(1)
        for i in range(0, resamples, rows)
    ]
    means = np.concatenate(blocks)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, confidence: float = CONFIDENCE, seed: int = 0
) -> Metric:
    """Mean of `ours - theirs` on the same items, with a bootstrap interval; 0 outside it = a real difference.

    Pairing takes out how hard each item is, so it sees differences that two separate intervals hide.

    Raises:
        ValueError: the two lists are not about the same items.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"a paired difference needs the same items, got {len(ours)} and {len(theirs)} values")
    if not ours:
        raise ValueError("a paired difference needs at least one item, got none")
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    low, high = bootstrap(gaps, confidence=confidence, seed=seed)
    return Metric(math.fsum(gaps) / len(gaps), len(gaps), low, high)
