"""`qvl plan`."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl.cli.inspect import parse_size

if TYPE_CHECKING:
    from rich.table import Table

    from qvl.media.resize import PixelBudget
    from qvl.models.qwen2_vl.config import Qwen2VLConfig
    from qvl.train.config import StageConfig
    from qvl.train.plan import Device, Mix, Picture, StagePlan

_WORDS_PER_TURN = 24
"""Tokens of a question and its answer in the embedded world, about; a third of them is learned."""
_WORDS = 128


def plan(
    model: str,
    *,
    pictures: str | None = None,
    recipe: Path | None = None,
    memory: float = 0.0,
    devices: int = 1,
    tflops: float = 0.0,
    utilisation: float = 0.4,
    max_pixels: int | None = None,
    tokens_per_pack: int | None = None,
    words: int | None = None,
    json: bool = False,
) -> None:
    """Says before a training starts whether it fits and what it takes. Nothing is loaded and nothing is run.

    Ends with an error that names the option to change if something cannot fit.

    Args:
        model: a preset (tiny, small, 2b, 7b, 72b), a model folder, or a hub id.
        pictures: sizes as WIDTHxHEIGHT, "1024x768" or with shares "1024x768:3,448x448:1" (default: the recipe's, else
            1024x768).
        recipe: recipe file; each of its stages is a row (default: everything is trained with AdamW).
        memory: GiB of one device (default: of this machine, computing on its processor).
        devices: how many; each holds the whole model.
        tflops: what one device can do in float32, in 10^12 operations a second (for the time of a step).
        utilisation: share of that which training reaches.
        max_pixels: bound on a picture's pixels (default: the recipe's or the model's).
        tokens_per_pack: instead of the recipe's.
        words: tokens of text per picture (default: 24 per question of the recipe's world, else 128).
        json: print numbers for programs instead of tables.
    """
    import torch

    from qvl.cli.find import find_qwen2_vl
    from qvl.media.resize import PixelBudget
    from qvl.models.qwen2_vl.model import Qwen2VL
    from qvl.runtime import memory_bytes
    from qvl.train.cost import parameters_of
    from qvl.train.plan import Device, plan_stage

    config, preprocessing = find_qwen2_vl(model)
    device = Device(
        memory=int(memory * 2**30) or memory_bytes(),
        count=devices,
        flops=tflops * 1e12,
        utilisation=utilisation,
        cpu=not memory,
    )
    with torch.device("meta"):
        built = Qwen2VL(config)
    parameters = parameters_of(built)
    rows: list[tuple[StagePlan, Mix, PixelBudget]] = []
    for stage in _stages(recipe, tokens_per_pack):
        mix = _mix(stage, pictures, words, of_recipe=recipe is not None)
        budget = _budget(stage, preprocessing.budget, of_recipe=recipe is not None)
        if max_pixels is not None:
            budget = PixelBudget(min(budget.min_pixels, max_pixels), max_pixels)
        rows.append((plan_stage(config, parameters, stage, mix, budget, device), mix, budget))
    plans = [row[0] for row in rows]
    if json:
        print(json_text.dumps(_numbers(model, config, device, plans), indent=1))
    else:
        _print(model, config, device, rows)
    if problems := [f"{p.stage}: {p.problem}" for p in plans if p.problem]:
        raise ValueError(f"does not fit. {'; '.join(dict.fromkeys(problems))}")


def _stages(recipe: Path | None, tokens_per_pack: int | None) -> tuple[StageConfig, ...]:
    from qvl.cli.recipe import read_recipe
    from qvl.train.config import StageConfig

    if recipe is None:
        stages = (StageConfig("everything", ("vision", "merger", "text"), 1.0, patches_per_pack=1 << 20),)
    else:
        stages = read_recipe(recipe).stages
    return tuple(replace(s, tokens_per_pack=tokens_per_pack) for s in stages) if tokens_per_pack else stages


def _mix(stage: StageConfig, pictures: str | None, words: int | None, *, of_recipe: bool) -> Mix:
    from qvl.train.plan import Mix

    if pictures is not None or not of_recipe:
        hws = parse_mix(pictures or "1024x768")
    else:
        hws = stage.world.sizes
    words = words if words is not None else _WORDS_PER_TURN * stage.world.turns if of_recipe else _WORDS
    return Mix(tuple(hws), words, max(1, words // 3))


def parse_mix(text: str) -> tuple[tuple[int, int], ...]:
    """ "1024x768:2,448x448" -> ((768, 1024), (768, 1024), (448, 448)): (height, width), as often as its share.

    Raises:
        ValueError: not sizes with whole shares.
    """
    hws: list[tuple[int, int]] = []
    for item in text.split(","):
        size, _, share = item.partition(":")
        if share and not (share.strip().isdigit() and int(share)):
            raise ValueError(f"the share of a picture size is a whole number such as 1024x768:3, got {item!r}")
        hws += [parse_size(size)] * int(share or 1)
    return tuple(hws)


def _budget(stage: StageConfig, budget: PixelBudget, *, of_recipe: bool) -> PixelBudget:
    from qvl.media.resize import PixelBudget

    areas = [height * width for height, width in stage.world.sizes]
    return PixelBudget(min(areas), max(areas)) if of_recipe else budget


def _numbers(model: str, config: Qwen2VLConfig, device: Device, plans: Sequence[StagePlan]) -> dict[str, Any]:
    from qvl.train.cost import cache_bytes

    return {
        "model": model,
        "device": asdict(device),
        "cache_bytes_per_token": cache_bytes(config, 1),
        "stages": [
            {
                **{k: v for k, v in asdict(p).items() if k != "pack"},
                "fits": not p.problem,
                "tokens": p.pack.tokens,
                "patches": p.pack.patches,
                "targets": p.pack.targets,
            }
            for p in plans
        ],
    }


def _print(
    model: str, config: Qwen2VLConfig, device: Device, rows: Sequence[tuple[StagePlan, Mix, PixelBudget]]
) -> None:
    from rich.console import Console

    from qvl.media.resize import Geometry
    from qvl.train.plan import USABLE, gib

    console = Console()
    v = config.vision
    geometry = Geometry(patch=v.patch, merge=v.merge, temporal=v.temporal_patch)
    seen: dict[tuple[int, int], Picture] = {}
    for _, mix, budget in rows:
        seen |= {p.hw: p for p in mix.pictures(geometry, budget)}
    kind = "this machine" if device.cpu else f"{device.count} device{'s' if device.count > 1 else ''}"
    console.print(f"{model} on {kind} of {gib(device.memory)}, of which a plan may use {USABLE:.0%}\n", highlight=False)
    console.print(_picture_table(config, list(seen.values())))
    console.print(_memory_table([p for p, _, _ in rows]))
    console.print(_step_table([p for p, _, _ in rows], device))


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _picture_table(config: Qwen2VLConfig, pictures: Sequence[Picture]) -> Table:
    from qvl.train.cost import cache_bytes
    from qvl.train.plan import gib

    title = "Pictures (width x height); keys and values in bfloat16, while answering"
    table = _table(title, "given", "seen as", "patches", "tokens", "positions", "keys and values")
    for p in pictures:
        given, seen = (f"{w} x {h}" for h, w in (p.hw, p.seen_hw))
        cache = gib(cache_bytes(config, p.tokens))
        table.add_row(given, seen, f"{p.patches:,}", f"{p.tokens:,}", f"{p.positions:,}", cache)
    return table


def _memory_table(plans: Sequence[StagePlan]) -> Table:
    from qvl.train.plan import gib

    title = "Memory of one training step on each device (float32)"
    columns = ("stage", "part", "parameters", "gradients", "optimizer", "kept for backward")
    table = _table(title, *columns)
    for plan_ in plans:
        m = plan_.memory
        purposes = (m.parameters, m.gradients, m.optimizer, m.activations)
        for i, part in enumerate(m.parameters):
            table.add_row("" if i else plan_.stage, part, *(gib(purpose[part]) for purpose in purposes))
        table.add_row("", "together", *(gib(sum(purpose.values())) for purpose in purposes), style="bold")
        table.add_row("", f"[bold]most at once: {gib(m.peak)}[/bold]", end_section=True)
    return table


def _step_table(plans: Sequence[StagePlan], device: Device) -> Table:
    table = _table(
        "A step",
        *("stage", "tokens", "patches", "pictures", "TFLOP", "seconds"),
        *("largest tokens_per_pack", "largest max_pixels", "fits"),
    )
    for p in plans:
        seconds = "give --tflops" if p.seconds is None else f"{p.seconds:.2f}"
        table.add_row(
            p.stage,
            *(f"{n:,}" for n in (p.pack.tokens, p.pack.patches, len(p.pack.segment_lens))),
            f"{sum(p.flops.values()) / 1e12:.3g}",
            seconds,
            *(f"{n:,}" if n else "none" for n in (p.largest_pack, p.largest_pixels)),
            "no" if p.problem else "yes",
        )
    return table
