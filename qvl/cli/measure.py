"""Measuring a model on the embedded world, and showing what came out.

Knows: how many questions of each kind make a sample of a task, which scenes floors are chosen on.
Does not know: where the model comes from, how answers are judged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from qvl.data.easy_vqa import EasyVqa, Style
from qvl.data.records import Sample
from qvl.data.world import World, WorldConfig
from qvl.data.world.config import Split
from qvl.engine.api import Generator
from qvl.evals.runner import EvalResult, evaluate
from qvl.evals.tasks.base import Format, Task
from qvl.evals.tasks.easy_vqa import EasyVqaTask
from qvl.evals.tasks.world import world_samples, world_suite
from qvl.viz.numbers import metric_name, show, show_interval

FLOOR_SAMPLES = 100
"""Training scenes per kind of question on which the best constant answers are chosen."""
_RARE = 0.2
"""Least share of a language among them."""


def measure(
    generator: Generator,
    world: WorldConfig,
    split: Split,
    per_task: int,
    out_dir: Path,
    *,
    chat_format: Format | None = None,
    floors: bool = False,
    stamp: Mapping[str, Any] | None = None,
    at_once: int = 16,
    easy_vqa: int = 0,
) -> EvalResult:
    """Asks `per_task` questions per task about scenes of `split`, shared evenly among the task's kinds of question.

    Args:
        easy_vqa: ask so many of easy-VQA's test questions as well (they have no other held-out ones).
        floors: measure the best constant answer and the same model without the picture as well (twice the time).
        stamp: what else must be known to repeat the numbers.
        at_once: questions handed to the generator together; it changes the speed, not the answers.

    Raises:
        ValueError: `per_task` below 1.
    """
    if per_task < 1:
        raise ValueError(f"samples must be at least 1 per task, got {per_task}")
    suite, place = world_suite(world), World(world)
    samples = _samples(place, split, per_task, suite)
    if easy_vqa:
        suite, drawn = (*suite, EasyVqaTask()), EasyVqa("test", style=world.style)
        samples += drawn.questions(easy_vqa)
    return evaluate(
        generator,
        suite,
        samples,
        out_dir,
        batch_size=at_once,
        chat_format=chat_format,
        floor_samples=world_samples(world_for_floors(world), "train", FLOOR_SAMPLES) if floors else (),
        blind_floor=floors,
        stamp={**(stamp or {}), "split": split, "per_task": per_task},
    )


def measure_easy_vqa(
    generator: Generator,
    questions: int,
    out_dir: Path,
    *,
    style: Style = "chat",
    chat_format: Format | None = None,
    floors: bool = False,
    stamp: Mapping[str, Any] | None = None,
    at_once: int = 16,
) -> EvalResult:
    """Asks `questions` of easy-VQA's 9,673 test questions (0 = all). Arguments as `measure`.

    Raises:
        FileNotFoundError: the questions were not fetched yet.
        ValueError: `questions` below 0.
    """
    if questions < 0:
        raise ValueError(f"samples must be at least 1, or 0 for all, got {questions}")
    return evaluate(
        generator,
        (EasyVqaTask(),),
        EasyVqa("test", style=style).questions(questions),
        out_dir,
        batch_size=at_once,
        chat_format=chat_format,
        floor_samples=EasyVqa("train", style=style).questions() if floors else (),
        blind_floor=floors,
        stamp={**(stamp or {}), "questions": questions or "all"},
    )


def world_for_floors(config: WorldConfig) -> World:
    """The world whose training scenes constants are chosen on, for each language: enough of a rare one, too."""
    return World(replace(config, zh=min(max(config.zh, _RARE), 1 - _RARE)) if 0 < config.zh < 1 else config)


def _samples(world: World, split: Split, per_task: int, suite: tuple[Task, ...]) -> list[Sample]:
    """Of every task, the kinds of question that the world's config gives a weight."""
    asked = {kind for kind, weight in world.config.tasks.items() if weight > 0}
    found: list[Sample] = []
    for task in suite:
        kinds = sorted(task.kinds & asked)
        if kinds:
            found += world_samples(world, split, math.ceil(per_task / len(kinds)), kinds)
    return found


def print_scores(folder: Path, targets: Mapping[str, float], title: str) -> None:
    """A table on stdout from the evaluation in `folder`: headline metrics beside floors and, where given, targets."""
    tasks = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["tasks"]
    floors = [
        name for name in ("constant", "question", "blind") if any(name in task["floors"] for task in tasks.values())
    ]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("held-out task")
    for name in ("score", "95 %", *floors, *(["target"] if targets else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for name, task in tasks.items():
        wanted = [task["headline"], *(key.split("/")[1] for key in targets if key.startswith(f"{name}/"))]
        for key in dict.fromkeys(wanted):
            metric = task["metrics"][key]
            cells = [show(key, metric["value"]), show_interval(key, metric)]
            for floor in floors:
                found = task["floors"].get(floor, {}).get(key)
                cells.append(show(key, found["value"]) if found else "")
            target = targets.get(f"{name}/{key}")
            if target is not None:
                cells.append(f"{show(key, target)} {'✓' if metric['value'] >= target else '✗'}")
            table.add_row(f"{task['title']}: {metric_name(key)}", *cells)
    Console().print(table)
    if floors:
        print("constant: the best answer that never looks; blind: the same model with the picture hidden")
