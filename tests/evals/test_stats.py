"""Intervals: known values, seeding, and that pairing sees what separate intervals hide."""

import numpy as np
import pytest

from qvl.evals.metrics.stats import bootstrap, mean_metric, paired_difference, wilson


def test_wilson_known_values():
    assert wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(50, 50)[0] == pytest.approx(0.92865, abs=1e-5)


def test_right_and_wrong_use_wilson_other_values_bootstrap():
    assert mean_metric([1.0] * 50).ci_low == pytest.approx(0.92865, abs=1e-5)
    graded = mean_metric([0.5, 0.25, 1.0, 0.75])
    assert graded.value == 0.625
    assert graded.n == 4
    assert 0.25 <= graded.ci_low < 0.625 < graded.ci_high <= 1.0


def test_bootstrap_is_seeded_and_close_to_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap(values, seed=7)
    assert (low, high) == bootstrap(values, seed=7)
    assert (low, high) != bootstrap(values, seed=8)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)  # measured worst over 20 seeds: 0.014
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_pairing_sees_a_small_steady_gain():
    rng = np.random.default_rng(0)
    hard = rng.random(100)
    ours, theirs = list(hard + 0.02 + rng.normal(0, 0.005, 100)), list(hard)
    gain = paired_difference(ours, theirs)
    assert gain.value == pytest.approx(0.02, abs=0.003)
    assert gain.ci_low > 0
    assert mean_metric(ours).ci_low < mean_metric(theirs).ci_high  # separate intervals overlap


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least one value"):
        mean_metric([])
    with pytest.raises(ValueError, match="got 1 and 2 values"):
        paired_difference([1.0], [1.0, 2.0])
