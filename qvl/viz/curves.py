"""Line charts as SVG text: no plotting library, no script, colours from the page's CSS.

Knows: numbers over numbers. Does not know: runs, files. Stand-alone use: `standalone(svg)` adds the colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

from qvl.viz.svg import escape, linear_ticks, log_ticks, number, polyline

MOST_POINTS = 600
"""Longer series are averaged in bins: more points than pixels only make the file big."""

COLOURS = (
    "svg{--ink:#1c2024;--faint:#60646c;--line:#d9dce1;--band:#f2f3f5;--accent:#0b6e99;--second:#b4590b;"
    "--third:#18713f;--fourth:#8a2f8f;--fifth:#6b5b00}"
    "@media(prefers-color-scheme:dark){svg{--ink:#edeef0;--faint:#b0b4ba;--line:#363a3f;--band:#212225;"
    "--accent:#6cc3ea;--second:#f0a868;--third:#68cf94;--fourth:#e39be8;--fifth:#d9c84a;background:#18191b}}"
)


Tone = Literal["accent", "second", "third", "fourth", "fifth"]
TONES: tuple[Tone, ...] = get_args(Tone)


@dataclass(frozen=True)
class Series:
    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    tone: Tone = "accent"


@dataclass(frozen=True)
class Band:
    """A named stretch of the x axis, such as a training stage."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Chart:
    """How a chart is laid out; sizes in SVG units (CSS pixels at scale 1)."""

    title: str
    """Read by screen readers."""
    x_label: str = ""
    y_label: str = ""
    log_y: bool = False
    width: int = 720
    height: int = 280
    bands: Sequence[Band] = ()
    margins: tuple[int, int, int, int] = (26, 12, 34, 46)
    """top, right, bottom, left"""


def line_chart(series: Sequence[Series], chart: Chart, *, band_labels: bool = True) -> str:
    """An `<svg>` of the series over shaded bands. Values that are not finite (or not > 0 on a log axis) are gaps;
    series of one label are parts of one line. `band_labels=False` leaves the bands' names out of small charts.

    Raises:
        ValueError: nothing to draw, or a series whose xs and ys differ in length.
    """
    for s in series:
        if len(s.xs) != len(s.ys):
            raise ValueError(f"series {s.label!r} has {len(s.xs)} x values but {len(s.ys)} y values")
    drawn = [_thin(s, chart.log_y) for s in series]
    points = [p for s in drawn for p in zip(s.xs, s.ys, strict=True) if _plottable(p[1], chart.log_y)]
    if not points:
        raise ValueError(f"chart {chart.title!r} has no value to draw")
    axes = _Axes(chart, points)
    parts = [
        f'<svg class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img" '
        f'aria-label="{escape(chart.title)}" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(chart.title)}</title>",
        *_bands(axes, chart, band_labels),
        *_grid(axes, chart),
    ]
    for s in drawn:
        parts += _line(axes, s, chart.log_y)
    named = {s.label: s for s in series}
    if len(named) > 1:
        parts += _legend(list(named.values()), chart)
    return "".join([*parts, "</svg>"])


def standalone(svg: str) -> str:
    """The chart with its own colours, for a file of its own."""
    start = svg.index(">") + 1
    return f"{svg[:start]}<style>{COLOURS}</style>{svg[start:]}"


@final
class _Axes:
    """Data -> picture coordinates."""

    def __init__(self, chart: Chart, points: Sequence[tuple[float, float]]) -> None:
        xs = [x for x, _ in points] + [e for b in chart.bands for e in (b.start, b.end)]
        ys = [y for _, y in points]
        self.x_low, self.x_high = min(xs), max(xs)
        self.log = chart.log_y
        if self.log:
            self.y_low, self.y_high = min(ys) / 1.1, max(ys) * 1.1
        else:
            self.y_low, self.y_high = min(0.0, *ys), max(ys) * 1.05 or 1.0
        top, right, bottom, left = chart.margins
        self.left, self.right = left, chart.width - right
        self.top, self.bottom = top, chart.height - bottom

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low or 1.0
        return self.left + (value - self.x_low) / span * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high, at = self.y_low, self.y_high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.bottom - (at - low) / (high - low or 1.0) * (self.bottom - self.top)


def _plottable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _thin(series: Series, log: bool) -> Series:
    """Gaps do not count: a bin is one only if nothing in it can be drawn."""
    size = -(-len(series.xs) // MOST_POINTS)
    if size <= 1:
        return series
    starts = range(0, len(series.xs), size)
    bins = [[y for y in series.ys[i : i + size] if _plottable(y, log)] for i in starts]
    xs = [sum(series.xs[i : i + size]) / len(series.xs[i : i + size]) for i in starts]
    return Series(series.label, xs, [sum(ys) / len(ys) if ys else math.nan for ys in bins], series.tone)


def _bands(axes: _Axes, chart: Chart, labelled: bool) -> list[str]:
    parts = []
    for i, band in enumerate(chart.bands):
        x, end = axes.x(band.start), axes.x(band.end)
        if i % 2 == 0:
            parts.append(
                f'<rect x="{number(x)}" y="{axes.top}" width="{number(end - x)}" height="{axes.bottom - axes.top}" '
                'fill="var(--band)"/>'
            )
        if not labelled:
            continue
        # a label that would not fit its band is left to the tooltip
        shown = escape(band.label) if end - x > 6.5 * len(band.label) + 6 else ""
        parts.append(
            f'<text x="{number(x + 5)}" y="{axes.top - 8}" fill="var(--faint)" font-size="12">{shown}'
            f"<title>{escape(band.label)}</title></text>"
        )
    return parts


def _grid(axes: _Axes, chart: Chart) -> list[str]:
    ticks = log_ticks(axes.y_low, axes.y_high) if chart.log_y else linear_ticks(axes.y_low, axes.y_high, 4)
    parts = []
    for tick in ticks:
        y = number(axes.y(tick))
        parts.append(f'<path d="M{axes.left} {y} L{axes.right} {y}" stroke="var(--line)"/>')
        parts.append(_text(axes.left - 8, axes.y(tick) + 4, f"{tick:g}", "end"))
    along = linear_ticks(axes.x_low, axes.x_high, max(2, chart.width // 110))
    parts += [_text(axes.x(tick), axes.bottom + 17, f"{tick:g}", "middle") for tick in along]
    if chart.x_label:
        parts.append(_text(axes.right, chart.height - 3, chart.x_label, "end"))
    if chart.y_label:
        parts.append(_text(2, 12 if not chart.bands else axes.top - 8, chart.y_label, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{number(x)}" y="{number(y)}" fill="var(--faint)" font-size="12" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _line(axes: _Axes, series: Series, log: bool) -> list[str]:
    colour = f"var(--{series.tone})"
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(series.xs, series.ys, strict=True):
        if _plottable(y, log):
            runs[-1].append((axes.x(x), axes.y(y)))
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in runs:
        if len(run) == 1:
            parts.append(f'<circle cx="{number(run[0][0])}" cy="{number(run[0][1])}" r="2.5" fill="{colour}"/>')
        elif run:
            parts.append(
                f'<path d="{polyline(run)}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"/>'
            )
    return parts


def _legend(series: Sequence[Series], chart: Chart) -> list[str]:
    return [
        f'<text x="{chart.width - chart.margins[1]}" y="{14 + 15 * i}" text-anchor="end" font-size="12" '
        f'fill="var(--{s.tone})">{escape(s.label)}</text>'
        for i, s in enumerate(series)
    ]
