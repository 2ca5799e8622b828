"""The choreography of a training run: stages in order, steps in a stage, and nothing lost when it is interrupted.

Knows: when to load, step, log, save and hand over to an evaluation.
Does not know: how a batch is made, how a loss is computed, what an evaluation measures.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from qvl.data.loader import background
from qvl.data.packing import Pack, PackLimits, SampleSource, packs
from qvl.inputs.processor import Processor
from qvl.models.vlm import VisionLanguageModel
from qvl.train.clock import StageClock
from qvl.train.config import StageConfig, TrainConfig
from qvl.train.interrupt import Stopped, stop_on_signals
from qvl.train.log import RunLog, forget_after
from qvl.train.objectives import OBJECTIVES, Objective
from qvl.train.optim import Optimizers
from qvl.train.state import load_state, rng_state, save_state, set_rng_state

log = logging.getLogger(__name__)

_MAX_BAD_STEPS = 5

StageEnd = Callable[[VisionLanguageModel, StageConfig], None]


@dataclass
class _StageRun:
    """A stage under way."""

    stage: StageConfig
    source: SampleSource
    objective: Objective
    optimizers: Optimizers
    clock: StageClock
    next_index: int = 0
    """First sample that was not taken yet."""
    waiting: tuple[int, ...] = ()
    """Earlier samples that no step has used yet: they wait in open packs (`PackLimits.same_task`)."""
    bad_steps: int = 0
    """Steps skipped in a row."""


@final
class Trainer:
    """Trains `model` through the stages of `config`, from wherever the run's folder says it stopped.

    Args:
        source: gives the samples of a stage (`source(stage)[index]`).
        on_stage_end: called after each stage with the model in evaluation mode.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: VisionLanguageModel,
        processor: Processor,
        source: Callable[[StageConfig], SampleSource],
        on_stage_end: StageEnd | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.processor = processor
        self.source = source
        self.on_stage_end = on_stage_end
        self.folder = Path(config.run)
        self.elapsed = 0.0
        """Training seconds of all stages so far."""
        self._stopping = False

    def stop(self) -> None:
        """Asks for an orderly end: the step under way is finished, the state saved, then `Stopped` is raised."""
        self._stopping = True

    def fit(self) -> None:
        """Runs every stage that is not done yet. Interrupting it loses nothing: the same command goes on.

        Raises:
            Stopped: after an interrupt (Ctrl-C, SIGTERM), with the state saved.
            ValueError: the saved state belongs to another recipe, or losses stay not-a-number.
        """
        with stop_on_signals(self.stop):
            self._fit()

    def _fit(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        saved = load_state(self.folder / "checkpoint")
        first = 0
        if saved:
            self._check_same_recipe(saved)
            self.model.load_state_dict(saved["model"])
            self.elapsed, first = saved["elapsed"], saved["stage"]
            names = [s.name for s in self.config.stages]
            forget_after(self.folder, names[:first], (*names, "")[first], saved["step"])
            log.info("going on from stage %d, step %d (%s)", first, saved["step"], self.folder / "checkpoint")
        with RunLog(self.folder, self._seconds_left(first)) as run_log:
            for index in range(first, len(self.config.stages)):
                self._run_stage(index, run_log, saved if index == first else None)
                saved = None

    def _run_stage(self, index: int, run_log: RunLog, saved: dict[str, Any] | None) -> None:
        run = self._open_stage(index, saved)
        stream = self._packs(run)
        last_save = time.perf_counter()
        before = self.elapsed - run.clock.elapsed
        self.model.train()
        while run.clock.progress < 1.0:
            self._step(run, stream, run_log)
            self.elapsed = before + run.clock.elapsed
            run_log.show(run.stage.name, run.clock.progress, run.clock.seconds_left + self._seconds_left(index + 1))
            if self._stopping or time.perf_counter() - last_save > 60 * self.config.save_every_minutes:
                self._save(index, run)
                last_save = time.perf_counter()
            if self._stopping:
                raise Stopped(
                    f"stopped in {run.stage.name} after step {run.clock.step}; the same command goes on from there"
                )
        del stream
        self.model.eval()
        if self.on_stage_end is not None:
            self.on_stage_end(self.model, run.stage)
        self._save(index + 1, None)

    def _open_stage(self, index: int, saved: dict[str, Any] | None) -> _StageRun:
        stage = self.config.stages[index]
        run = _StageRun(
            stage,
            self.source(stage),
            OBJECTIVES[stage.objective],
            Optimizers(self.model, stage.trains, stage.optim),
            StageClock(stage.steps, stage_seconds(self.config, index)),
        )
        if saved and saved["optimizers"] is not None:
            run.optimizers.load_state_dict(saved["optimizers"])
            run.clock.resume(saved["step"], saved["stage_elapsed"])
            run.next_index, run.waiting = saved["next_index"], tuple(saved.get("waiting", ()))
            set_rng_state(saved["rng"])
        return run

    def _step(self, run: _StageRun, stream: Iterator[Pack], run_log: RunLog) -> None:
        """One optimizer step over `accumulate` packs. A step whose loss is not a number is skipped and counted."""
        waited = time.perf_counter()
        held = [next(stream) for _ in range(run.stage.accumulate)]
        waited = time.perf_counter() - waited
        loss = self._backward(run, held, run_log, waited)
        run.next_index, run.waiting = held[-1].next_index, held[-1].waiting
        if not math.isfinite(loss):
            self._skip(run, held)
            return
        run.bad_steps = 0
        norm, factor = run.optimizers.step(run.clock.progress)
        run.clock.step += 1
        if run.clock.step % self.config.log_every == 0:
            run_log.write(run.stage.name, run.clock.step, self.elapsed, grad_norm=norm, lr_factor=factor)

    def _backward(self, run: _StageRun, held: list[Pack], run_log: RunLog, waited: float) -> float:
        """Gradients of the mean loss over *all* items of the step, however they are split into packs."""
        objective = run.objective
        items = sum(objective.count(pack.batch) for pack in held)
        total = 0.0
        for i, pack in enumerate(held):
            losses_X = objective.losses(self.model, pack.batch)
            (losses_X.sum() / items).backward()
            losses_X = losses_X.detach()
            part = float(losses_X.sum())
            total += part
            run_log.add(
                part,
                losses_X.shape[0],
                pack.batch.tokens_T.shape[0],
                pack.samples,
                waited if i == 0 else 0.0,
                objective.by_task(losses_X, pack, run.source.tasks),
            )
        return total

    def _packs(self, run: _StageRun) -> Iterator[Pack]:
        stage, source, processor, start, waiting = run.stage, run.source, self.processor, run.next_index, run.waiting
        limits = PackLimits(stage.tokens_per_pack, stage.patches_per_pack, stage.same_task)
        return background(lambda: packs(source, processor, limits, stage.chat_format, start, waiting=waiting))

    def _skip(self, run: _StageRun, held: list[Pack]) -> None:
        run.bad_steps += 1
        names = ", ".join([name for pack in held for name in pack.batch.names][:8])
        if run.bad_steps >= _MAX_BAD_STEPS:
            raise ValueError(
                f"{run.bad_steps} steps in a row gave a loss that is not a number; the last one held {names}. "
                "Lower the learning rate (optim.lr, optim.muon_lr) or look at these samples"
            )
        log.warning("skipped a step whose loss is not a number; it held %s", names)
        run.optimizers.clear()

    def _save(self, stage: int, run: _StageRun | None) -> None:
        """Saves that `stage` is under way as `run` says, or (None) about to begin."""
        save_state(
            self.folder / "checkpoint",
            {
                "model": self.model.state_dict(),
                "optimizers": run.optimizers.state_dict() if run else None,
                "stage": stage,
                "step": run.clock.step if run else 0,
                "stage_elapsed": run.clock.elapsed if run else 0.0,
                "next_index": run.next_index if run else 0,
                "waiting": list(run.waiting) if run else [],
                "elapsed": self.elapsed,
                "rng": rng_state(),
                "stages": [s.name for s in self.config.stages],
            },
        )

    def _check_same_recipe(self, saved: dict[str, Any]) -> None:
        names = [s.name for s in self.config.stages]
        if saved["stages"] != names:
            raise ValueError(
                f"{self.folder} holds a run with the stages {saved['stages']}, this recipe has {names}: "
                "choose another run folder (--run) or delete that one"
            )

    def _seconds_left(self, first: int) -> float:
        """Seconds planned for stage `first` and those after it (stages counted in steps are unknown: 0)."""
        return sum(stage_seconds(self.config, i) for i in range(first, len(self.config.stages)))


def stage_seconds(config: TrainConfig, index: int) -> float:
    """The stage's part of the run's minutes, in seconds; 0 if it is counted in steps."""
    timed = [stage.share for stage in config.stages if not stage.steps]
    stage = config.stages[index]
    return 0.0 if stage.steps else 60 * config.minutes * stage.share / sum(timed)
