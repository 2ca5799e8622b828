"""The load test of `bench/` in seconds: clients of all kinds at once, some of whom go away."""

from __future__ import annotations

import os
import random
import threading
import time

import pytest
from engine.tiny_vlm import small_vlm
from live_server import serving

from bench.traffic import answers_to, pool, traffic
from qvl.engine.limits import Limits
from qvl.serve.config import ServeConfig

pytestmark = pytest.mark.slow


def test_nothing_is_lost_leaked_or_changed_under_many_clients():
    limits = Limits(max_rows=8, max_batch_tokens=256, cache_tokens=560, page_tokens=8, vision_cache_mib=1)
    engine = small_vlm("qwen2-vl").live("tiny", limits)
    known = pool(random.Random(0), 16)
    with serving(engine, ServeConfig(port=0)) as live:
        answers = answers_to(live.url, known)
        files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        tally = traffic(live.url, 12, 4.0, random.Random(1), known=known, answers=answers, leave=0.2, new=0.3)
        assert tally.problems == []
        assert tally.wrong == []
        assert tally.sent == tally.whole + tally.left
        assert tally.whole > 20
        assert tally.left > 2
        assert tally.compared > 20
        deadline = time.monotonic() + 60
        while engine.stats().running + engine.stats().waiting and time.monotonic() < deadline:
            time.sleep(0.05)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
        assert stats.preemptions > 0, "the cache was meant to be too small"
        while len(os.listdir("/proc/self/fd")) > files and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= files
        assert threading.active_count() <= threads + 12, "one thread a request is left behind"
