"""Keeps measurements: one JSON line per row in results/, and tables of the newest rows in RESULTS.md.

Knows: where rows live, what machine they were taken on, how the tables are drawn.
Does not know: what was measured.
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from qvl.runtime import cpu_flags

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TABLES = HERE / "RESULTS.md"
_HEAD = """# Results

Every table is drawn from `bench/results/*.jsonl` by `bench/record.py`: the newest row of each case, machine and torch.
Older rows stay in those files. Numbers of different machines are not comparable; ratios within a row are.
"""
_VECTORS = {"avx512_bf16": "AVX512-bf16", "avx512f": "AVX512", "avx2": "AVX2"}
"""Flag -> name, the widest first."""


def record(name: str, row: Mapping[str, object]) -> dict[str, object]:
    """Appends {date, machine, threads, torch, **row} to results/`name`.jsonl and redraws `name`'s table.

    Args:
        name: the script or claim, `preprocess` for example; one section of RESULTS.md.
        row: flat and JSON-able. The value of `case`, if there is one, tells rows of one script apart: of each case
            (on each machine, with each torch) the table shows the newest row.

    Returns:
        The row as written.
    """
    full = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **row,
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(full) + "\n")
    _redraw(name)
    return full


def machine() -> str:
    """Processor, its vectors, number of cores, and the accelerator if there is one: `AMD EPYC (AVX2), 2 cores`."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        vectors = next((name for flag, name in _VECTORS.items() if flag in cpu_flags()), "no AVX2")
        cpu = f"{names[0]} ({vectors}), {len(names)} cores" if names else cpu
    return f"{cpu}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else cpu


def rows_of(name: str) -> list[dict[str, object]]:
    """All rows ever recorded under `name`, oldest first."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _redraw(name: str) -> None:
    """Replaces (or appends) the section of `name`; whatever people wrote between sections stays."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n## {name}\n\n{_table(rows_of(name))}\n{end}"
    text = TABLES.read_text() if TABLES.exists() else _HEAD
    if begin in text and end in text:
        before, rest = text.split(begin, 1)
        text = before + section + rest.split(end, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    TABLES.write_text(text)


def _table(rows: list[dict[str, object]]) -> str:
    newest = list({(row.get("case"), row["machine"], row["torch"]): row for row in rows}.values())
    columns = list(dict.fromkeys(key for row in newest for key in row))
    lead = [key for key in ("case", "machine", "threads", "torch", "date") if key in columns]
    columns = [lead[0], *(c for c in columns if c not in lead), *lead[1:]]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in newest]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
