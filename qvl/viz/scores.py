"""The report's tables: scores against their floors, by group, by stage, and how they were measured.

Knows: the JSON of an evaluation. Does not know: pictures, files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qvl.viz.numbers import metric_name, show, show_interval, top
from qvl.viz.svg import escape, number
from qvl.viz.words import readable, said

Json = dict[str, Any]
FLOORS = {"constant": "best constant answer", "blind": "same model, picture hidden"}


def score_table(result: Json, targets: Mapping[str, float]) -> str:
    """One row per metric of every task: value, interval, both floors, target."""
    head = "<th>Task</th><th>Score</th><th>95 % interval</th>"
    head += "".join(f"<th>{escape(title)}</th>" for title in FLOORS.values())
    head += "<th>Above both</th>" + ("<th>Target</th>" if targets else "")
    rows = [_row(name, task, key, targets) for name, task in result["tasks"].items() for key in plain_keys(task)]
    return f'<table class="scores"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def verdict(result: Json) -> str:
    """One sentence: how many tasks are clearly above both floors."""
    judged = [above_floors(task) for task in result["tasks"].values()]
    known = [j for j in judged if j is not None]
    if not known:
        return f"{len(judged)} tasks were measured; no floor was."
    return (
        f"{sum(known)} of {len(known)} tasks are clearly above both floors: the paired difference to the best constant "
        "answer and to the same model with its picture hidden lies above zero with 95 % confidence."
    )


def above_floors(task: Json) -> bool | None:
    """True when the headline metric beats every floor with 95 % confidence; None when no floor was measured."""
    gains = task.get("gains", {})
    return all(gain["ci_low"] > 0 for gain in gains.values()) if gains else None


def plain_keys(task: Json) -> list[str]:
    """Metric names without a group, the headline first."""
    keys = [key for key in task["metrics"] if "/" not in key]
    return sorted(keys, key=lambda key: (key != task["headline"], key))


def _row(name: str, task: Json, key: str, targets: Mapping[str, float]) -> str:
    metric, first = task["metrics"][key], key == task["headline"]
    target = targets.get(f"{name}/{key}")
    cells = [
        f'<th scope="row"><span class="{"task" if first else "sr"}">{escape(task["title"])}</span> '
        f"{escape(metric_name(key))}</th>",
        f'<td class="value">{_bar(task, key, target)}<strong>{show(key, metric["value"])}</strong></td>',
        f'<td data-label="95 % interval">{show_interval(key, metric)} <small>n = {metric["n"]}</small></td>',
    ]
    for floor, title in FLOORS.items():
        found = task.get("floors", {}).get(floor, {}).get(key)
        shown = show(key, found["value"]) if found else '<span class="none">not measured</span>'
        cells.append(f'<td data-label="{escape(title)}">{shown}</td>')
    cells.append(f'<td data-label="Above both">{_above(task) if first else ""}</td>')
    if targets:
        cells.append(f'<td data-label="Target">{_target(key, metric["value"], target)}</td>')
    return f'<tr class="{"first" if first else "more"}">{"".join(cells)}</tr>'


def _above(task: Json) -> str:
    above = above_floors(task)
    if above is None:
        return '<span class="none">not measured</span>'
    gap = min(gain["value"] for gain in task["gains"].values())
    key = task["headline"]
    size = f"{gap:+.2f}" if top(key) > 1 else f"{100 * gap:+.1f} points"
    return f'<span class="right">✓ {size}</span>' if above else f'<span class="wrong">✗ {size}</span>'


def _target(key: str, value: float, target: float | None) -> str:
    if target is None:
        return ""
    met = value >= target
    return f'<span class="{"right" if met else "wrong"}">{"✓" if met else "✗"} {show(key, target)}</span>'


def _bar(task: Json, key: str, target: float | None) -> str:
    """Value as a bar, its interval as a line, floors as ticks; the numbers beside it say the same."""
    full = top(key)
    metric = task["metrics"][key]

    def at(value: float) -> str:
        return number(max(0.0, min(1.0, value / full)) * 100)

    parts = [
        '<rect x="0" y="4" width="100" height="8" fill="var(--line)"/>',
        f'<rect x="0" y="4" width="{at(metric["value"])}" height="8" fill="var(--bar)"/>',
        f'<path d="M{at(metric["ci_low"])} 8 L{at(metric["ci_high"])} 8" stroke="var(--ink)" stroke-width="2"/>',
    ]
    for floor, dash in (("constant", ""), ("blind", ' stroke-dasharray="2 2"')):
        found = task.get("floors", {}).get(floor, {}).get(key)
        if found:
            x = at(found["value"])
            parts.append(f'<path d="M{x} 0 L{x} 16" stroke="var(--second)" stroke-width="2"{dash}/>')
    if target is not None:
        parts.append(f'<path d="M{at(target)} 0 L{at(target)} 16" stroke="var(--ink)" stroke-width="1.5"/>')
    drawn = "".join(p.replace("/>", ' vector-effect="non-scaling-stroke"/>') for p in parts)
    return f'<svg class="bar" viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'


def group_tables(result: Json) -> str:
    """The headline metric of every task by kind of question, language, number of objects."""
    return "".join(_group_table(task) for task in result["tasks"].values())


def _group_table(task: Json) -> str:
    key = task["headline"]
    groups = [k for k in task["metrics"] if k.startswith(f"{key}/")]
    if not groups:
        return ""
    titles = [t for f, t in FLOORS.items() if f in task.get("floors", {})]
    head = "".join(f"<th>{escape(t)}</th>" for t in ("Group", metric_name(key), "95 % interval", "n", *titles))
    rows = []
    for group in groups:
        metric = task["metrics"][group]
        floors = [task["floors"][f].get(group) for f in FLOORS if f in task.get("floors", {})]
        cells = [show(key, metric["value"]), show_interval(key, metric), str(metric["n"])]
        cells += [show(key, floor["value"]) if floor else "" for floor in floors]
        label = escape(group.split("/", 1)[1].replace("=", ": ").replace("_", " "))
        rows.append(f'<tr><th scope="row">{label}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>')
    table = f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<details><summary>{escape(task["title"])}</summary><div class="wide">{table}</div></details>'


def stage_table(evals: Mapping[str, Json]) -> str:
    """Every metric after every stage."""
    stages = list(evals)
    last = evals[stages[-1]]
    head = "<th>Metric</th>" + "".join(f"<th>{escape(stage)}</th>" for stage in stages)
    rows = []
    for name, task in last["tasks"].items():
        for key in plain_keys(task):
            values = [e["tasks"].get(name, {}).get("metrics", {}).get(key) for e in evals.values()]
            cells = "".join(f"<td>{show(key, v['value']) if v else '–'}</td>" for v in values)
            rows.append(
                f'<tr><th scope="row"><span class="task">{escape(task["title"])}</span> '
                f"{escape(metric_name(key))}</th>{cells}</tr>"
            )
    return f'<table class="plain stages"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def method_table(result: Json) -> str:
    """How each task was asked: number of samples, first prompt, longest answer, the constants that were tried."""
    rows = []
    for name, asked in result["config"].get("tasks", {}).items():
        constants = result["tasks"].get(name, {}).get("constants", {})
        best = "; ".join(f"{escape(group)}: “{said(text)}”" for group, text in constants.items()) or "not measured"
        kinds, longest = escape(readable(asked["kinds"])), escape(asked["max_new_tokens"])
        cells = "".join(f"<td>{cell}</td>" for cell in (said(asked["first_prompt"]), kinds, longest, best))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    head = "".join(f"<th>{t}</th>" for t in ("Task", "First prompt", "Samples", "Longest answer", "Best constants"))
    return f'<table class="plain method"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
