"""What a run says of itself while it learns: the same numbers in the log, in TensorBoard and on the bar."""

from __future__ import annotations

import gzip
import io
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import ranks_jobs
import saving_jobs
import torch
from rich.console import Console

from qvl.train import log as train_log
from qvl.train.config import StageConfig, TrainConfig
from qvl.train.flops import step_flops
from qvl.train.log import Memory
from qvl.train.trainer import Trainer

TOKENS = 4 * ranks_jobs.Even.tokens


def recipe(run: Path, **config: object) -> TrainConfig:
    stage = StageConfig("one", ("vision", "merger", "text"), 1, steps=4, tokens_per_pack=TOKENS)
    return replace(TrainConfig(str(run), (stage,), log_every=2, peak_tflops=0.5), **config)


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_log_says_what_was_computed_how_fast_and_with_how_much(tmp_path, caplog) -> None:
    trainer, model = saving_jobs.trainer(recipe(tmp_path))
    with caplog.at_level(logging.INFO, "qvl"):
        trainer.fit()
    assert "utilisation is the share of 0.5 TFLOP/s per rank, as given by peak_tflops" in caplog.text
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [2, 4]
    tokens = ranks_jobs.Even.tokens
    # A step: four samples, two of them with a picture of 4 x 4 patches; twelve digits and the end are answered.
    flops = step_flops(model.config, (tokens,) * 4, (16, 16), 4 * 13, ("vision", "merger", "text")).total
    for row in found:
        assert row["flops_per_s"] / row["tokens_per_s"] == pytest.approx(flops / TOKENS)
        assert row["mfu"] == pytest.approx(row["flops_per_s"] / 5e11)
        assert row["tokens_per_s"] / row["samples_per_s"] == pytest.approx(tokens)
        assert 0 <= row["data_wait"] <= 1
        assert 0.05 < row["memory_gb"] < 64
        assert row["task_loss"].keys() == {"count"}
        assert "gpu_memory_gb" not in row


def test_a_full_disk_costs_no_training(tmp_path, caplog) -> None:
    memory = Memory(1 << 20)
    with train_log.RunLog(tmp_path, 0, 1e12) as run_log:
        file = run_log._file
        with open("/dev/full", "ab", buffering=0) as run_log._file, caplog.at_level(logging.WARNING):
            run_log.write("one", 1, 0.1, memory)
        assert "could not write metrics.jsonl: [Errno 28] No space left on device. Training goes on" in caplog.text
        run_log._file = file
        run_log.write("one", 2, 0.2, memory)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_log_that_a_crash_has_damaged_is_gone_on_with(tmp_path) -> None:
    """A power cut leaves zeros where rows were to be, or half a row."""
    row = {"stage": "one", "loss": 1.0}
    lines = [json.dumps({**row, "step": 1}), "\0" * 40, json.dumps({**row, "step": 2}), json.dumps(row)[:9]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    train_log.forget_after(tmp_path, (), "one", 2)
    assert [found["step"] for found in rows(tmp_path)] == [1, 2]
    train_log.forget_after(tmp_path, (), "one", 1)
    assert [found["step"] for found in rows(tmp_path)] == [1]


def test_tensorboard_has_every_number(tmp_path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    saving_jobs.trainer(recipe(tmp_path))[0].fit()
    board = events.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    last = rows(tmp_path)[-1]
    numbers = {key: value for key, value in last.items() if isinstance(value, float)}
    assert {f"one/{key}" for key in numbers} | {"one/task/count"} == set(board.Tags()["scalars"])
    for key in ("loss", "mfu", "data_wait", "memory_gb", "tokens_per_s"):
        assert board.Scalars(f"one/{key}")[-1].value == pytest.approx(last[key], rel=1e-5)


def test_the_bar_shows_them(tmp_path, monkeypatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(train_log, "console", lambda: screen)
    saving_jobs.trainer(recipe(tmp_path, log_every=3))[0].fit()
    told = screen.file.getvalue()  # type: ignore[attr-defined]
    for number in ("loss", "tokens/s", "samples/s", "% of peak", "% data wait", " GB"):
        assert number in told


def test_the_peak_is_measured_if_none_is_given(tmp_path, caplog) -> None:
    trainer, _ = saving_jobs.trainer(recipe(tmp_path, peak_tflops=0.0))
    with caplog.at_level(logging.INFO, "qvl"):
        trainer.fit()
    assert "per rank, measured by a float32 matrix product" in caplog.text
    assert all(0 < row["mfu"] < 1 for row in rows(tmp_path))


def test_the_match_objective_reads_nothing(tmp_path) -> None:
    """Its packs hold tokens, but the language model does not compute."""
    trainer, model = saving_jobs.trainer(recipe(tmp_path))
    trainer.fit()
    from qvl.train.flops import FlopCount

    count = FlopCount(model)
    batch = next(iter_packs(trainer)).batch
    seen = count.of_batch(batch, 26, reads=False)
    assert seen.text == seen.text_attention == seen.head == 0
    assert seen.vision == count.of_batch(batch, 26).vision > 0


def iter_packs(trainer: Trainer):
    from qvl.data.packing import PackLimits, packs

    return packs(ranks_jobs.Even(), trainer.processor, PackLimits(TOKENS, 4096), "raw")


@pytest.mark.slow
def test_a_trace_of_a_few_steps(tmp_path, caplog) -> None:
    trainer, _ = saving_jobs.trainer(recipe(tmp_path, profile_steps=1))
    with caplog.at_level(logging.INFO, "qvl"):
        trainer.fit()
    file = tmp_path / "profile" / "rank0.json.gz"
    assert str(file) in caplog.text
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert "ProfilerStep#2" in names, "the third step"
    assert "ProfilerStep#3" not in names
    assert any("aten::mm" in name or "aten::addmm" in name for name in names)
    assert "Self CPU" in (tmp_path / "profile" / "rank0.txt").read_text()
    assert not (tmp_path / "other").exists()


def test_without_the_option_there_is_no_trace(tmp_path) -> None:
    saving_jobs.trainer(recipe(tmp_path))[0].fit()
    assert not (tmp_path / "profile").exists()


def test_the_rank_with_most_memory_counts() -> None:
    assert Memory.most([Memory(3, 5), Memory(4, 2)]) == Memory(4, 5)
    assert Memory(2_000_000_000).row() == {"memory_gb": 2.0}
    assert Memory.now(torch.device("cpu")).resident > 50e6
