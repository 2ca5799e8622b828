"""One self-contained HTML page about a run: scores against floors, curves, pictures with boxes, limits.

Knows: what a reader of a run wants to see, in which order. Does not know: models, how anything was computed; it only
reads the files that training and evaluation left (`viz.run`). No script, no other file, no address: the page's own
policy forbids loading anything.
"""

from __future__ import annotations

from pathlib import Path

from qvl.viz.curves import Chart, Series, line_chart
from qvl.viz.page import facts, hardware, stages_in_words, write_page
from qvl.viz.run import Run, read_run
from qvl.viz.scores import group_tables, method_table, score_table, stage_table, verdict
from qvl.viz.svg import escape
from qvl.viz.wall import PICTURES, chosen, outcome, wall
from qvl.viz.words import readable

LIMITS = (
    "There is one picture per concept: naming is memorised. What generalises here is composition, that is places, "
    "pairs and layouts that training never showed; the name of a thing drawn by another hand is another test.",
    "Scenes, questions and labels are generated from the same code that made the training data.",
    "Nothing here is comparable with the benchmark numbers of the Qwen-VL or Qwen2-VL papers or of any public "
    "benchmark; CIDEr-D in particular has one reference per picture, made from few templates, and goes to 10.",
    "One run with one seed: the intervals say how sure the test set makes a number, not how another run would end.",
)

_KEY = "".join(
    f'<li><svg viewBox="0 0 16 10" aria-hidden="true"><path d="{path}" stroke="var(--{colour})" {stroke}/></svg>'
    f"{text}</li>"
    for path, colour, stroke, text in (
        ("M0 5 L16 5", "bar", 'stroke-width="7"', "score"),
        ("M0 5 L16 5", "ink", 'stroke-width="2"', "95 % interval"),
        ("M8 0 L8 10", "second", 'stroke-width="2"', "best constant answer"),
        ("M8 0 L8 10", "second", 'stroke-width="2" stroke-dasharray="2 2"', "picture hidden"),
    )
)


def write_report(run_dir: str | Path) -> Path:
    """Writes `report.html` into the run's folder and returns its path. What the run lacks is left out.

    Raises:
        FileNotFoundError: no such run, nothing in it, or a picture that its predictions name is gone.
        ValueError: a damaged file, named.
    """
    run = read_run(run_dir)
    sections = [_top(run), _scores(run), _curves(run), _stages(run), _pictures(run), _limits(run), _method(run)]
    return write_page(run.folder / "report.html", f"{run.name}: report", sections)


def _top(run: Run) -> str:
    told = facts(run.summary)
    shown = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in told.items() if v is not None)
    lead = f'<p class="lead">{escape(verdict(run.evals[run.counted]))}</p>' if run.counted else ""
    return f'<header><h1>{escape(run.name)}</h1>{lead}<dl class="facts">{shown}</dl></header>'


def _scores(run: Run) -> str:
    if not run.counted:
        return ""
    result = run.evals[run.counted]
    return f"""<section><h2>Scores on held-out scenes</h2>
<p class="note">{result["samples"]} questions, within a task each about a scene of its own, greedy answers. A score
means something only above both floors: the best constant answer per kind of question (chosen on training scenes), and
the same model asked the same questions with the picture replaced by plain grey.</p>
<ul class="key">{_KEY}</ul>
{score_table(result, run.summary.get("targets", {}))}
<h3>By kind of question, language and number of objects</h3>{group_tables(result)}</section>"""


def _curves(run: Run) -> str:
    if not run.log:
        return ""
    bands = run.stages
    stages = stages_in_words(bands)
    chart = Chart(
        f"Training loss over minutes, stages {stages}", "minutes of training", log_y=True, bands=bands, width=960
    )
    speed = [row["samples_per_s"] for row in run.log if "samples_per_s" in row]
    pace = f" Median speed: {sorted(speed)[len(speed) // 2]:,.0f} samples/s." if speed else ""
    return f"""<section><h2>Learning</h2>
<p class="note">Loss in nats per supervised token (logarithmic). Stages: {escape(stages)}.{pace}</p>
{line_chart(_by_stage(run, [row["loss"] for row in run.log]), chart)}{_task_curves(run)}</section>"""


def _by_stage(run: Run, values: list[float]) -> list[Series]:
    """One series per stage, so that no line joins the end of one with the start of the next."""
    stages = dict.fromkeys(row["stage"] for row in run.log)
    picked = [[i for i, row in enumerate(run.log) if row["stage"] == stage] for stage in stages]
    minutes = [row["elapsed_s"] / 60 for row in run.log]
    return [Series("loss", [minutes[i] for i in rows], [values[i] for i in rows]) for rows in picked]


def _task_curves(run: Run) -> str:
    tasks = sorted({task for row in run.log for task in row.get("task_loss", {})})
    nan = float("nan")
    figures = []
    for task in tasks:
        values = [row.get("task_loss", {}).get(task, nan) for row in run.log]
        if not any(v > 0 for v in values):
            continue
        chart = Chart(
            f"Loss of {task} over minutes", log_y=True, bands=run.stages, width=260, height=120, margins=(6, 6, 20, 34)
        )
        drawn = line_chart(_by_stage(run, values), chart, band_labels=False)
        figures.append(f"<figure><figcaption>{escape(task)}</figcaption>{drawn}</figure>")
    return f'<h3>Loss by task</h3><div class="small">{"".join(figures)}</div>' if figures else ""


def _stages(run: Run) -> str:
    if len(run.evals) < 2:
        return ""
    return f'<section><h2>After each stage</h2><div class="wide">{stage_table(run.evals)}</div></section>'


def _pictures(run: Run) -> str:
    rows = chosen(run.predictions)
    if not rows or not run.counted:
        return ""
    right = sum(outcome(row) == "right" for row in rows)
    every = sum(outcome(row) == "right" for row in run.predictions) / len(run.predictions)
    return f"""<section><h2>What it sees</h2>
<p class="note">The first held-out pictures of every kind of question and language, up to {PICTURES}, whatever was
answered: {right} of these {len(rows)} answers are wholly right, against {100 * every:.0f} % of all
{len(run.predictions)}. Boxes: <b>solid white</b> true, <b>dashed yellow</b> predicted, <b>dotted blue</b> asked
about.</p>
{wall(rows, run.folder / "eval" / run.counted)}</section>"""


def _limits(run: Run) -> str:
    machine = hardware(run.summary.get("hardware"))
    limits = [*LIMITS, f"Times were measured on: {machine}." if machine else "The hardware was not recorded."]
    items = "".join(f"<li>{escape(limit)}</li>" for limit in limits)
    return f'<section><h2>Honest limits</h2><ul class="limits">{items}</ul></section>'


def _method(run: Run) -> str:
    parts = []
    if run.counted:
        result = run.evals[run.counted]
        known = {k: v for k, v in result["config"].items() if k != "tasks"}
        facts = "".join(
            f"<div><dt>{escape(k.replace('_', ' '))}</dt><dd>{escape(readable(v))}</dd></div>" for k, v in known.items()
        )
        parts.append(
            f'<details><summary>How the questions were asked</summary><dl class="facts">{facts}</dl>'
            f'<div class="wide">{method_table(result)}</div></details>'
        )
    if run.config:
        parts.append(f"<details><summary>The whole recipe</summary><pre>{escape(run.config)}</pre></details>")
    return f"<section><h2>How it was made</h2>{''.join(parts)}</section>" if parts else ""
