"""`qvl train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvl.train.config import TrainConfig
    from qvl.train.ranks import Ranks


def train(
    *,
    config: Path,
    minutes: float | None = None,
    run: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    ranks: int = 1,
    set: list[str] = [],  # noqa: B006  the option is called --set; the list is only read
) -> None:
    """Trains a model through the stages of a recipe and saves it as RUN/model.

    Started again it goes on where it stopped. Logs: RUN/metrics.jsonl and RUN/tensorboard; scores after each stage:
    RUN/eval.

    Args:
        config: recipe file; recipes/ has several.
        minutes: training time of all stages together (default: the recipe's); evaluation comes on top.
        run: folder of the run (default: the recipe's).
        seed: seed of weights and data (default: the recipe's).
        threads: processor threads of each rank; 0 = all cores, shared among the ranks.
        ranks: processes that train together (torchrun works too); a step has as many tokens with any number of them.
        set: any value of the recipe, e.g. --set stages.chat.optim.lr=1e-4; can be repeated.
    """
    from qvl.cli.recipe import read_recipe

    changes = {"minutes": minutes, "run": run, "seed": seed, "threads": threads}
    recipe = read_recipe(config, changes, set)
    from qvl.cli.ranks import on_ranks

    on_ranks(ranks, train_on, recipe)


def train_on(ranks: Ranks, recipe: TrainConfig) -> None:
    """What each rank does."""
    from qvl.cli.training import train_run

    done = train_run(recipe, ranks=ranks)
    if ranks.first:
        print(f"Trained for {done.seconds / 60:.1f} minutes. Model: {done.folder / 'model'}")
        print(f"Next: qvl eval --model {done.folder / 'model'}")
