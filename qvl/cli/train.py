"""`qvl train`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvl.train.config import TrainConfig
    from qvl.train.ranks import Ranks


def train(
    *,
    config: Path,
    model: str | None = None,
    minutes: float | None = None,
    run: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    ranks: int = 1,
    smoke: bool = False,
    set: list[str] = [],  # noqa: B006  the option is called --set; the list is only read
) -> None:
    """Trains a model through the stages of a recipe and saves it as RUN/model.

    Started again it goes on where it stopped. Logs: RUN/metrics.jsonl and RUN/tensorboard; scores after each stage:
    RUN/eval.

    Args:
        config: recipe file; recipes/ has several.
        model: what to start from: a model folder, or a preset with random weights (default: the recipe's).
        minutes: training time of all stages together (default: the recipe's); evaluation comes on top.
        run: folder of the run (default: the recipe's).
        seed: seed of weights and data (default: the recipe's).
        threads: processor threads of each rank; 0 = all cores, shared among the ranks.
        ranks: processes that train together (torchrun works too); a step has as many tokens with any number of them.
        smoke: try the recipe in seconds: its family's small model on the embedded world, two steps per stage, nothing
            kept.
        set: any value of the recipe, e.g. --set stages.chat.optim.lr=1e-4; can be repeated.
    """
    from qvl.cli.recipe import read_recipe

    changes = {"model": model, "minutes": minutes, "run": run, "seed": seed, "threads": threads}
    recipe = read_recipe(config, changes, set)
    from qvl.cli.ranks import on_ranks

    if smoke:
        with tempfile.TemporaryDirectory() as folder:
            on_ranks(ranks, smoke_on, recipe, folder)
    else:
        on_ranks(ranks, train_on, recipe)


def train_on(ranks: Ranks, recipe: TrainConfig) -> None:
    """What each rank does."""
    from qvl.cli.training import train_run

    done = train_run(recipe, ranks=ranks)
    if ranks.first:
        print(f"Trained for {done.seconds / 60:.1f} minutes. Model: {done.folder / 'model'}")
        print(f"Next: qvl eval --model {done.folder / 'model'}")


def smoke_on(ranks: Ranks, recipe: TrainConfig, folder: str) -> None:
    """What each rank does when a recipe is only tried."""
    from qvl.cli.training import train_run
    from qvl.train.smoke import smoke

    short = smoke(recipe, folder)
    done = train_run(short, ranks=ranks)
    stages = "1 stage" if len(recipe.stages) == 1 else f"{len(recipe.stages)} stages"
    if ranks.first:
        print(f"The recipe runs: {stages} with {short.model} in {done.seconds:.1f} seconds; nothing was kept.")
