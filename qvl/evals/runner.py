"""Runs a suite: asks, judges, writes every prediction and every number down.

Knows: the generator protocol, tasks, the files of an evaluation. Does not know: models, tensors, checkpoints.

Files in `out_dir`:
    metrics.json        config (prompts, decoding, pixels, what the caller stamps), seconds, metrics and floors per task
    predictions.jsonl   one line per sample: question, true answer, prediction, values, boxes
    pictures/           the first few pictures of every kind of question, for reports
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qvl.checkpoint.stage import write_whole
from qvl.data.records import Sample
from qvl.engine.api import Generator, Reply
from qvl.evals.floors import blind, constant_floor, shows_something
from qvl.evals.metrics.stats import Metric, paired_difference
from qvl.evals.records import Prediction, prediction, save_pictures
from qvl.evals.tasks.base import Format, Scores, Task, question
from qvl.runtime import console

PICTURES_PER_KIND = 4


@dataclass(frozen=True)
class TaskResult:
    """One task's outcome. `floors` and `gains` are keyed "constant" and "blind", for some tasks "question" too (what
    its words alone tell); gains are paired differences of the headline metric, ours minus the floor's."""

    title: str
    headline: str
    metrics: dict[str, Metric]
    floors: dict[str, dict[str, Metric]]
    gains: dict[str, Metric]
    constants: dict[str, str]
    """The constant answer chosen per kind of question and language."""


@dataclass(frozen=True)
class EvalResult:
    tasks: dict[str, TaskResult]
    predictions: tuple[Prediction, ...]
    seconds: float
    config: dict[str, Any]

    def value(self, task: str, metric: str | None = None) -> float:
        """A metric's value; default the headline."""
        result = self.tasks[task]
        return result.metrics[metric or result.headline].value


def evaluate(
    generator: Generator,
    suite: Sequence[Task],
    samples: Sequence[Sample],
    out_dir: str | Path,
    *,
    batch_size: int = 16,
    progress: bool = True,
    chat_format: Format | None = None,
    floor_samples: Sequence[Sample] = (),
    blind_floor: bool = False,
    stamp: Mapping[str, Any] | None = None,
) -> EvalResult:
    """Asks every sample of the suite's tasks and writes metrics and predictions to `out_dir`.

    Args:
        samples: each belongs to the task that takes its kind; tasks without samples are left out of the result.
        floor_samples: training samples; when given, the best constant answers are chosen on them.
        blind_floor: ask everything that shows pictures a second time with grey ones (doubles the time). Text alone
            has no such floor: the same question would be asked twice.
        stamp: what else must be known to repeat the numbers (model, recipe, pixel budget, dtype); JSON values.

    Raises:
        ValueError: no samples, a sample that no task takes, two samples of one name, or a generator that does not
            give one reply per request.
    """
    started = time.perf_counter()
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    shares = _share_out(suite, samples)
    predictions: list[Prediction] = []
    results: dict[str, TaskResult] = {}
    hidden = {task.name: own for task, own in shares if blind_floor and any(map(shows_something, own))}
    with _progress_bar(progress) as bar:
        total = len(samples) + sum(map(len, hidden.values()))
        asker = _Asker(generator, batch_size, chat_format, bar, total)
        for task, own in shares:
            replies = asker.ask(task, own)
            scores = task.judge(own, replies)
            predictions += map(prediction, [task.name] * len(own), own, replies, scores)
            others: dict[str, list[Scores]] = {}
            constants: dict[str, str] = {}
            if floor_samples:
                floor = constant_floor(task, floor_samples, own)
                constants, others["constant"] = floor.chosen, task.judge(own, floor.replies)
                if told := task.from_question(floor_samples, own):
                    others["question"] = task.judge(own, told)
            if task.name in hidden:
                others["blind"] = task.judge(own, asker.ask(task, [blind(s) for s in own]))
            results[task.name] = _result(task, own, scores, others, constants)
        config = {**(stamp or {}), **asker.config(), "tasks": {task.name: _asked(task, own) for task, own in shares}}
    result = EvalResult(results, tuple(predictions), time.perf_counter() - started, config)
    _write(result, Path(out_dir), samples)
    return result


@final
class _Asker:
    """Batches requests and remembers what the replies say about picture sizes."""

    def __init__(
        self, generator: Generator, batch_size: int, chat_format: Format | None, bar: Progress, total: int
    ) -> None:
        self._generator, self._batch_size, self._format = generator, batch_size, chat_format
        self._bar, self._row = bar, bar.add_task("asking", total=total)
        self._sizes: set[tuple[int, int]] = set()
        self._vision_tokens: list[int] = []

    def ask(self, task: Task, samples: Sequence[Sample]) -> list[Reply]:
        self._bar.update(self._row, description=task.title)
        replies: list[Reply] = []
        for start in range(0, len(samples), self._batch_size):
            requests = task.requests(samples[start : start + self._batch_size], self._format)
            answered = self._generator.generate(requests)
            if len(answered) != len(requests):
                raise ValueError(
                    f"the generator gave {len(answered)} replies to {len(requests)} requests of {task.name}"
                )
            replies += answered
            self._bar.advance(self._row, len(requests))
        self._sizes.update(hw for r in replies for hw in r.usage.resized_to)
        self._vision_tokens += [r.usage.vision_tokens for r in replies]
        return replies

    def config(self) -> dict[str, Any]:
        """What the numbers depend on; picture sizes are those the generator used, not those that were wished for."""
        vision = self._vision_tokens
        return {
            "decoding": "greedy",
            "chat_format": self._format or "the model's own",
            "batch_size": self._batch_size,
            "vision_tokens": {"min": min(vision), "mean": sum(vision) / len(vision), "max": max(vision)},
            "resized_to": sorted(self._sizes)[:32],
        }


def _asked(task: Task, samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "samples": len(samples),
        "kinds": dict(sorted(Counter(s.task for s in samples).items())),
        "max_new_tokens": task.max_new_tokens,
        "first_prompt": question(samples[0]),
    }


def _share_out(suite: Sequence[Task], samples: Sequence[Sample]) -> list[tuple[Task, list[Sample]]]:
    if not samples:
        raise ValueError("nothing to evaluate: no samples were given")
    names = {s.name for s in samples}
    if len(names) != len(samples):
        raise ValueError(f"{len(samples)} samples but only {len(names)} names; predictions are told apart by name")
    owner = {kind: task for task in suite for kind in task.kinds}
    shares: dict[str, list[Sample]] = {task.name: [] for task in suite}
    for sample in samples:
        if sample.task not in owner:
            raise ValueError(
                f"sample {sample.name} is of kind {sample.task!r}, which no task of the suite takes; "
                f"there are: {', '.join(sorted(owner))}"
            )
        shares[owner[sample.task].name].append(sample)
    return [(task, shares[task.name]) for task in suite if shares[task.name]]


def _result(
    task: Task,
    samples: Sequence[Sample],
    scores: list[Scores],
    others: dict[str, list[Scores]],
    constants: dict[str, str],
) -> TaskResult:
    headline = task.metrics[0]
    ours = [s[headline] for s in scores]
    return TaskResult(
        title=task.title,
        headline=headline,
        metrics=task.summarise(samples, scores),
        floors={name: task.summarise(samples, found) for name, found in others.items()},
        gains={name: paired_difference(ours, [s[headline] for s in found]) for name, found in others.items()},
        constants=constants,
    )


def _write(result: EvalResult, out_dir: Path, samples: Sequence[Sample]) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    pictures = save_pictures(samples, out_dir, PICTURES_PER_KIND)
    with (out_dir / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for row in result.predictions:
            file.write(json.dumps({**asdict(row), "picture": pictures.get(row.name)}, ensure_ascii=False) + "\n")
    numbers = {
        "config": result.config,
        "seconds": round(result.seconds, 2),
        "samples": len(result.predictions),
        "tasks": {name: asdict(task) for name, task in result.tasks.items()},
    }
    write_whole(out_dir / "metrics.json", json.dumps(numbers, ensure_ascii=False, indent=1) + "\n")


def _progress_bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(),
        disable=not shown,
    )
