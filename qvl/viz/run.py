"""The files of a run, read back: what was configured, how the loss went, what the evaluations found.

Knows: the folder's layout. Does not know: how it is shown, who wrote it.

    config.yaml                     the whole recipe                                          (optional)
    summary.json                    name, model, hardware, seconds, parameters, targets ...   (optional)
    metrics.jsonl                   one object per log line: stage, step, elapsed_s, loss, task_loss ...   (optional)
    eval/<stage>/metrics.json       an evaluation after a stage; eval/final is the one that counts         (optional)
    eval/<stage>/predictions.jsonl  every answer; eval/<stage>/pictures/ some of the pictures
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl.viz.curves import Band

FINAL = "final"
Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    folder: Path
    config: str
    """Text of config.yaml."""
    summary: Json
    log: list[Json]
    evals: dict[str, Json]
    """Stage -> its metrics.json, in the order the stages were trained; "final" comes last."""
    predictions: list[Json]
    """Of the evaluation that counts."""

    @property
    def name(self) -> str:
        return str(self.summary.get("name", self.folder.name))

    @property
    def counted(self) -> str | None:
        """The stage whose evaluation counts: "final", or else the last one there is."""
        return next(reversed(self.evals), None)

    @property
    def stages(self) -> list[Band]:
        """Stages in training order, with their first and last minute."""
        bands: list[Band] = []
        for row in self.log:
            minute, stage = row["elapsed_s"] / 60, row["stage"]
            if bands and bands[-1].label == stage:
                bands[-1] = Band(stage, bands[-1].start, minute)
            else:
                bands.append(Band(stage, bands[-1].end if bands else 0.0, minute))
        return bands


def read_run(run_dir: str | Path) -> Run:
    """Reads what is there of a run.

    Raises:
        FileNotFoundError: no such folder, or neither a training log nor an evaluation in it.
        ValueError: a file that is not what it should be; named, with the line.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run folder {folder}")
    log = _lines(folder / "metrics.jsonl")
    _check_log(log, folder)
    order = list(dict.fromkeys(row["stage"] for row in log))
    evals = _evals(folder / "eval", order)
    if not log and not evals:
        raise FileNotFoundError(f"{folder} holds neither metrics.jsonl nor eval/*/metrics.json; nothing to report")
    config = folder / "config.yaml"
    summary = folder / "summary.json"
    counted = next(reversed(evals), None)
    return Run(
        folder=folder,
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        summary=_object(summary) if summary.is_file() else {},
        log=log,
        evals=evals,
        predictions=_lines(folder / "eval" / counted / "predictions.jsonl") if counted else [],
    )


def _evals(folder: Path, order: list[str]) -> dict[str, Json]:
    found = {path.parent.name: path for path in sorted(folder.glob("*/metrics.json"))}

    def place(stage: str) -> tuple[int, str]:
        if stage == FINAL:
            return len(order) + 1, ""
        return (order.index(stage) if stage in order else len(order)), stage

    return {stage: _object(found[stage]) for stage in sorted(found, key=place)}


def _check_log(log: list[Json], folder: Path) -> None:
    for i, row in enumerate(log, start=1):
        missing = [key for key in ("stage", "elapsed_s", "loss") if key not in row]
        if missing:
            raise ValueError(f"{folder / 'metrics.jsonl'}, line {i} lacks {', '.join(missing)}")


def _object(path: Path) -> Json:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(found).__name__}")
    return found


def _lines(path: Path) -> list[Json]:
    if not path.is_file():
        return []
    rows = []
    # Not `splitlines`: what a model has said may hold U+2028 and its like, which JSON leaves as they are.
    *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
    if unfinished.endswith("}"):
        lines.append(unfinished)  # else a line that is being written, or was when its run was killed
    for i, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {i} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {i} must be a JSON object, not {type(row).__name__}")
        rows.append(row)
    return rows
