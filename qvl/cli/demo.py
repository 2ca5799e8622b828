"""`qvl demo`: the whole way from nothing to a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvl.cli.training import TrainedRun
    from qvl.train.config import TrainConfig
    from qvl.train.ranks import Ranks

TARGETS = {"naming/accuracy": 0.80, "vqa/accuracy": 0.80, "caption/f1": 0.85, "grounding/acc@0.5": 0.40}
"""What the full demo is meant to reach on held-out scenes; shown beside what it did reach."""


def demo(
    *,
    minutes: float | None = None,
    run: str | None = None,
    config: Path = Path("recipes/tiny.yaml"),
    seed: int | None = None,
    threads: int | None = None,
    ranks: int | None = None,
) -> None:
    """Trains a small Qwen2-VL, measures it on held-out scenes beside what can be had without looking, writes a report.

    Started again it goes on where it stopped; what is done is not done again.

    Args:
        minutes: training time of all stages together (default: the recipe's); measuring comes on top.
        run: folder of the run (default: the recipe's).
        config: recipe file.
        seed: seed of weights and data (default: the recipe's).
        threads: processor threads of each rank; 0 = all cores, shared among the ranks.
        ranks: processes that train together (default: one per core, at most 4).
    """
    from qvl.cli.recipe import read_recipe

    changes = {"minutes": minutes, "run": run, "seed": seed, "threads": threads}
    recipe = read_recipe(config, changes)
    from qvl.cli.ranks import on_ranks, ranks_by_default

    on_ranks(ranks_by_default() if ranks is None else ranks, demo_on, recipe)


def demo_on(ranks: Ranks, recipe: TrainConfig) -> None:
    """What each rank does."""
    from qvl.cli.training import train_run
    from qvl.viz.report import write_report

    done = train_run(recipe, TARGETS, ranks)
    _final_scores(recipe, done, ranks)
    if ranks.first:
        report = write_report(done.folder)
        print(f"Report: {report}")
        for other in _others(done.folder):
            print(f"Beside {other}: qvl report {other} {done.folder}")
        print(f"Talk to it: qvl chat --model {done.folder / 'model'}")


def _others(folder: Path) -> list[Path]:
    """Measured demos beside this one, of the other generation for example."""
    measured = sorted(folder.parent.glob("demo*/eval/final/metrics.json"))
    return [file.parents[2] for file in measured if file.parents[2] != folder]


def _final_scores(recipe: TrainConfig, done: TrainedRun, ranks: Ranks) -> None:
    """Measures on the test split with both floors, unless that was done for this very model and number of questions."""
    from qvl.cli.measure import measure, print_scores
    from qvl.cli.recipe import FINAL
    from qvl.cli.shared import measure_together

    out = done.folder / "eval" / FINAL
    stamp = {"model": str(done.folder / "model"), "seed": recipe.seed, "trained_s": round(done.seconds, 1)}
    if not ranks.from_first(_is_done(out, {**stamp, "per_task": recipe.final_eval_samples})):
        world, count = recipe.stages[-1].world, recipe.final_eval_samples
        measure_together(
            done.vlm.engine,
            ranks,
            lambda generator: measure(
                generator, world, "test", count, out, floors=True, stamp=stamp, at_once=16 * ranks.place.size
            ),
        )
    if ranks.first:
        print_scores(out, TARGETS, f"Held-out scenes after {done.seconds / 60:.1f} minutes of training")


def _is_done(out: Path, stamp: dict[str, object]) -> bool:
    file = out / "metrics.json"
    if not file.is_file():
        return False
    config = json.loads(file.read_text(encoding="utf-8"))["config"]
    return stamp.items() <= config.items()
