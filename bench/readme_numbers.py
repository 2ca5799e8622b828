"""Writes measured numbers between the markers of README.md, so that none is typed by hand.

    python -m bench.readme_numbers [--runs runs]

Knows: `<!-- numbers:NAME -->` ... `<!-- /numbers:NAME -->`; `demo` and `demo-qwen-vl` come from docs/numbers/NAME.json,
which is made anew from the run of that name if there is a finished one; `small` from the runs `small` and
`tiny-easy-vqa`, once `qvl eval` has measured them; every other name from the newest rows of bench/results/NAME.jsonl.
Does not know: how anything was measured.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.record import rows_of
from qvl.viz.numbers import clock, count, metric_name, show, show_interval
from qvl.viz.run import FINAL, read_run

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
NUMBERS = ROOT / "docs" / "numbers"
DEMO, DEMO_QWEN_VL = "demo", "demo-qwen-vl"
"""Runs, and sections. The first is told whole, the second by every task's headline."""
SIDE_BY_SIDE = {"tiny-easy-vqa": "tiny", "small": "small"}
"""Runs that section `small` compares -> the names of their models."""
_MARKED = re.compile(r"(<!-- numbers:([\w-]+) -->\n).*?(<!-- /numbers:\2 -->)", re.DOTALL)
_ABOUT_THE_MACHINE = ("date", "machine", "threads", "torch")

Json = dict[str, Any]


def kept_runs() -> dict[str, Json]:
    """What docs/numbers holds, by the run's name."""
    files = {name: NUMBERS / f"{name}.json" for name in (DEMO, DEMO_QWEN_VL, *SIDE_BY_SIDE)}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def fill(text: str, runs: Mapping[str, Json]) -> str:
    """README text with every marked section made anew."""

    def section(match: re.Match[str]) -> str:
        name = match[2]
        if name in (DEMO, DEMO_QWEN_VL):
            body = demo_section(runs.get(name), whole=name == DEMO)
        elif name == "small":
            body = side_by_side([runs[run] for run in SIDE_BY_SIDE if run in runs])
        else:
            body = bench_section(name)
        return f"{match[1]}{body}\n{match[3]}"

    return _MARKED.sub(section, text)


def collect(run_dir: Path) -> Json:
    """What the README says of a run.

    Raises:
        FileNotFoundError: no such run, or it has no final evaluation.
    """
    run = read_run(run_dir)
    if FINAL not in run.evals:
        raise FileNotFoundError(f"{run_dir} has no final evaluation; let `make demo` finish first")
    stages = {stage: _headlines(result) for stage, result in run.evals.items() if stage != FINAL}
    final = run.evals[FINAL]
    tasks = {
        name: {
            "title": task["title"],
            "headline": task["headline"],
            "metrics": {key: value for key, value in task["metrics"].items() if "/" not in key},
            "floors": {
                floor: {key: value for key, value in found.items() if "/" not in key}
                for floor, found in task["floors"].items()
            },
        }
        for name, task in final["tasks"].items()
    }
    return {"summary": run.summary, "questions": final["samples"], "tasks": tasks, "stages": stages}


def _headlines(result: Json) -> Json:
    return {
        name: {"title": task["title"], "key": task["headline"], "value": task["metrics"][task["headline"]]["value"]}
        for name, task in result["tasks"].items()
    }


def collect_measured(run_dir: Path) -> Json:
    """What the README says of a run that `qvl eval` has measured on the test split and on easy-VQA: the headlines."""
    found: Json = {"summary": read_run(run_dir).summary, "tasks": {}}
    for name in ("test", "easy-vqa"):
        result = json.loads((run_dir / "measured" / name / "metrics.json").read_text(encoding="utf-8"))
        for key, task in result["tasks"].items():
            headline = task["metrics"][task["headline"]]
            found["tasks"][key] = {"title": task["title"], "headline": task["headline"], **headline}
    return found


def side_by_side(runs: list[Json]) -> str:
    """Headlines of several runs, one column each."""
    if len(runs) < len(SIDE_BY_SIDE):
        return "Not measured yet: train and measure both models as above, then `make docs`."
    rows = []
    for name, task in runs[-1]["tasks"].items():
        cells = [run["tasks"].get(name) for run in runs]
        key = task["headline"]
        shown = [f"{show(key, c['value'])} ({show_interval(key, c)})" if c else "" for c in cells]
        rows.append([f"{task['title']}: {metric_name(key)}", str(task["n"]), *shown])
    summaries = [run["summary"] for run in runs]
    head = [
        f"{model} ({count(sum(known['parameters'].values()))} parameters, {clock(known['seconds'])} of training)"
        for model, known in zip(SIDE_BY_SIDE.values(), summaries, strict=True)
    ]
    machine = summaries[-1]["hardware"]
    lead = f"Held-out questions, 95 % intervals; {machine['processor']}, {machine['threads']} threads, "
    lead += f"seed {summaries[-1]['seed']}, {summaries[-1]['date']}."
    return f"{lead}\n\n{table(['', 'questions', *head], rows)}"


def demo_section(demo: Json | None, whole: bool = True) -> str:
    """Scores beside floors; `whole`: of all metrics, and after each stage."""
    if demo is None:
        return "Not measured yet: run `make demo`, then `make docs`."
    known, targets = demo["summary"], demo["summary"]["targets"]
    rows = []
    for name, task in demo["tasks"].items():
        for key, metric in task["metrics"].items():
            if not whole and key != task["headline"]:
                continue
            cells = [show(key, metric["value"]), show_interval(key, metric)]
            for floor in ("constant", "blind"):
                found = task["floors"].get(floor, {}).get(key)
                cells.append(show(key, found["value"]) if found else "")
            target = targets.get(f"{name}/{key}")
            cells.append("" if target is None else show(key, target))
            rows.append([f"{task['title']}: {metric_name(key)}", *cells])
    hardware = ", ".join(f"{key} {value}" for key, value in known["hardware"].items())
    lead = (
        f"{clock(known['seconds'])} of training, {count(sum(known['parameters'].values()))} parameters, seed "
        f"{known['seed']}, {demo['questions']} questions about held-out scenes; {hardware}; {known['date']}."
    )
    head = ["", "score", "95 % interval", "best constant answer", "same model, picture hidden", "target"]
    return f"{lead}\n\n{table(head, rows)}\n\n{_stages(demo['stages']) if whole else ''}".rstrip()


def _stages(stages: Mapping[str, Json]) -> str:
    if not stages:
        return ""
    tasks = {name: task for result in stages.values() for name, task in result.items()}
    rows = [
        [f"{task['title']}: {metric_name(task['key'])}"]
        + [show(task["key"], result[name]["value"]) if name in result else "" for result in stages.values()]
        for name, task in tasks.items()
    ]
    return "After each stage, on other held-out scenes:\n\n" + table(["", *stages], rows)


def bench_section(name: str) -> str:
    rows = rows_of(name)
    if not rows:
        return f"Not measured yet: run `make bench`, then `make docs` (section `{name}`)."
    # Rows of other builds of torch are kept for comparison; the README shows the one that is installed by default.
    pinned = [row for row in rows if str(row["torch"]).startswith(_pinned_torch())] or rows
    last = pinned[-1]
    newest = list({row.get("case"): row for row in pinned if row["machine"] == last["machine"]}.values())
    columns = list(dict.fromkeys(key for row in newest for key in row if key not in _ABOUT_THE_MACHINE))
    lines = [[_cell(row.get(column, "")) for column in columns] for row in newest]
    where = f"{last['machine']}, threads {last['threads']}, torch {last['torch']}, {last['date']}."
    return f"{where}\n\n{table(columns, lines)}"


def _pinned_torch() -> str:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in pins if line.startswith("torch=="))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column names the row."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _keep(name: str, numbers: Json, runs: Path) -> None:
    text = json.dumps(numbers, indent=1, ensure_ascii=False)
    (NUMBERS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"docs/numbers/{name}.json from {runs / name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs lie")
    runs = parser.parse_args().runs
    NUMBERS.mkdir(parents=True, exist_ok=True)
    for name in (DEMO, DEMO_QWEN_VL):
        if (runs / name / "eval" / FINAL / "metrics.json").is_file():
            _keep(name, collect(runs / name), runs)
    for name in SIDE_BY_SIDE:
        if all((runs / name / "measured" / part / "metrics.json").is_file() for part in ("test", "easy-vqa")):
            _keep(name, collect_measured(runs / name), runs)
    text = README.read_text(encoding="utf-8")
    README.write_text(fill(text, kept_runs()), encoding="utf-8")
    print("README.md: " + ", ".join(match[2] for match in _MARKED.finditer(text)))


if __name__ == "__main__":
    main()
