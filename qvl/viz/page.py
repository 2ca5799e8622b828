"""What every page has: one file that loads nothing, and a run's facts in words.

Knows: the shell around a page's sections, the keys of summary.json. Does not know: what the sections show.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

from qvl.viz.curves import Band
from qvl.viz.numbers import clock, count
from qvl.viz.svg import escape

_HERE = Path(__file__).parent


def write_page(path: Path, title: str, sections: Iterable[str]) -> Path:
    """Writes the sections that are not empty as one page and returns its path."""
    page = Template((_HERE / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=(_HERE / "report.css").read_text(encoding="utf-8"),
        body="\n".join(section for section in sections if section),
    )
    path.write_text(page, encoding="utf-8")
    return path


def facts(summary: dict[str, Any]) -> dict[str, Any]:
    """What a run was, in words; None for what its summary does not say."""
    return {
        "Model": summary.get("model"),
        "Parameters": _parameters(summary.get("parameters")),
        "Tokens per picture": _tokens(summary.get("picture_tokens")),
        "Training time": clock(summary["seconds"]) if "seconds" in summary else None,
        "Hardware": hardware(summary.get("hardware")),
        "Seed": summary.get("seed"),
        "Date": summary.get("date"),
        "Version": summary.get("version"),
    }


def hardware(value: Any) -> str | None:
    """{"cpu": "EPYC", "cores": 2} -> "cpu: EPYC, cores: 2"."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {found}" for key, found in value.items())
    return value


def stages_in_words(bands: Iterable[Band]) -> str:
    """ "stage1 (2 min 0 s), stage2 (9 min 30 s)"."""
    return ", ".join(f"{band.label} ({clock(60 * (band.end - band.start))})" for band in bands)


def _parameters(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return f"{count(sum(value.values()))}: " + ", ".join(f"{part} {count(n)}" for part, n in value.items())
    return count(value)


def _tokens(value: Any) -> str | None:
    if value is None:
        return None
    low, high = min(value), max(value)
    return str(low) if low == high else f"{low} to {high}, by its size"
