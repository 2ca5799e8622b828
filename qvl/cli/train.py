"""`qvl train`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from qvl.train.config import TrainConfig
    from qvl.train.ranks import Ranks


def train(
    *,
    config: Path,
    model: str | None = None,
    data: list[str] = [],  # noqa: B006  the list is only read
    image_root: str | None = None,
    boxes: Literal["px", "relative", "1000"] | None = None,
    strict: bool = False,
    dry_run: bool = False,
    minutes: float | None = None,
    run: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    ranks: int = 1,
    profile: int | None = None,
    smoke: bool = False,
    set: list[str] = [],  # noqa: B006  the option is called --set; the list is only read
) -> None:
    """Trains a model through the stages of a recipe and saves it as RUN/model.

    Started again it goes on where it stopped. Logs: RUN/metrics.jsonl and RUN/tensorboard; scores after each stage:
    RUN/eval. Before the first step samples are written as the model sees them, with boxes and with what is learned
    from, to RUN/first_look.html.

    Args:
        config: recipe file; recipes/ has several.
        model: what to start from: a model folder, a hub id, or a preset with random weights (default: the recipe's).
        data: file or folder of conversations to train on instead of the recipe's; can be repeated.
        image_root: folder that pictures' paths in the data start from (default: the data file's folder).
        boxes: what the numbers of boxes in the data are: px, relative (0 to 1) or 1000 (0 to 999).
        strict: stop at the first sample that cannot be used instead of leaving it out.
        dry_run: stop after the first look.
        minutes: training time of all stages together (default: the recipe's); evaluation comes on top.
        run: folder of the run (default: the recipe's).
        seed: seed of weights and data (default: the recipe's).
        threads: processor threads of each rank; 0 = all cores, shared among the ranks.
        ranks: processes that train together (torchrun works too); a step has as many tokens with any number of them.
            Each holds the whole model unless the recipe's `parallel` says otherwise: --set parallel.shard=0 (FSDP2),
            --set parallel.tensor=2, --set parallel.recompute=full; see docs/parallel.md.
        profile: record so many steps, after the first two, into RUN/profile (open it in Perfetto).
        smoke: try the recipe in seconds: its family's small model on the embedded world, two steps per stage, nothing
            kept.
        set: any value of the recipe, e.g. --set stages.chat.optim.lr=1e-4; can be repeated.
    """
    from qvl.cli.recipe import read_recipe

    changes = {"model": model, "minutes": minutes, "run": run, "seed": seed, "threads": threads}
    changes |= {"profile_steps": profile}
    recipe = read_recipe(config, changes, [*_data_settings(data, image_root, boxes, strict), *set])
    if dry_run:
        from qvl.cli.training import look_only

        look_only(recipe)
        return
    from qvl.cli.ranks import on_ranks

    if smoke:
        with tempfile.TemporaryDirectory() as folder:
            on_ranks(ranks, smoke_on, recipe, folder)
    else:
        on_ranks(ranks, train_on, recipe)


def train_on(ranks: Ranks, recipe: TrainConfig) -> None:
    """What each rank does."""
    from qvl.cli.training import train_run

    done = train_run(recipe, ranks=ranks, look=True, for_all=False)
    if ranks.first:
        print(f"Trained for {done.seconds / 60:.1f} minutes. Model: {done.folder / 'model'}")
        if recipe.lora is not None:
            print(f"Adapter alone: {done.folder / 'adapter'}")
        print(f"Next: qvl {'chat' if recipe.data.files else 'eval'} --model {done.folder / 'model'}")


def smoke_on(ranks: Ranks, recipe: TrainConfig, folder: str) -> None:
    """What each rank does when a recipe is only tried."""
    from qvl.cli.training import train_run
    from qvl.train.smoke import smoke

    short = smoke(recipe, folder)
    done = train_run(short, ranks=ranks, for_all=False)
    stages = "1 stage" if len(recipe.stages) == 1 else f"{len(recipe.stages)} stages"
    if ranks.first:
        print(f"The recipe runs: {stages} with {short.model} in {done.seconds:.1f} seconds; nothing was kept.")


def _data_settings(data: list[str], image_root: str | None, boxes: str | None, strict: bool) -> list[str]:
    """The options about data as settings of the recipe, whose values are YAML."""
    import yaml

    given: dict[str, Any] = {"image_root": image_root, "boxes": boxes, "strict": strict or None}
    if data:
        given["files"] = [{"path": path} for path in data]
    return [f"data.{key}={yaml.safe_dump(value)}" for key, value in given.items() if value is not None]
