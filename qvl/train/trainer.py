"""The choreography of a training run: stages in order, steps in a stage, and nothing lost when it is interrupted.

Knows: when to load, step, log, save and hand over to an evaluation; that every rank does the same.
Does not know: how a batch is made, how a loss is computed, how ranks talk, what an evaluation measures.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from qvl.data.packing import Pack, SampleSource
from qvl.inputs.processor import Processor
from qvl.models.vlm import VisionLanguageModel
from qvl.runtime import fast_bfloat16
from qvl.train.clock import StageClock, stage_seconds
from qvl.train.config import StageConfig, TrainConfig
from qvl.train.feed import Feed, Lane, Share, begin, redeal
from qvl.train.flops import FlopCount, measured_peak
from qvl.train.interrupt import Stopped, stop_on_signals
from qvl.train.log import Memory, RunLog, forget_after
from qvl.train.objectives import Objective, objective_of
from qvl.train.optim import Optimizers, untouched
from qvl.train.parallel import Parallel
from qvl.train.ranks import Ranks
from qvl.train.resume import Resumed, resume
from qvl.train.saved import Point
from qvl.train.saver import Saver
from qvl.train.state import set_random_states
from qvl.train.tally import Tally
from qvl.train.trace import Tracer

log = logging.getLogger(__name__)

_MAX_BAD_STEPS = 5
_FEW_STEPS = 10
"""Rates have no room to rise and fall in fewer."""

StageEnd = Callable[[VisionLanguageModel, StageConfig], None]


@dataclass
class _StageRun:
    """A stage under way."""

    stage: StageConfig
    objective: Objective
    names: tuple[str, ...]
    """Every task that can be scored."""
    feed: Feed
    optimizers: Optimizers
    clock: StageClock
    flops: FlopCount
    bad_steps: int = 0
    """Steps skipped in a row."""

    def cost(self, pack: Pack) -> float:
        """FLOPs of a pack, vision and text, by which packs are dealt to ranks."""
        return float(self.flops.of_batch(pack.batch, pack.batch.target_count, self.objective.reads).total)


@final
class Trainer:
    """Trains `model` through the stages of `config`, from wherever the run's folder says it stopped.

    Args:
        source: gives the samples of a stage (`source(stage)[index]`).
        on_stage_end: called after each stage with `evaluate`, on every rank, with the whole model in evaluation mode
            (not in a run on files).
        ranks: the processes that train together, each with the same arguments; default: this one alone.
    """

    parallel: Parallel
    """How the ranks hold the model; from `fit` on."""

    def __init__(
        self,
        config: TrainConfig,
        model: VisionLanguageModel,
        processor: Processor,
        source: Callable[[StageConfig], SampleSource],
        on_stage_end: StageEnd | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.config = config
        self.ranks = (ranks or Ranks()).in_lanes(config.parallel.tensor)
        self.model = model
        self.processor = processor
        self.source = source
        self.on_stage_end = on_stage_end
        self.folder = Path(config.run)
        self.elapsed = 0.0
        """Training seconds of all stages so far."""
        self._stopping = False
        constant = [f"model/{name}" for name in untouched(model, config.stages)]
        kept = config.keep, config.save_in_background
        self._saver = Saver(self.folder / "checkpoint", self.ranks, constant, *kept)
        self._last_save = time.perf_counter()

    def stop(self) -> None:
        """Asks for an orderly end: the step under way is finished, the state saved, then `Stopped` is raised."""
        self._stopping = True

    def fit(self) -> None:
        """Runs every stage that is not done yet. Interrupting it loses nothing: the same command goes on.

        Raises:
            Stopped: after an interrupt (Ctrl-C, SIGTERM), with the state saved.
            ValueError: the saved state belongs to another recipe, or losses stay not-a-number.
            OSError: the run is done or was asked to stop, and its last state could not be saved.
        """
        with stop_on_signals(self.stop), self._saver:
            self._fit()

    def _fit(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parallel = Parallel(self.model, self.config.parallel, self.ranks, lower=self._lower)
        checkpoint, names = self.folder / "checkpoint", tuple(s.name for s in self.config.stages)
        resumed = resume(checkpoint, names, self.model, self._optimizers, self.ranks, self._saver.group)
        first = step = 0
        if resumed:
            self.elapsed, first, step = resumed.point.elapsed, resumed.point.stage, resumed.point.step
        if self.ranks.first:
            forget_after(self.folder, names[:first], (*names, "")[first], step)
            if resumed:
                log.info("going on from %s (%s)", resumed.point, checkpoint)
        place, seconds = self.ranks.place, self._seconds_left(first)
        tracer = Tracer(self.folder / "profile", self.config.profile_steps, place.rank, self.ranks.device)
        with RunLog(self.folder, seconds, self._peak_flops(), self.ranks.first) as run_log, tracer:
            for index in range(first, len(self.config.stages)):
                self._run_stage(index, run_log, tracer, resumed)
                resumed = None

    @property
    def _lower(self) -> bool:
        """Whether matrix products are computed in bfloat16."""
        precision = self.config.precision
        return precision == "bfloat16" or (precision == "auto" and fast_bfloat16(self.ranks.device.type))

    def _peak_flops(self) -> float:
        """FLOP/s of all ranks together, as given or as measured on all of them at once."""
        given = 1e12 * self.config.peak_tflops
        name = "bfloat16" if self._lower else "float32"
        own = given or measured_peak(self.ranks.device, getattr(torch, name))
        every = float(self.ranks.sum(torch.tensor([own], dtype=torch.float64)))
        if self.ranks.first:
            how = "as given by peak_tflops" if given else f"measured by a {name} matrix product"
            log.info("utilisation is the share of %.3g TFLOP/s per rank, %s", every / self.ranks.place.size / 1e12, how)
        return every

    def _run_stage(self, index: int, run_log: RunLog, tracer: Tracer, resumed: Resumed | None) -> None:
        run = self._open_stage(index, resumed)
        before = self.elapsed - run.clock.elapsed
        self._last_save = time.perf_counter()
        self.model.train()
        while run.clock.progress < 1.0:
            told = self._step(run, run_log)
            tracer.step()
            self.elapsed = before + run.clock.elapsed
            run_log.show(run.stage.name, run.clock.progress, run.clock.seconds_left + self._seconds_left(index + 1))
            if told.stop or told.save:
                self._save(index, run)
                self._last_save = time.perf_counter()
            if told.stop:
                self._saver.finish(must=True)
                raise Stopped(
                    f"stopped in {run.stage.name} after step {run.clock.step}; the same command goes on from there"
                )
        run.feed.close()
        if run.stage.epochs and run.clock.step < _FEW_STEPS and self.ranks.first:
            few = "%s: %g epochs took %d steps, too few to learn from; lower tokens_per_pack, or raise epochs"
            log.warning(few, run.stage.name, run.stage.epochs, run.clock.step)
        self.model.eval()
        if self.on_stage_end is not None and run.stage.evaluate and not self.config.data.files:
            self._save(index, run)  # an evaluation takes minutes; a kill in it costs no training
            self.on_stage_end(self.parallel.whole_model(), run.stage)
        self._save(index + 1, None)
        # Also because the next stage's data worker is a fork of this process, which must have no thread at work then.
        self._saver.finish(must=index + 1 == len(self.config.stages))

    def _optimizers(self, index: int) -> Optimizers:
        stage = self.config.stages[index]
        return Optimizers(self.model, stage.trains, stage.schedule, stage.frozen, self.parallel.orders())

    def _open_stage(self, index: int, resumed: Resumed | None) -> _StageRun:
        stage, ranks = self.config.stages[index], self.ranks
        objective, source = objective_of(stage.objective, stage.place), self.source(stage)
        clock = StageClock(stage.steps, stage_seconds(self.config, index), samples_in(source, stage.epochs))
        lanes = begin(ranks.lanes)
        optimizers = resumed.optimizers if resumed else None
        if resumed and resumed.optimizers:
            lanes = redeal([Lane(*lane) for lane in resumed.point.lanes], ranks.lanes)
            clock.resume(resumed.point.step, resumed.point.stage_elapsed, lanes[0].next_index)
        if resumed:
            set_random_states(resumed.random, ranks.device)
        optimizers = optimizers or self._optimizers(index)
        share = Share.of(stage.accumulate, ranks.lanes, objective.divisible)
        feed = Feed(source, self.processor, stage, lanes[ranks.lane], ranks.lanes, share)
        names = objective.task_names(source.tasks)
        return _StageRun(stage, objective, names, feed, optimizers, clock, FlopCount(self.model))

    def _step(self, run: _StageRun, run_log: RunLog) -> Tally:
        """One optimizer step over all packs of all ranks. A step whose loss is not a number is skipped and counted."""
        waited = time.perf_counter()
        held = self.parallel.deal(run.feed.step(), run.cost)
        own = Tally(wait=(time.perf_counter() - waited) / self.ranks.lanes, stop=self._stopping)
        self._backward(run, held, own)
        if self.ranks.first:
            own.elapsed, own.taken = run.clock.elapsed, run.feed.lane.next_index
            due = time.perf_counter() - self._last_save > 60 * self.config.save_every_minutes
            own.save = due and not self._saver.busy
        told = own if self.ranks.leads else Tally(stop=own.stop)
        step = Tally.of(self.ranks.sum(told.vector(run.names)), run.names)
        run.clock.agree(step.elapsed, int(step.taken))
        norm = math.nan
        if step.items and math.isfinite(step.loss):
            self.parallel.sum_gradients(run.optimizers.params, 1 / step.items)
            norm = run.optimizers.clip()
        if not math.isfinite(norm):
            self._skip(run, held, math.isfinite(own.loss))
            return step
        run.bad_steps = 0
        self._saver.copied()
        factor = run.optimizers.step(run.clock.progress)
        run.clock.step += 1
        run_log.add(step)
        if run.clock.step % self.config.log_every == 0:
            memory = Memory.most(self.ranks.gather(Memory.now(self.ranks.device)))
            run_log.write(run.stage.name, run.clock.step, self.elapsed, memory, grad_norm=norm, lr_factor=factor)
        return step

    def _backward(self, run: _StageRun, held: list[Pack], tally: Tally) -> None:
        """Gradients of the *summed* loss of this rank's packs; the divisor is known when all ranks have counted."""
        for number, pack in enumerate(held, 1):
            batch = pack.batch.to(self.ranks.device)
            losses_X = self.parallel.losses(run.objective, batch, last=number == len(held))
            losses_X.sum().backward()
            losses_X = losses_X.detach()
            tally.loss += float(losses_X.sum())
            tally.items += losses_X.shape[0]
            tally.tokens += pack.batch.tokens_T.shape[0]
            tally.samples += pack.samples
            tally.flops += run.flops.of_batch(pack.batch, losses_X.shape[0], run.objective.reads).total
            for name, (loss, items) in run.objective.by_task(losses_X, pack, run.names).items():
                tally.add_task(name, loss, items)

    def _skip(self, run: _StageRun, held: list[Pack], sound: bool) -> None:
        """Counts a bad step. `sound`: the loss of this rank's own packs was a number."""
        run.bad_steps += 1
        own = [name for pack in held for name in pack.batch.names]
        by_rank = self.ranks.gather((sound, own))
        bad = [found for fine, found in by_rank if not fine] or [found for _, found in by_rank]
        names = ", ".join([name for found in bad for name in found][:8])
        if run.bad_steps >= _MAX_BAD_STEPS:
            raise ValueError(
                f"{run.bad_steps} steps in a row gave a loss or gradient that is not a number; the last one held "
                f"{names}. Lower the learning rate (optim.lr, optim.muon_lr) or look at these samples"
            )
        if self.ranks.first:
            log.warning("skipped a step whose loss or gradient is not a number; it held %s", names)
        run.optimizers.clear()

    def _save(self, stage: int, run: _StageRun | None) -> None:
        """Begins to save that `stage` is under way as `run` says, or (None) about to begin."""
        lanes = dict(self.ranks.gather((self.ranks.lane, run.feed.lane if run else Lane(0))))
        point = Point(
            stages=tuple(s.name for s in self.config.stages),
            stage=stage,
            under_way=run is not None,
            step=run.clock.step if run else 0,
            stage_elapsed=run.clock.elapsed if run else 0.0,
            elapsed=self.elapsed,
            lanes=tuple((lane.next_index, lane.waiting) for _, lane in sorted(lanes.items())),
        )
        self._saver.save(self.model, run.optimizers.all if run else (), point)

    def _seconds_left(self, first: int) -> float:
        """Seconds planned for stage `first` and those after it (stages counted otherwise are unknown: 0)."""
        return sum(stage_seconds(self.config, i) for i in range(first, len(self.config.stages)))


def samples_in(source: SampleSource, epochs: float) -> int:
    """Samples of so many epochs. Raises `ValueError` for a source without an end."""
    if not epochs:
        return 0
    if not isinstance(source, Sized):
        raise ValueError("epochs are for runs on files; the embedded world has no end: give steps or a share of time")
    return max(1, round(epochs * len(source)))
