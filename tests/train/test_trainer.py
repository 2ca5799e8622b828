"""A run is its recipe: resumed or not, split into packs or not, it is the same run."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qvl.data.records import Sample
from qvl.data.world.config import WorldConfig
from qvl.data.world.world import World
from qvl.text.messages import Text
from qvl.train.clock import stage_seconds
from qvl.train.config import OptimConfig, StageConfig, TrainConfig
from qvl.train.interrupt import Stopped
from qvl.train.optim import part_of
from qvl.train.trainer import Trainer

WORLD = WorldConfig(concepts=9, sizes=((56, 84), (84, 56)), turns=3)
OPTIM = OptimConfig(name="muon", lr=1e-3, muon_lr=3e-3, warmup=0.2)


class Source:
    def __init__(self, stage: StageConfig, spoil: Callable[[int], bool] = lambda index: False) -> None:
        self._world = World(stage.world)
        self._spoil = spoil
        self.tasks = self._world.tasks

    def __getitem__(self, index: int) -> Sample:
        sample = self._world.sample("train", index)
        shown = any(not isinstance(p, Text) for p in sample.messages[0].parts)
        return replace(sample, independent=shown)


def recipe(run: Path, steps: tuple[int, ...] = (3, 3), **stage: object) -> TrainConfig:
    base = StageConfig(
        name="one", trains=("vision", "merger", "text"), share=1, world=WORLD, optim=OPTIM, tokens_per_pack=400
    )
    stages = tuple(replace(base, name=f"stage{i}", steps=n, **stage) for i, n in enumerate(steps))
    return TrainConfig(run=str(run), stages=stages, log_every=1, save_every_minutes=1e-9)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Few(Source):
    """Data with an end."""

    def __len__(self) -> int:
        return 3


@pytest.mark.slow
def test_epochs_that_are_over_at_once_are_told(tmp_path, model, processor, caplog) -> None:
    """The rate is at its end then, and may be 0: the model would be as it was, and nobody would know."""
    with caplog.at_level(logging.WARNING):
        Trainer(recipe(tmp_path, steps=(0,), epochs=2), model, processor, Few).fit()
    assert re.search(r"stage0: 2 epochs took \d steps, too few to learn from; lower tokens_per_pack", caplog.text)


@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, model, processor) -> None:
    start = {k: v.clone() for k, v in model.state_dict().items()}
    Trainer(recipe(tmp_path / "whole"), model, processor, Source).fit()
    whole = weights(model)
    model.load_state_dict(start)
    for stop_after in (2, 4):
        trainer = Trainer(recipe(tmp_path / "parts"), model, processor, Source)
        original = trainer._step

        def step(*args, trainer=trainer, original=original, limit=stop_after):
            if len(rows(tmp_path / "parts")) == limit - 1:
                trainer.stop()
            return original(*args)

        trainer._step = step
        with pytest.raises(Stopped, match="goes on from there"):
            trainer.fit()
        model.init_weights(99)  # what is in memory must not matter
    Trainer(recipe(tmp_path / "parts"), model, processor, Source).fit()
    assert torch.equal(weights(model), whole)
    keys = ("stage", "step", "loss")
    assert [[r[k] for k in keys] for r in rows(tmp_path / "parts")] == [
        [r[k] for k in keys] for r in rows(tmp_path / "whole")
    ]


@pytest.mark.slow
def test_a_crash_after_the_last_save_leaves_no_step_twice_in_the_log(tmp_path, model, processor) -> None:
    trainer = Trainer(recipe(tmp_path, (4,)), model, processor, Source)
    save = trainer._save

    def save_two_steps_then_die(stage, run) -> None:
        if run is None:
            raise KeyboardInterrupt
        if run.clock.step <= 2:
            save(stage, run)

    trainer._save = save_two_steps_then_die
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert [r["step"] for r in rows(tmp_path)] == [1, 2, 3, 4]
    Trainer(recipe(tmp_path, (4,)), model, processor, Source).fit()
    assert [r["step"] for r in rows(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_kill_while_a_stage_is_measured_costs_no_step(tmp_path, model, processor) -> None:
    config = replace(recipe(tmp_path, (3,)), save_every_minutes=60)

    def killed(model, stage) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, model, processor, Source, killed).fit()
    trained, measured = weights(model), []
    model.init_weights(99)
    trainer = Trainer(config, model, processor, Source, lambda model, stage: measured.append(stage.name))
    trainer._step = None  # nothing is left to train
    trainer.fit()
    assert torch.equal(weights(model), trained)
    assert measured == ["stage0"]


def test_accumulation_does_not_change_the_step(tmp_path, model, processor, world) -> None:
    """One pack of n samples, or the same samples in several packs: the same gradients."""
    from qvl.data.fitting import prepare
    from qvl.data.packing import PackLimits, packs
    from qvl.train.objectives import objective_of

    objective = objective_of("next_token")

    def gradients(limits: PackLimits, until: int) -> tuple[torch.Tensor, float]:
        stage = recipe(tmp_path).stages[0]
        held = []
        stream = packs(Source(stage), processor, limits, "raw")
        while sum(pack.samples for pack in held) < until:
            held.append(next(stream))
        assert held[-1].next_index == until
        items = sum(objective.count(p.batch) for p in held)
        total = 0.0
        for pack in held:
            loss = objective.losses(model, pack.batch).sum() / items
            loss.backward()
            total += loss.item()
        found = torch.cat([p.grad.flatten() for p in model.parameters()])
        model.zero_grad()
        return found, total

    stage = recipe(tmp_path).stages[0]
    one = next(packs(Source(stage), processor, PackLimits(900, 4000), "raw"))
    assert one.samples == one.next_index >= 4
    largest = max(
        sum(len(s.tokens_T) for s in prepare(Source(stage)[i], processor, "raw")) for i in range(one.next_index)
    )
    together, loss = gradients(PackLimits(900, 4000), one.next_index)
    apart, loss_apart = gradients(PackLimits(largest, 4000), one.next_index)
    assert loss_apart == pytest.approx(loss, abs=1e-5)
    # Worst case measured: 4e-7 of the largest gradient.
    assert (apart - together).abs().max() <= 1e-5 * together.abs().max()


@pytest.mark.parametrize("trains", [("text",), ("vision", "merger"), ("merger", "text")])
def test_frozen_parts_do_not_move(tmp_path, model, processor, trains) -> None:
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    Trainer(recipe(tmp_path, (2,), trains=trains), model, processor, Source).fit()
    moved = {part_of(n) for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(trains)


def test_match_trains_vision_only(tmp_path, model, processor) -> None:
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    both = replace(WORLD, medium="both")
    Trainer(
        recipe(tmp_path, (4,), trains=("vision", "merger"), objective="match", world=both), model, processor, Source
    ).fit()
    assert torch.equal(model.embed.weight, before["embed.weight"])
    assert {r["task_loss"]["match"] > 0 for r in rows(tmp_path)} == {True}


@pytest.mark.slow
def test_learning_happens(tmp_path, model, processor) -> None:
    fast = replace(OPTIM, lr=2e-2, muon_lr=1e-2)
    Trainer(recipe(tmp_path, (25,), optim=fast), model, processor, Source).fit()
    losses = [r["loss"] for r in rows(tmp_path)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_run_of_another_recipe_is_refused(tmp_path, model, processor) -> None:
    Trainer(recipe(tmp_path, (1,)), model, processor, Source).fit()
    with pytest.raises(ValueError, match="choose another run folder"):
        Trainer(recipe(tmp_path, (1, 1)), model, processor, Source).fit()


def test_losses_that_are_not_numbers_stop_the_run(tmp_path, model, processor) -> None:
    with torch.no_grad():
        model.decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"5 steps in a row.*world/train"):
        Trainer(recipe(tmp_path, (9,)), model, processor, Source).fit()


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        (10.0, [100, 200, 300]),  # everyone's share is enough
        (2.0, [30, 36, 54]),  # the first takes what it needs, the others share the rest 2 : 3
        (0.5, [15 * 30 / 90, 15 * 60 / 90, 15]),  # what is needed is more than half: half of it is given
    ],
)
def test_a_stage_gets_what_it_needs_at_least(tmp_path, minutes: float, expected: list[float]) -> None:
    config = recipe(tmp_path, (0, 0, 0))
    needs = (30.0, 60.0 if minutes < 1 else 0.0, 0.0)
    stages = tuple(
        replace(s, share=n, least_seconds=x) for n, x, s in zip((1, 2, 3), needs, config.stages, strict=True)
    )
    timed = replace(config, minutes=minutes, stages=stages)
    assert [stage_seconds(timed, i) for i in range(3)] == pytest.approx(expected)


@pytest.mark.slow
def test_a_stage_may_be_counted_in_minutes(tmp_path, model, processor) -> None:
    config = replace(recipe(tmp_path, (0, 0)), minutes=0.02)
    assert [stage_seconds(config, i) for i in (0, 1)] == pytest.approx([0.6, 0.6])
    trainer = Trainer(config, model, processor, Source)
    trainer.fit()
    assert trainer.elapsed > 0.9  # counted to the end of each stage's last step


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_products_are_of_the_recipes_precision(tmp_path, model, processor, precision, dtype) -> None:
    seen = set()
    watch = model.decoder.layers[0].qkv.register_forward_hook(lambda module, given, result: seen.add(result.dtype))
    Trainer(replace(recipe(tmp_path, (1,)), precision=precision), model, processor, Source).fit()
    watch.remove()
    assert seen == {dtype}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_stage_bounds_samples_per_pack(tmp_path, model, processor) -> None:
    config = recipe(tmp_path, (2,), samples_per_pack=2, tokens_per_sample=180, accumulate=3)
    taken = []
    trainer = Trainer(config, model, processor, Source)
    backward = trainer._backward

    def watched(run, held, tally):
        taken.append([pack.samples for pack in held])
        return backward(run, held, tally)

    trainer._backward = watched
    trainer.fit()
    assert taken == [[2, 2, 2], [2, 2, 2]]
