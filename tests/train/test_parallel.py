"""However ranks hold a model, it is the same training: the same losses, gradients and weights as one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import parallel_jobs
import pytest
import torch
from parallel_jobs import ALL, Case

from qvl.cli.ranks import on_ranks
from qvl.train.blocks import blocks_of
from qvl.train.config import OptimConfig, ParallelConfig, StageConfig, TrainConfig
from qvl.train.objectives import objective_of
from qvl.train.parallel import Parallel
from qvl.train.ranks import Ranks

TWO = {
    "fsdp": Case(ParallelConfig(shard=2)),
    "tensor": Case(ParallelConfig(tensor=2)),
    "replicas": Case(packs=8, steps=4),
    "reduced": Case(ParallelConfig(shard=2, reduce="pack", recompute="selective"), optim="adamw", steps=4),
    "recomputed": Case(ParallelConfig(tensor=2, recompute="full"), packs=2, steps=4),
    "first generation": Case(ParallelConfig(shard=2), "qwen_vl", steps=6),
    "first generation, tensor": Case(ParallelConfig(tensor=2), "qwen_vl", steps=6),
    "adapters": Case(ParallelConfig(shard=0), optim="adamw", lora=True, steps=6),
    "stages": Case(ParallelConfig(shard=2), steps=6, trains=(("vision", "merger"), ("merger", "text"), ALL)),
    "lower": Case(ParallelConfig(shard=2), lower=True, steps=6),
    "lower, tensor": Case(ParallelConfig(tensor=2), lower=True, steps=6),
}
FOUR = {
    "fsdp of four": Case(ParallelConfig(shard=0), steps=6),
    "two idle": Case(ParallelConfig(shard=4), packs=6, steps=4),
    "replicas of two": Case(ParallelConfig(shard=2), packs=8, steps=6),
    "fsdp x tensor": Case(ParallelConfig(shard=2, tensor=2)),
    "replicas x tensor": Case(ParallelConfig(tensor=2), "qwen_vl", steps=4),
}

EVEN = TrainConfig(
    run="unused",
    stages=(
        StageConfig(
            name="one",
            trains=ALL,
            share=1,
            steps=4,
            accumulate=4,
            tokens_per_pack=2 * parallel_jobs.Even.tokens,
            optim=OptimConfig(name="muon", lr=1e-3, muon_lr=3e-3, warmup=0.2),
        ),
    ),
    log_every=1,
)
"""A run on even samples: the first of two ranks makes packs of text alone, the second packs of pictures."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What every rank found in every case."""
    folder = tmp_path_factory.mktemp("parallel")
    on_ranks(2, parallel_jobs.train_all, TWO, folder)
    on_ranks(4, parallel_jobs.train_all, FOUR, folder)
    sizes = {**dict.fromkeys(TWO, 2), **dict.fromkeys(FOUR, 4)}
    return {name: [torch.load(folder / f"{name}.{rank}") for rank in range(size)] for name, size in sizes.items()}


@pytest.fixture(scope="module")
def alone() -> dict[Case, dict[str, Any]]:
    """The same steps by one process, in two packs each; longer runs serve shorter ones of the same kind too."""
    wanted = {replace(case, layout=ParallelConfig(), packs=2) for case in (*TWO.values(), *FOUR.values())}
    return {case: parallel_jobs.train(case) for case in wanted}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_ranks_train_as_one_process(name: str, found: dict, alone: dict) -> None:
    case = (TWO | FOUR)[name]
    reference = alone[replace(case, layout=ParallelConfig(), packs=2)]
    # Worst cases measured, loss / norm / gradients: float32 1.1e-7 / 3.4e-7 / 1e-6; bfloat16, with the products of five
    # kinds of processors, 8e-4 / 8e-3 / 0.04, as far as from float32: ranks that share weights also round the residual
    # stream, which autocast alone does not. Last weights: 4e-5 (of Qwen-VL's adapter, by AdamW where gradients are next
    # to nothing) and 5e-4.
    loss, gradient = (5e-3, 5e-2) if case.lower else (5e-6, 1e-5)
    for told in found[name]:
        assert told["dtypes"] == {"torch.float32"}, "master weights"
        assert told["loss"] == pytest.approx(reference["loss"], rel=loss)
        assert told["norm"] == pytest.approx(reference["norm"], rel=4 * loss)
        assert told["gradients"].keys() == reference["gradients"].keys()
        for key, expected in reference["gradients"].items():
            assert (told["gradients"][key] - expected).norm() <= gradient * expected.norm() + 1e-7, key
        for key, weight in reference["weights"].items():
            assert (told["weights"][key] - weight).abs().max() < (2e-3 if case.lower else 1e-3), key
        assert all(torch.equal(told["weights"][key], found[name][0]["weights"][key]) for key in told["weights"])


@pytest.mark.slow
def test_gradients_travel_once_per_step(tmp_path: Path) -> None:
    on_ranks(2, parallel_jobs.count_messages, tmp_path)
    model, _ = parallel_jobs.small_model()
    units = len(list(blocks_of(model))) + 2  # the rest of the tower, and of the model
    for rank in range(2):
        assert torch.load(tmp_path / f"messages.{rank}") == {"step": units, "pack": 2 * units}


@pytest.mark.slow
def test_a_rank_without_pictures_must_not_skip_the_tower(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="rank"):
        on_ranks(2, parallel_jobs.skip_the_tower, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"done.0", "done.1"}


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly_or_with_its_model_held_otherwise(tmp_path: Path) -> None:
    """On the same ranks bit for bit; begun on two ranks and ended alone, the curve and the weights of a run alone."""

    def config(run: str, **layout: int) -> TrainConfig:
        return replace(EVEN, run=str(tmp_path / run), parallel=ParallelConfig(**layout))

    runs = []
    for key in ("shard", "tensor"):
        parts = config(f"{key} parts", **{key: 2})
        runs += [
            (config(f"{key} whole", **{key: 2}), 0),
            (parts, 2),
            (parts, 0),
            (config(f"{key} moved", **{key: 2}), 2),
        ]
    on_ranks(2, parallel_jobs.fit_all, runs)
    parallel_jobs.fit_all(Ranks(), [(config("alone"), 0), (config("shard moved"), 0), (config("tensor moved"), 0)])
    alone = _left(tmp_path / "alone")
    assert len(alone[0]) == EVEN.stages[0].steps
    for key in ("shard", "tensor"):
        whole, parts, moved = (_left(tmp_path / f"{key} {run}") for run in ("whole", "parts", "moved"))
        assert parts[0] == whole[0]
        assert all(torch.equal(parts[1][name], weight) for name, weight in whole[1].items())
        # Worst cases measured: 2e-7 of the loss, 2e-6 in a weight.
        assert moved[0] == pytest.approx(alone[0], rel=1e-5)
        assert max(float((moved[1][name] - weight).abs().max()) for name, weight in alone[1].items()) < 1e-4


def _left(run: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and the last weights of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows], torch.load(run / "weights.pt")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen_vl"])
def test_what_is_computed_again_is_the_same_and_is_not_kept(family: str) -> None:
    kept, told = {}, {}
    for how in ("none", "selective", "full"):
        case = Case(ParallelConfig(recompute=how), family, steps=2)
        told[how] = parallel_jobs.train(case)
        kept[how] = parallel_jobs.kept_bytes(case)
    for how in ("selective", "full"):
        assert told[how]["loss"] == told["none"]["loss"]
        for key, gradient in told["none"]["gradients"].items():
            assert torch.equal(told[how]["gradients"][key], gradient), key
    # Bytes measured, Qwen2-VL: 2,128,860 / 1,362,028 / 772,972, of which the logits are a part.
    assert kept["full"] < 0.7 * kept["selective"] < 0.7 * 0.8 * kept["none"], kept


@pytest.mark.slow
def test_compiled_blocks_compute_the_same() -> None:
    plain = parallel_jobs.train(Case(steps=2))
    compiled = parallel_jobs.train(Case(ParallelConfig(compile=True, recompute="full"), steps=2))
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    for key, gradient in plain["gradients"].items():
        assert (compiled["gradients"][key] - gradient).abs().max() < 1e-5, key


@pytest.mark.slow
@pytest.mark.timeout(1200)  # each rank compiles for itself
@pytest.mark.parametrize("layout", [{"shard": 2}, {"tensor": 2}], ids=str)
def test_compiled_blocks_on_ranks(layout: dict[str, Any], tmp_path: Path) -> None:
    case = Case(ParallelConfig(compile=True, **layout), packs=2, steps=3)
    on_ranks(2, parallel_jobs.train_all, {"compiled": case}, tmp_path)
    plain = parallel_jobs.train(replace(case, layout=ParallelConfig()))
    for rank in range(2):
        told = torch.load(tmp_path / f"compiled.{rank}")
        assert told["compiled"] >= 4, "two blocks of each tower"
        # Worst cases measured, loss / gradients: 7.5e-8 / 7.6e-7.
        assert told["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        for key, gradient in plain["gradients"].items():
            assert (told["gradients"][key] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, key


def test_blocks_are_plain_in_evaluation() -> None:
    """Another kind of attention serves there, and nothing is kept."""
    model, processor = parallel_jobs.small_model()
    batch = parallel_jobs.step_packs(processor, 1, 2)[0].batch
    expected = model.eval()(batch)
    Parallel(model, ParallelConfig(compile=True, recompute="full"), Ranks())
    assert torch.equal(model.eval()(batch), expected)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"shard": 3}, "parallel.shard is 3, but 1 ranks in groups of 1"),
        ({"tensor": 2}, "parallel.tensor is 2, but 1 rank is no multiple of it"),
        ({"tensor": 0}, "got shard=1, tensor=0"),
        ({"compile": True, "recompute": "selective"}, "take recompute: none or full"),
    ],
)
def test_what_cannot_be_divided_is_said(layout: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parallel_jobs.train(Case(ParallelConfig(**layout), steps=1))


def test_every_objective_takes_part_with_nothing() -> None:
    """A pack for a lane that has none: no losses, and a gradient of zero for whatever the objective trains."""
    from qvl.train.deal import idle

    model, processor = parallel_jobs.small_model()
    pack = idle(parallel_jobs.step_packs(processor, 0, 4)[3])
    for objective in map(objective_of, ("next_token", "told", "match")):
        model.zero_grad()
        losses_X = objective.losses(model.train(), pack.batch)
        assert losses_X.shape == (0,)
        losses_X.sum().backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        assert found
        assert not any(gradient.any() for gradient in found)
