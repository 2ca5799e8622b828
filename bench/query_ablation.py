"""How many vision tokens should Qwen-VL's adapter give a picture? The ablation of the paper's appendix E.2, in small.

    python -m bench.query_ablation --minutes 2                        # 4, 9, 16 and 36 queries on 64 patches
    python -m bench.query_ablation --config recipes/qwen_vl_stage1.yaml --queries 64 144 256 400 \
        --set stages.0.steps=5000 --set needs_data=false              # the paper's numbers, where there is a machine

Every point trains the same recipe with the same seed, data and minutes; only the number of queries differs. Stages in
which pictures are told in words have no adapter: they are trained once (`base`), and every point begins with that
language model. A point that is there is not trained again, one that was interrupted goes on: start the command again.

In `--out`: results.json, table.md, losses.svg (over steps, as in the paper), scores.svg, comparison.html, and a run's
folder per point.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvl.cli.measure import measure
from qvl.cli.recipe import FINAL, read_recipe
from qvl.cli.training import train_run
from qvl.train.config import PartsConfig, TrainConfig
from qvl.viz.compare import write_comparison
from qvl.viz.curves import TONES, Chart, Series, line_chart, standalone
from qvl.viz.numbers import TOPS, metric_name, show, show_interval
from qvl.viz.run import Run, read_run

LAST = 0.1
"""A stage's loss is the mean over this last part of its log lines."""
Json = dict[str, Any]


def base_of(recipe: TrainConfig, out: Path, minutes: float) -> TrainConfig | None:
    """The part of the recipe that knows no adapter; None if there is no such stage."""
    told = tuple(stage for stage in recipe.stages if stage.objective == "told")
    return replace(recipe, stages=told, run=str(out / "base"), minutes=minutes) if told else None


def point_of(recipe: TrainConfig, out: Path, queries: int, minutes: float) -> TrainConfig:
    """The rest of the recipe with so many queries.

    Raises:
        ValueError: no stage is left that shows pictures.
    """
    shown = tuple(replace(s, evaluate=False) for s in recipe.stages if s.objective != "told")
    if not shown:
        raise ValueError(f"no stage of {recipe.run} shows pictures; choose a recipe that trains an adapter")
    base = base_of(recipe, out, minutes)
    parts = PartsConfig(language=str(Path(base.run) / "model")) if base else recipe.parts
    return replace(recipe, stages=shown, run=str(out / f"q{queries}"), minutes=minutes, queries=queries, parts=parts)


def train_base(base: TrainConfig) -> None:
    if not (Path(base.run) / "model").is_dir():
        train_run(base)


def train_point(point: TrainConfig, base: TrainConfig | None, samples: int) -> Run:
    """Trains and measures what is not there yet."""
    folder = Path(point.run)
    if base is not None and not (folder / "tokenizer").is_dir():
        shutil.copytree(Path(base.run) / "tokenizer", folder / "tokenizer")
    final = folder / "eval" / FINAL
    if not (final / "metrics.json").is_file():
        done = train_run(point)
        stage = point.stages[-1]
        stamp = {"queries": point.queries, "seed": point.seed}
        form = stage.chat_format
        measure(done.vlm.engine, stage.world, "test", samples, final, chat_format=form, floors=True, stamp=stamp)
    return read_run(folder)


def last_losses(log: Sequence[Json]) -> dict[str, float]:
    """Stage -> its loss at the end."""
    found = {}
    for stage in dict.fromkeys(row["stage"] for row in log):
        losses = [row["loss"] for row in log if row["stage"] == stage]
        tail = losses[-max(1, round(LAST * len(losses))) :]
        found[stage] = sum(tail) / len(tail)
    return found


def summary(queries: int, run: Run) -> Json:
    """What is kept of a point."""
    tasks = run.evals[FINAL]["tasks"]
    return {
        "queries": queries,
        "parameters": run.summary["parameters"],
        "seconds": run.summary["seconds"],
        "steps": {row["stage"]: row["step"] for row in run.log},
        "loss": last_losses(run.log),
        "scores": {
            f"{name}/{key}": metric
            for name, task in tasks.items()
            for key, metric in task["metrics"].items()
            if "/" not in key
        },
        "hardware": run.summary["hardware"],
        "seed": run.summary["seed"],
    }


def table(points: Sequence[Json]) -> str:
    """Markdown: a row per point, the loss at the end of each stage, each score with its interval."""
    stages, scores = list(points[0]["loss"]), list(points[0]["scores"])
    names = [f"{task}: {metric_name(key)}" for task, key in (score.split("/") for score in scores)]
    head = ["queries", "adapter parameters", "steps", "minutes", *(f"loss, {stage}" for stage in stages), *names]
    lines = [f"| {' | '.join(head)} |", f"|{'---:|' * len(head)}"]
    for point in points:
        cells = [str(point["queries"]), f"{point['parameters']['merger']:,}", f"{sum(point['steps'].values()):,}"]
        cells += [f"{point['seconds'] / 60:.1f}", *(f"{point['loss'][stage]:.3f}" for stage in stages)]
        for score in scores:
            key, metric = score.split("/")[1], point["scores"][score]
            cells.append(f"{show(key, metric['value'])} ({show_interval(key, metric)})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def loss_chart(runs: dict[int, Run], stage: str) -> str:
    """Loss over the steps of one stage, a line per number of queries."""
    series = []
    for i, (queries, run) in enumerate(runs.items()):
        rows = [row for row in run.log if row["stage"] == stage]
        label = f"{queries} queries"
        series.append(Series(label, [r["step"] for r in rows], [r["loss"] for r in rows], TONES[i % len(TONES)]))
    chart = Chart(f"Training loss in {stage} by number of queries", f"steps of {stage}", "loss", log_y=True)
    return standalone(line_chart(series, chart))


def score_chart(points: Sequence[Json]) -> str:
    """Scores that go to 100 % over the number of queries."""
    names = [name for name in points[0]["scores"] if name.split("/")[1] not in TOPS]
    series = [
        Series(
            name.replace("/", ": "),
            [point["queries"] for point in points],
            [100 * point["scores"][name]["value"] for point in points],
            TONES[i % len(TONES)],
        )
        for i, name in enumerate(names)
    ]
    return standalone(line_chart(series, Chart("Scores by number of queries", "queries", "%", height=420)))


def write(out: Path, runs: dict[int, Run], about: Json) -> None:
    """Everything but the runs themselves, from the points that are there."""
    points = [summary(queries, run) for queries, run in runs.items()]
    (out / "results.json").write_text(json.dumps({**about, "points": points}, indent=1) + "\n", encoding="utf-8")
    (out / "table.md").write_text(table(points), encoding="utf-8")
    (out / "losses.svg").write_text(loss_chart(runs, list(points[0]["loss"])[-1]), encoding="utf-8")
    (out / "scores.svg").write_text(score_chart(points), encoding="utf-8")
    if len(runs) > 1:
        write_comparison([run.folder for run in runs.values()], out / "comparison.html")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("recipes/tiny_qwen_vl.yaml"))
    parser.add_argument("--queries", type=int, nargs="+", default=[4, 9, 16, 36], help="square numbers")
    parser.add_argument("--minutes", type=float, default=2.0, help="training of each point")
    parser.add_argument("--base-minutes", type=float, help="training of the language model alone (default: --minutes)")
    parser.add_argument("--samples", type=int, default=100, help="held-out questions per task")
    parser.add_argument("--out", type=Path, default=Path("runs/query-ablation"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of the recipe")
    options = parser.parse_args(arguments)
    recipe = read_recipe(options.config, settings=options.set)
    base = base_of(recipe, options.out, options.base_minutes or options.minutes)
    plans = {n: point_of(recipe, options.out, n, options.minutes) for n in sorted(set(options.queries))}
    options.out.mkdir(parents=True, exist_ok=True)
    if base is not None:
        train_base(base)
    about = {"recipe": str(options.config), "model": recipe.model, "minutes": options.minutes}
    runs: dict[int, Run] = {}
    for queries, point in plans.items():
        runs[queries] = train_point(point, base, options.samples)
        write(options.out, runs, about)
        print((options.out / "table.md").read_text(encoding="utf-8"))
    print(f"Everything: {options.out}")


if __name__ == "__main__":
    main()
