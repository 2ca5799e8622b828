"""Several ranks are one run: the same loss, the same weights, one error message."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import ranks_jobs
import torch

from qvl.cli.ranks import on_ranks
from qvl.train.config import OptimConfig, StageConfig, TrainConfig
from qvl.train.feed import Lane, Share, begin, redeal
from qvl.train.tally import Tally

PACK = 4 * ranks_jobs.Even.tokens


def recipe(run: Path, steps: int, accumulate: int = 1, **stage: object) -> TrainConfig:
    base = StageConfig(
        name="one",
        trains=("vision", "merger", "text"),
        share=1,
        steps=steps,
        accumulate=accumulate,
        tokens_per_pack=PACK // accumulate,
        optim=OptimConfig(name="muon", lr=1e-3, muon_lr=3e-3, warmup=0.2),
    )
    return TrainConfig(run=str(run), stages=(replace(base, **stage),), log_every=1)


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_samples_of_this_file_are_even() -> None:
    _, processor = ranks_jobs.small_model()
    source = ranks_jobs.Even()
    for index in range(4):
        sequence = processor.sequence(source[index].messages, labels=True, chat_format="raw")
        assert len(sequence.tokens_T) == source.tokens


@pytest.mark.slow
def test_any_split_of_a_step_is_the_same_step(tmp_path: Path) -> None:
    """One rank seeing all, or one rank with the text and one with the pictures, with and without accumulation."""
    steps = 4
    found = {}
    for ranks, accumulate in ((1, 1), (1, 2), (2, 1), (2, 4)):
        run = tmp_path / f"{ranks}x{accumulate}"
        on_ranks(ranks, ranks_jobs.train, recipe(run, steps, accumulate))
        found[ranks, accumulate] = rows(run)
    whole = found[1, 1]
    assert whole[0]["samples_per_s"] > 0
    for split in found.values():
        assert [r["step"] for r in split] == [*range(1, steps + 1)]
        for row, reference in zip(split, whole, strict=True):
            # Worst case measured: 3e-7 relative in the loss, 2e-6 in the gradient norm.
            assert row["loss"] == pytest.approx(reference["loss"], rel=1e-4)  # measured 1.2e-5 with Muon in bfloat16
            assert row["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-3)
    first, second = (torch.load(tmp_path / "2x1" / f"weights{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first), "ranks have the same weights, bit for bit"
    alone = torch.load(tmp_path / "1x1" / "weights0.pt")
    # Worst case measured: 2e-6 after four steps.
    assert max(float((first[name] - alone[name]).abs().max()) for name in first) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("wrong", ValueError, "rank 1 found 7 where 8 should be"),
        ("crashed", RuntimeError, r"(?s)rank 1 failed.*KeyError: 'a bug'"),
        ("killed", RuntimeError, r"rank 1 was killed \(SIGKILL\)"),
    ],
)
def test_the_rank_that_fails_first_is_heard(how: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        on_ranks(2, ranks_jobs.fail, how)


@pytest.mark.slow
def test_questions_are_shared_and_answers_come_back_in_order(tmp_path: Path) -> None:
    on_ranks(2, ranks_jobs.answer, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "0 by 0 | 1 by 1 | 2 by 0 | 3 by 1 | 4 by 0"


def test_ranks_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        on_ranks(0, ranks_jobs.fail)


def to_come(lanes: list[Lane], count: int) -> set[int]:
    """The next samples of all lanes, up to index `count`."""
    streams = [(*lane.waiting, *range(lane.next_index, count, len(lanes))) for lane in lanes]
    flat = [*itertools.chain(*streams)]
    assert len(flat) == len(set(flat)), "a sample is in one lane only"
    return set(flat)


@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
def test_another_number_of_lanes_goes_on_with_the_same_samples(lanes: int) -> None:
    saved = [Lane(6), Lane(9, (1, 5))]
    assert to_come(saved, 30) == {1, 5, 6, 8, *range(9, 30)}
    again = redeal(saved, lanes)
    assert len(again) == lanes
    assert to_come(again, 30) == to_come(saved, 30)
    assert to_come(redeal(again, 2), 30) == to_come(saved, 30)
    assert redeal(begin(2), 2) == begin(2)


def test_what_is_to_come_is_dealt_in_turn() -> None:
    assert redeal([Lane(6), Lane(9)], 3) == [Lane(10, (6,)), Lane(11, (8,)), Lane(9)]
    assert redeal([Lane(12), Lane(13)], 4) == [Lane(16, (12,)), Lane(13), Lane(14), Lane(15)]
    assert redeal([Lane(12), Lane(13)], 1) == [Lane(13, (12,))]


@pytest.mark.parametrize(
    ("accumulate", "lanes", "expected"),
    [(1, 1, Share(1, 1.0)), (1, 2, Share(1, 0.5)), (8, 4, Share(2, 1.0)), (6, 4, Share(2, 0.75))],
)
def test_a_step_holds_the_same_tokens_on_any_number_of_ranks(accumulate: int, lanes: int, expected: Share) -> None:
    share = Share.of(accumulate, lanes, divisible=True)
    assert share == expected
    assert share.packs * share.part * lanes == accumulate
    assert Share.of(accumulate, lanes, divisible=False).part == 1.0


def test_a_tally_survives_the_journey() -> None:
    names = ("a", "b", "c")
    own = Tally(elapsed=1.5, stop=True, loss=3.0, items=2**40 + 1, tasks={"b": (3.0, 2)})
    both = Tally.of(own.vector(names) + Tally(items=1, tasks={"c": (1.0, 1)}).vector(names), names)
    assert both == Tally(elapsed=1.5, stop=1.0, loss=3.0, items=2**40 + 2, tasks={"b": (3.0, 2.0), "c": (1.0, 1.0)})
