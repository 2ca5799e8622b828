"""One self-contained HTML page about several runs, side by side: what they are, what they score, how they learned.

Knows: what can be compared, and what has to be said with it.
Does not know: models; it only reads the files that runs left (`viz.run`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvl.viz.curves import TONES, Chart, Series, line_chart
from qvl.viz.numbers import metric_name, show, show_interval
from qvl.viz.page import facts, stages_in_words, write_page
from qvl.viz.run import Run, read_run
from qvl.viz.scores import FLOORS, plain_keys
from qvl.viz.svg import escape
from qvl.viz.wall import chosen, labelled_wall

_QUESTIONS = 12
"""Questions whose answers are shown side by side."""
Json = dict[str, Any]


def write_comparison(run_dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Writes a page about these runs to `out` and returns its path. What no run has is left out.

    Raises:
        FileNotFoundError: no such run, nothing in it, or a picture that its predictions name is gone.
        ValueError: fewer than two runs, one of them twice, or a damaged file, named.
    """
    folders = [Path(folder) for folder in run_dirs]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ValueError(f"a comparison needs two or more different runs, got {', '.join(map(str, folders)) or 'none'}")
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    sections = [_top(runs, names), _scores(runs, names), _curves(runs, names), _answers(runs, names)]
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(path, " beside ".join(names), sections)


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' own names, or their folders where two are called the same."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def _top(runs: Sequence[Run], names: Sequence[str]) -> str:
    told = [facts(run.summary) for run in runs]
    rows = [(key, [one[key] for one in told]) for key in told[0]]
    rows.append(("Speed", [_speed(run) for run in runs]))
    shown = [(key, ["–" if v is None else escape(v) for v in values]) for key, values in rows if set(values) != {None}]
    return f"<header><h1>{escape(' beside '.join(names))}</h1>{_table('', names, shown)}</header>"


def _speed(run: Run) -> str | None:
    speeds = sorted(row["samples_per_s"] for row in run.log if "samples_per_s" in row)
    return f"{speeds[len(speeds) // 2]:,.0f} samples/s (median)" if speeds else None


def _table(corner: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """`names` as columns; the head of a row is escaped, its cells are HTML."""
    head = "".join(f"<th>{escape(text)}</th>" for text in (corner, *names))
    body = "".join(
        f'<tr><th scope="row">{escape(key)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for key, cells in rows
    )
    table = f'<table class="plain sides"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _scores(runs: Sequence[Run], names: Sequence[str]) -> str:
    results = [run.evals[run.counted] if run.counted else {"tasks": {}} for run in runs]
    tasks = {name: task for result in results for name, task in result["tasks"].items()}
    if not tasks:
        return ""
    rows = [
        (f"{task['title']}: {metric_name(key)}", [_score(r["tasks"].get(name), key) for r in results])
        for name, task in tasks.items()
        for key in plain_keys(task)
    ]
    return f"""<section><h2>Scores on held-out scenes</h2>
<p class="note">{_same_questions(runs)} Greedy answers; 95 % intervals. Below each score what is had without looking:
the best constant answer, and the same model with the picture hidden. Intervals that overlap decide nothing.</p>
{_table("Task", names, rows)}</section>"""


def _score(task: Json | None, key: str) -> str:
    metric = task["metrics"].get(key) if task else None
    if task is None or metric is None:
        return '<span class="none">not measured</span>'
    floors = [
        f"{escape(floor)} {show(key, task['floors'][floor][key]['value'])}"
        for floor in FLOORS
        if key in task.get("floors", {}).get(floor, {})
    ]
    below = f"<br><small>{', '.join(floors)}</small>" if floors else ""
    return f"<strong>{show(key, metric['value'])}</strong> <small>{show_interval(key, metric)}</small>{below}"


def _same_questions(runs: Sequence[Run]) -> str:
    asked = [{row["name"] for row in run.predictions} for run in runs]
    if all(names == asked[0] for names in asked):
        return f"All were asked the same {len(asked[0])} questions."
    return (
        f"They were asked different questions ({', '.join(str(len(names)) for names in asked)}, of which "
        f"{len(set.intersection(*asked))} are common): small differences mean nothing."
    )


def _curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    series = [
        Series(name, [row["elapsed_s"] / 60 for row in rows], [row["loss"] for row in rows], TONES[i % len(TONES)])
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
        for rows in _by_stage(run)
    ]
    if not series:
        return ""
    chart = Chart("Training loss of every run over minutes", "minutes of training", log_y=True, width=960)
    stages = "".join(
        f"<li>{escape(name)}: {escape(stages_in_words(run.stages))}</li>" for run, name in zip(runs, names, strict=True)
    )
    return f"""<section><h2>Learning</h2>
<p class="note">Loss in nats per supervised token (logarithmic); a line breaks where a stage ends. Losses of stages with
other tasks or objectives are not comparable.</p>
{line_chart(series, chart)}<details><summary>Stages</summary><ul>{stages}</ul></details></section>"""


def _by_stage(run: Run) -> list[list[Json]]:
    return [[row for row in run.log if row["stage"] == band.label] for band in run.stages]


def _answers(runs: Sequence[Run], names: Sequence[str]) -> str:
    by_name = [{row["name"]: row for row in run.predictions} for run in runs]
    common = [row for row in runs[0].predictions if all(row["name"] in rows for rows in by_name)]
    cards = [
        (name, rows[row["name"]] | {"picture": row["picture"]}, runs[0].folder / "eval" / str(runs[0].counted))
        for row in chosen(common, _QUESTIONS)
        for name, rows in zip(names, by_name, strict=True)
    ]
    if not cards:
        return ""
    return f"""<section><h2>The same questions</h2>
<p class="note">The first held-out pictures of every kind of question and language, up to {_QUESTIONS}, whatever was
answered. Boxes: <b>solid white</b> true, <b>dashed yellow</b> predicted, <b>dotted blue</b> asked about.</p>
{labelled_wall(cards)}</section>"""
