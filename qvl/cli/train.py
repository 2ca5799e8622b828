"""`qvl train`."""

from __future__ import annotations

from pathlib import Path


def train(
    *,
    config: Path,
    minutes: float | None = None,
    run: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
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
        threads: processor threads; 0 = all.
        set: any value of the recipe, e.g. --set stages.chat.optim.lr=1e-4; can be repeated.
    """
    from qvl.cli.recipe import read_recipe

    changes = {"minutes": minutes, "run": run, "seed": seed, "threads": threads}
    recipe = read_recipe(config, changes, set)
    from qvl.cli.training import train_run

    done = train_run(recipe)
    print(f"Trained for {done.seconds / 60:.1f} minutes. Model: {done.folder / 'model'}")
    print(f"Next: qvl eval --model {done.folder / 'model'}")
