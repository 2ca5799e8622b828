"""Counters of a server, in the text format that Prometheus reads.

Knows: names, labels and buckets. Does not know: what is counted.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from typing import final

from qvl.engine.api import EngineStats

_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_NOW = ("running", "waiting", "pages_used", "pages_total")
"""Engine figures that go up and down; the others only go up."""


@final
class Metrics:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._responses: Counter[tuple[str, int]] = Counter()
        self._seconds = {"request": _Histogram(), "time_to_first_token": _Histogram()}
        self.in_flight = 0

    def response(self, path: str, status: int) -> None:
        with self._lock:
            self._responses[path, status] += 1

    def took(self, what: str, seconds: float) -> None:
        """`what`: "request" or "time_to_first_token", both of chat requests."""
        with self._lock:
            self._seconds[what].add(seconds)

    def text(self, engine: EngineStats, uploads_bytes: int) -> str:
        with self._lock:
            lines = ["# TYPE qvl_http_responses_total counter"]
            lines += [
                f'qvl_http_responses_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._responses.items())
            ]
            for name, histogram in self._seconds.items():
                lines += histogram.lines(f"qvl_{name}_seconds")
        gauges = {"qvl_http_in_flight": self.in_flight, "qvl_uploads_bytes": uploads_bytes}
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value}"]
        for name, value in dataclasses.asdict(engine).items():
            full, kind = (f"qvl_engine_{name}", "gauge") if name in _NOW else (f"qvl_engine_{name}_total", "counter")
            lines += [f"# TYPE {full} {kind}", f"{full} {value}"]
        return "\n".join(lines) + "\n"


@final
class _Histogram:
    def __init__(self) -> None:
        self._counts = [0] * (len(_BUCKETS_S) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[sum(seconds > bound for bound in _BUCKETS_S)] += 1
        self._sum += seconds

    def lines(self, name: str) -> list[str]:
        out, total = [f"# TYPE {name} histogram"], 0
        for bound, count in zip([*map(str, _BUCKETS_S), "+Inf"], self._counts, strict=True):
            total += count
            out.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*out, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]
