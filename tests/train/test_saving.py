"""What is saved while training goes on is whole, or not there; a run goes on from it on any number of ranks."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import ranks_jobs
import saving_jobs
import torch
import torch.distributed.checkpoint as dcp

from qvl.cli.ranks import on_ranks
from qvl.runtime import resident_memory_bytes
from qvl.train import saver
from qvl.train.config import OptimConfig, Part, StageConfig, TrainConfig
from qvl.train.interrupt import Stopped
from qvl.train.ranks import Ranks
from qvl.train.saved import Point, Saved, read_model, saved_states
from qvl.train.shards import on_cpu
from qvl.train.state import load_into, named_tensors

STEPS = 6


def recipe(
    run: Path, steps: int = STEPS, trains: tuple[Part, ...] = ("vision", "merger", "text"), **config: object
) -> TrainConfig:
    """Four samples a step, a state after every step (if the one before is written)."""
    stage = StageConfig(
        name="one",
        trains=trains,
        share=1,
        steps=steps,
        tokens_per_pack=4 * ranks_jobs.Even.tokens,
        optim=OptimConfig(name="muon", lr=1e-3, muon_lr=3e-3, warmup=0.2),
    )
    return replace(TrainConfig(str(run), (stage,), log_every=1, save_every_minutes=1e-9), **config)


def curve(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def newest(run: Path) -> Saved:
    found = saved_states(run / "checkpoint")[0]
    assert isinstance(found, Saved)
    return found


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("qvl") and r.levelno == logging.WARNING]


def alone(run: Path, **config: object) -> torch.Tensor:
    """Trains in this process; all weights in one vector."""
    trainer, model = saving_jobs.trainer(recipe(run, **config))
    trainer.fit()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[list[tuple[int, float]], torch.Tensor]:
    """Curve and weights of the run that nothing has happened to."""
    run = tmp_path_factory.mktemp("whole")
    found = alone(run)
    return curve(run), found


@pytest.mark.slow
def test_killed_while_writing_then_resumed_is_the_same_run(tmp_path, whole) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=saving_jobs.train_and_die, args=(Ranks(), recipe(tmp_path), 2)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    torn = tmp_path / "checkpoint" / "partial"
    assert (torn / "__0_0.distcp").exists()
    assert not (torn / "state.json").exists()
    assert newest(tmp_path).point.step == 1
    resumed = alone(tmp_path)
    assert torch.equal(resumed, whole[1]), "bit for bit"
    assert curve(tmp_path) == whole[0]
    assert not torn.exists()


@pytest.mark.slow
def test_a_killed_rank_then_resumed_on_one_two_and_four(tmp_path, whole) -> None:
    torn = tmp_path / "torn"
    with pytest.raises(RuntimeError, match=r"rank 1 was killed \(SIGKILL\)"):
        on_ranks(2, saving_jobs.train_and_die, recipe(torn), 2)
    state = newest(torn)
    assert len(state.point.lanes) == 2
    assert 1 <= state.point.step < STEPS
    assert {f.name for f in state.folder.iterdir()} == {".metadata", "__0_0.distcp", "__1_0.distcp", "state.json"}
    for count in (1, 2, 4):
        run = tmp_path / f"on{count}"
        shutil.copytree(torn, run)
        on_ranks(count, saving_jobs.train, recipe(run))
        assert len(newest(run).point.lanes) == count
        assert [step for step, _ in curve(run)] == [*range(1, STEPS + 1)]
        # Every step has the same samples, whoever takes them.
        for (_, loss), (_, reference) in zip(curve(run), whole[0], strict=True):
            assert loss == pytest.approx(reference, rel=1e-4)
        found = torch.load(run / "weights.pt")
        del found["head.weight"]  # the embedding
        assert (
            torch.cat([w.flatten() for w in found.values()]) - whole[1]
        ).abs().max() < 2e-3  # measured 5e-4: Muon may iterate in bfloat16


@pytest.mark.slow
def test_training_goes_on_while_a_consistent_copy_is_written(tmp_path, monkeypatch, whole) -> None:
    """The first write begins only after two more steps have changed everything."""
    trainer, _ = saving_jobs.trainer(recipe(tmp_path))
    two_more, written = threading.Event(), []
    write, step = saver.write_tensors, trainer._step

    def late(*arguments) -> None:
        assert two_more.wait(60)
        write(*arguments)
        written.append(len(curve(tmp_path)))

    def watched(run, run_log):
        told = step(run, run_log)
        if run.clock.step == 3:
            two_more.set()
        if run.clock.step == 4:
            trainer._saver._thread.join()
            trainer._save = lambda stage, run: None  # nothing newer than the state of step 1
            trainer.stop()
        return told

    monkeypatch.setattr(saver, "write_tensors", late)
    monkeypatch.setattr(trainer, "_step", watched)
    with pytest.raises(Stopped):
        trainer.fit()
    assert written[0] >= 3
    assert newest(tmp_path).point.step == 1
    monkeypatch.undo()
    assert torch.equal(alone(tmp_path), whole[1])
    assert curve(tmp_path) == whole[0]


def test_memory_of_copies_goes_back_to_the_system() -> None:
    """Copies come while a training step takes and gives memory, so blocks in use lie between them."""
    torch.empty(31 << 20, dtype=torch.uint8)  # once such a block was freed, smaller ones come from the heap
    source = [torch.rand(1 << 18) for _ in range(200)]
    copies, between, before = [], [], resident_memory_bytes()
    for tensor in source:
        copies.append(on_cpu(tensor))
        between.append(torch.zeros(1 << 14))
    assert all(torch.equal(a, b) for a, b in zip(copies, source, strict=True))
    assert resident_memory_bytes() - before > 190 << 20
    copies.clear()
    assert resident_memory_bytes() - before < 40 << 20


def test_copies_of_any_layout() -> None:
    rows = torch.arange(1 << 17, dtype=torch.bfloat16).view(256, 512)
    for tensor in (rows, rows.T, rows[::2], rows[:0], torch.tensor(3.0), torch.nn.Parameter(rows)):
        copy = on_cpu(tensor)
        assert copy.dtype == tensor.dtype
        assert not copy.requires_grad
        assert torch.equal(copy, tensor)
        tensor.detach().add_(1)
        assert copy.numel() == 0 or not torch.equal(copy, tensor)


@pytest.mark.slow
def test_the_last_states_stay(tmp_path) -> None:
    alone(tmp_path, save_in_background=False, keep=3)
    folders = sorted(f.name for f in (tmp_path / "checkpoint").iterdir())
    assert folders == ["000005", "000006", "000007"]  # of six steps and of the end
    assert [found.point.step for found in saved_states(tmp_path / "checkpoint")] == [0, 6, 5]
    with pytest.raises(ValueError, match="keep is 0"):
        saving_jobs.trainer(recipe(tmp_path, keep=0))


def cut(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    os.truncate(file, file.stat().st_size // 2)


def scribble(folder: Path) -> None:
    """The size stays."""
    file = folder / "__0_0.distcp"
    file.write_bytes(b"\xff" * file.stat().st_size)


def lose(folder: Path) -> None:
    (folder / ".metadata").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [(cut, r"__0_0.distcp has \d+ of \d+ bytes"), (scribble, "cannot be read"), (lose, ".metadata is missing")],
)
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, caplog, whole, damage, said) -> None:
    trainer, _ = saving_jobs.trainer(recipe(tmp_path, save_in_background=False))
    step = trainer._step

    def stop_after_four(run, run_log):
        if run.clock.step == 3:
            trainer.stop()
        return step(run, run_log)

    trainer._step = stop_after_four
    with pytest.raises(Stopped):
        trainer.fit()
    broken = newest(tmp_path).folder
    damage(broken)
    point, found = read_model(tmp_path / "checkpoint")
    assert point.step == 3
    model, _ = ranks_jobs.small_model()
    assert {f"model/{name}" for name in found} == named_tensors(model).keys()
    first = warnings(caplog)
    assert torch.equal(alone(tmp_path), whole[1])
    assert curve(tmp_path) == whole[0]
    for warned in (*first, *warnings(caplog)):
        assert str(broken) in warned
        assert re.search(said, warned)
        assert "\n" not in warned
    assert [w.rpartition("; ")[2] for w in warnings(caplog)] == [
        "looking for an older state",
        "going on from the state before it",
    ]
    assert not broken.exists(), "the next state makes it go"


def test_no_state_that_can_be_read_is_an_error(tmp_path) -> None:
    alone(tmp_path, steps=1, keep=1)
    cut(newest(tmp_path).folder)
    with pytest.raises(ValueError, match=r"000\d+ is not whole.*delete .*checkpoint to begin anew"):
        alone(tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"is not whole.*no older state"):
        read_model(tmp_path / "checkpoint")
    with pytest.raises(FileNotFoundError, match="nothing is saved"):
        read_model(tmp_path / "other")


def test_a_state_of_an_earlier_version_is_refused(tmp_path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/state.pt").write_bytes(b"")
    for read in (lambda: alone(tmp_path), lambda: read_model(tmp_path / "checkpoint")):
        with pytest.raises(ValueError, match=r"state.pt was saved by an earlier version"):
            read()


def test_a_state_of_another_model_is_refused(tmp_path) -> None:
    alone(tmp_path, steps=1)
    other, _ = ranks_jobs.small_model(mlp_hidden=40)
    with pytest.raises(ValueError, match=r"gate_up.weight is \(96, 32\), here it is \(80, 32\)"):
        load_into(newest(tmp_path), other)


@pytest.mark.slow
@pytest.mark.parametrize("beside", [True, False])
def test_a_full_disk_loses_nothing(tmp_path, caplog, whole, beside: bool) -> None:
    """No file may grow beyond 60 kB: training goes on, says so, fails at the end, and goes on from the last state."""
    trainer, _ = saving_jobs.trainer(recipe(tmp_path, save_in_background=beside))
    step, (soft, hard) = trainer._step, resource.getrlimit(resource.RLIMIT_FSIZE)
    steps = []

    def fill_up(run, run_log):
        trainer._saver.finish()
        if run.clock.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        steps.append(run.clock.step)
        return step(run, run_log)

    trainer._step = fill_up
    try:
        with pytest.raises(OSError, match=r"File too large.*GB are free.*last good state is unt"):
            trainer.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps == [*range(STEPS)], "it went on to the end"
    assert sum("COULD NOT SAVE" in warned for warned in warnings(caplog)) == STEPS - 2 + 1
    assert newest(tmp_path).point.step == 2
    assert torch.equal(alone(tmp_path), whole[1])
    assert curve(tmp_path) == whole[0]


def test_a_folder_that_cannot_be_written_is_said(tmp_path, caplog) -> None:
    (tmp_path / "checkpoint").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="could not save the run's state"):
        alone(tmp_path, steps=1)
    assert "COULD NOT SAVE" in warnings(caplog)[0]


@pytest.mark.slow
def test_sigterm_waits_for_the_write_and_saves(tmp_path, whole, monkeypatch) -> None:
    trainer, _ = saving_jobs.trainer(recipe(tmp_path))
    step, write = trainer._step, saver.write_tensors
    asked = threading.Event()

    def terminated(run, run_log):
        told = step(run, run_log)
        if run.clock.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            asked.set()
        return told

    def slow(*arguments) -> None:
        assert asked.wait(60)
        write(*arguments)

    trainer._step = terminated
    monkeypatch.setattr(saver, "write_tensors", slow)
    with pytest.raises(Stopped, match="goes on from there"):
        trainer.fit()
    stopped = newest(tmp_path).point.step
    assert stopped == len(curve(tmp_path)) >= 3
    assert torch.equal(alone(tmp_path), whole[1])


@pytest.mark.slow
def test_export_reads_while_training_writes(tmp_path) -> None:
    """With one state kept, what is being read is removed again and again."""
    trainer, model = saving_jobs.trainer(recipe(tmp_path, keep=1, steps=25, save_in_background=False))
    save, known = trainer._save, {}

    def remember(stage, run) -> None:
        known[run.clock.step if run else 0] = model.embed.weight.detach().clone()
        save(stage, run)

    trainer._save = remember
    running = threading.Thread(target=trainer.fit)
    running.start()
    read = 0
    while running.is_alive():
        try:
            point, tensors = read_model(tmp_path / "checkpoint")
        except FileNotFoundError:
            assert not read
            continue
        read += 1
        assert torch.equal(tensors["embed.weight"], known[point.step])
    running.join()
    assert read > 3
    assert read_model(tmp_path / "checkpoint")[0].stage == 1


@pytest.mark.slow
def test_what_a_run_does_not_change_is_written_once(tmp_path) -> None:
    whole = alone(tmp_path / "whole", trains=("merger",))
    run = tmp_path / "run"
    trainer, model = saving_jobs.trainer(recipe(run, trains=("merger",)))
    step, seen = trainer._step, []

    def stop_after_three(stage_run, run_log):
        trainer._saver.finish()
        seen.extend(f.stat().st_mtime_ns for f in (run / "checkpoint").glob("frozen/*"))
        if stage_run.clock.step == 2:
            trainer.stop()
        return step(stage_run, run_log)

    trainer._step = stop_after_three
    with pytest.raises(Stopped):
        trainer.fit()
    states = run / "checkpoint"
    assert len(set(seen)) == len(list((states / "frozen").iterdir())) == 3, "written once"
    often, once = (sum(f.stat().st_size for f in (states / name).iterdir()) for name in ("000002", "frozen"))
    stored = dcp.FileSystemReader(states / "000002").read_metadata().state_dict_metadata
    assert {key.split("/")[1] for key in stored if key.startswith("model/")} == {
        name for name, _ in model.named_parameters() if name.startswith("visual.merger.")
    }
    assert often < once
    point, found = read_model(states)
    assert (point.step, found.keys()) == (3, {key.removeprefix("model/") for key in named_tensors(model)})
    assert all(torch.equal(found[name], p) for name, p in model.named_parameters())
    assert torch.equal(alone(run, trains=("merger",)), whole)
    cut(states / "frozen")
    with pytest.raises(ValueError, match=r"frozen is not whole: __0_0.distcp has .* no older state"):
        alone(run, trains=("merger",))


@pytest.mark.slow
def test_a_crash_in_the_first_write_leaves_nothing_in_the_log(tmp_path, monkeypatch, whole) -> None:
    def crash(*arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saver, "write_tensors", crash)
    with pytest.raises(KeyboardInterrupt):
        alone(tmp_path)
    assert saved_states(tmp_path / "checkpoint") == []
    monkeypatch.undo()
    assert torch.equal(alone(tmp_path), whole[1])
    assert curve(tmp_path) == whole[0]


@pytest.mark.slow
def test_parts_on_two_ranks_are_a_whole_on_one(tmp_path) -> None:
    on_ranks(2, saving_jobs.shard_and_save, tmp_path / "checkpoint")
    expected = torch.load(tmp_path / "whole.pt")
    model, _ = ranks_jobs.small_model()
    optimizers = saving_jobs.optimizers_of(model)
    saved = newest(tmp_path)
    assert saved.point == Point(("one",), 0, True, 7, 1.5, 2.5, ((4, ()), (5, (1,))))
    load_into(saved, model, optimizers.all)
    found = named_tensors(model, optimizers.all)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    sizes = [(saved.folder / f"__{rank}_0.distcp").stat().st_size for rank in (0, 1)]
    assert max(sizes) < 0.7 * sum(sizes), "both ranks write"


@pytest.mark.slow
def test_bad_steps_are_skipped_and_named_on_two_ranks(tmp_path, capfd) -> None:
    """Sample 9 spoils the third step, and from sample 17 on every step is bad; only the second rank sees them."""
    spoilt = tuple(f"even/{i}" for i in (9, *range(17, 60, 4)))
    with pytest.raises(ValueError, match=r"5 steps in a row gave .*the last one held even/33, even/35\."):
        on_ranks(2, saving_jobs.train_on_spoilt, recipe(tmp_path), spoilt)
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("skipped a step whose loss or gradient is not a number; it held even/9, even/11") == 1
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3]
