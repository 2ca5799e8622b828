"""`qvl plan`."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qvl.cli.inspect import parse_size

if TYPE_CHECKING:
    from rich.table import Table

    from qvl.inputs.processor import Processor
    from qvl.media.resize import PixelBudget
    from qvl.models.vlm import VLMConfig
    from qvl.train.config import StageConfig, TrainConfig
    from qvl.train.costs import Device
    from qvl.train.mix import Mix, Picture
    from qvl.train.plan import StagePlan

_TURNS, _WORDS, _LEARNED = 1, 128, 48
"""Of a sample, where no recipe says what is trained on."""


def plan(
    model: str | None = None,
    *,
    recipe: Path | None = None,
    pictures: str | None = None,
    words: int | None = None,
    memory: float = 0.0,
    devices: int = 1,
    tflops: float = 0.0,
    utilisation: float = 0.4,
    max_pixels: int | None = None,
    tokens_per_pack: int | None = None,
    precision: Literal["float32", "bfloat16", "auto"] | None = None,
    cpu: bool = False,
    json: bool = False,
    set: list[str] = [],  # noqa: B006  the option is called --set; the list is only read
) -> None:
    """Says before a training starts whether it fits and what it takes: a step is gone through on tensors that have
    shapes and no memory.

    Ends with an error that names the option to change if something cannot fit.

    Args:
        model: a preset (tiny, small, 2b, 7b, qwen-vl ...), a model folder, or a hub id (default: the recipe's).
        recipe: recipe file; each of its stages is a row (default: everything is trained with AdamW).
        pictures: sizes as WIDTHxHEIGHT, "1024x768" or with shares "1024x768:3,448x448:1" (default: those that the
            recipe's samples have, else 1024x768).
        words: tokens of text per picture (default: as in the recipe's samples, else 128).
        memory: GiB of one GPU (default: this machine's, for its processor).
        devices: how many; how they share the model says the recipe: --set parallel.shard=0 --set parallel.tensor=2.
        tflops: what one device can do, in 10^12 operations a second (for the time of a step).
        utilisation: share of that which training reaches.
        max_pixels: bound on a picture's pixels (default: the recipe's or the model's).
        tokens_per_pack: instead of the recipe's.
        precision: instead of the recipe's.
        cpu: the devices of --memory are processors, not GPUs.
        json: print numbers for programs instead of tables.
        set: any value of the recipe, e.g. --set parallel.recompute=full; can be repeated.
    """
    from qvl.runtime import memory_bytes
    from qvl.train.costs import Device
    from qvl.train.plan import plan_stage

    found = _recipe(model, recipe, precision, set)
    sizes, processor, budget = _model(found, max_pixels, whole=recipe is not None)
    size = int(memory * 2**30) if memory else memory_bytes()
    device = Device(size, devices, tflops * 1e12, utilisation, cpu=cpu or not memory)
    rows: list[tuple[StagePlan, Mix]] = []
    if tokens_per_pack is not None:
        found = replace(found, stages=tuple(replace(s, tokens_per_pack=tokens_per_pack) for s in found.stages))
    for stage in found.stages:
        mix = _mix(found, stage, processor, pictures, words)
        rows.append((plan_stage(sizes, found, stage, mix, budget, device), mix))
    plans = [plan for plan, _ in rows]
    if json:
        print(json_text.dumps(_numbers(found.model, sizes, device, plans), indent=1))
    else:
        _print(found, sizes, budget, device, rows, here=not memory)
    if problems := [f"{p.stage}: {p.problem}" for p in plans if p.problem]:
        raise ValueError(f"does not fit. {'; '.join(dict.fromkeys(problems))}")


def _recipe(model: str | None, file: Path | None, precision: str | None, settings: Sequence[str]) -> TrainConfig:
    """The recipe to plan for; without a file one that trains everything."""
    from qvl.cli.recipe import apply_setting, as_config, read_recipe

    changes = {"model": _known_as(model), "precision": precision}
    if file is not None:
        return read_recipe(file, changes, settings)
    if model is None:
        raise ValueError("a plan needs a model or a recipe: `qvl plan 2b`, `qvl plan --recipe recipes/tiny.yaml`")
    stage = {"name": "everything", "trains": ["vision", "merger", "text"], "share": 1, "patches_per_pack": 1 << 20}
    plain = {"run": "runs/plan", "stages": [stage]}
    plain |= {key: value for key, value in changes.items() if value is not None}
    for setting in settings:
        apply_setting(plain, setting)
    return as_config(plain, "plan")


def _known_as(model: str | None) -> str | None:
    """A preset's whole name: `2b` is `qwen2-vl-2b`."""
    from qvl.models.registry import presets

    full = f"qwen2-vl-{(model or '').lower()}"
    return full if full in presets() else model


def _model(
    recipe: TrainConfig, max_pixels: int | None, *, whole: bool
) -> tuple[VLMConfig, Processor | None, PixelBudget]:
    """Sizes, the processor that training would use, and the bound on pictures.

    Pretrained parts need not be there: a preset has the sizes of those that its recipe names. There is no processor
    then, and none where there is nothing to look at: without a whole recipe, or in one for files that names none.
    """
    from qvl.cli.find import find_model
    from qvl.cli.start import for_training, processor_of
    from qvl.media.resize import PixelBudget
    from qvl.models.registry import presets
    from qvl.train.build import for_pictures, outline

    processor: Processor | None = None
    found, preprocessing = find_model(recipe.model)
    sizes, budget = for_pictures(recipe, found), preprocessing.budget
    if whole and recipe.model in presets():
        try:
            made = outline(recipe)
            sizes, processor = made.sizes, for_training(made.processor, recipe)
            budget = processor.config.pixels
        except FileNotFoundError:
            areas = [height * width for stage in recipe.stages for height, width in stage.world.sizes]
            budget = PixelBudget(min(areas), max(areas))
    elif whole and recipe.data.files:
        processor = processor_of(recipe)
    if recipe.needs_data and not recipe.data.files:
        processor, budget = None, preprocessing.budget
    if most := max_pixels or min(recipe.data.max_pixels, budget.max_pixels):
        budget = PixelBudget(min(budget.min_pixels, most), most)
    return sizes, processor, budget


def _mix(
    recipe: TrainConfig, stage: StageConfig, processor: Processor | None, pictures: str | None, words: int | None
) -> Mix:
    from qvl.train.build import sample_source
    from qvl.train.mix import Mix, mix_of

    if processor is not None:
        try:
            source = sample_source(recipe, stage)
        except FileNotFoundError:  # easy-VQA was not fetched; the world's samples are of about the same size
            alone = tuple(replace(s, easy_vqa=0.0) for s in recipe.stages)
            source = sample_source(replace(recipe, stages=alone), alone[recipe.stages.index(stage)])
        mix = mix_of(source, processor, stage)
    else:
        mix = Mix(((768, 1024),), _TURNS, _WORDS, _LEARNED, branches=False)
    if pictures is not None:
        mix = replace(mix, hws=parse_mix(pictures), moments=())
    if words is not None:
        if words < 1:
            raise ValueError(f"words must be at least 1, got {words}")
        each = max(1, words // mix.turns)
        mix = replace(mix, words=each, learned=max(1, min(each, each * mix.learned // mix.words)))
    return mix


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


def _numbers(model: str, sizes: VLMConfig, device: Device, plans: Sequence[StagePlan]) -> dict[str, Any]:
    from qvl.train.plan import cache_bytes

    return {
        "model": model,
        "device": asdict(device),
        "cache_bytes_per_token": cache_bytes(sizes, 1),
        "stages": [
            {
                **{k: v for k, v in asdict(p).items() if k != "pack"},
                "peak": p.memory.peak,
                "fits": not p.problem,
                "tokens": p.pack.tokens,
                "patches": p.pack.patches,
                "targets": p.pack.targets,
            }
            for p in plans
        ],
    }


def _print(
    recipe: TrainConfig,
    sizes: VLMConfig,
    budget: PixelBudget,
    device: Device,
    rows: Sequence[tuple[StagePlan, Mix]],
    *,
    here: bool,
) -> None:
    from rich.console import Console

    from qvl.train.costs import USABLE
    from qvl.train.plan import gib

    console = Console()
    seen: dict[tuple[int, tuple[int, int]], Picture] = {}
    for _, mix in rows:
        seen |= {(p.moments, p.hw): p for p in mix.pictures(sizes, budget) if p is not None}
    kind = "this machine" if here else f"{device.count} device{'s' if device.count > 1 else ''}"
    precision = "bfloat16" if device.takes(recipe.precision) else "float32"
    title = f"{recipe.model} in {precision} on {kind} of {gib(device.memory)}, of which a plan uses {USABLE:.0%}"
    console.print(title + "\n", highlight=False)
    console.print(_picture_table(sizes, [seen[key] for key in sorted(seen)]))
    console.print(_memory_table([p for p, _ in rows]))
    console.print(_step_table([p for p, _ in rows]))


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _picture_table(sizes: VLMConfig, pictures: Sequence[Picture]) -> Table:
    from qvl.train.plan import cache_bytes, gib

    title = "Pictures (width x height, of a clip moments too); keys and values in bfloat16, while answering"
    table = _table(title, "given", "seen as", "patches", "tokens", "positions", "keys and values")
    for p in pictures:
        given, seen = (f"{w} x {h}" + f" x {p.moments}" * (p.moments > 1) for h, w in (p.hw, p.seen_hw))
        cache = gib(cache_bytes(sizes, p.tokens))
        table.add_row(given, seen, f"{p.patches:,}", f"{p.tokens:,}", f"{p.positions:,}", cache)
    return table


def _memory_table(plans: Sequence[StagePlan]) -> Table:
    from qvl.train.plan import gib

    columns = ("stage", "part", "parameters", "gradients", "optimizer", "kept for backward")
    table = _table("Memory of one training step on each device", *columns)
    for plan_ in plans:
        m = plan_.memory
        purposes = (m.parameters, m.gradients, m.optimizer, m.activations)
        for i, part in enumerate(m.parameters):
            table.add_row("" if i else plan_.stage, part, *(gib(purpose[part]) for purpose in purposes))
        if m.gathered:
            table.add_row("", "whole blocks at hand", gib(m.gathered), "", "", "")
        if m.copies:
            table.add_row("", "weights in bfloat16", "", "", "", gib(m.copies))
        if m.slack:
            table.add_row("", "freed, of no use", "", "", "", gib(m.slack))
        table.add_row("", "together", *(gib(sum(purpose.values())) for purpose in purposes), style="bold")
        if m.copy:
            where = " (in the processor's memory)" if m.copy_aside else ""
            table.add_row("", f"copy while a state is saved{where}: {gib(m.copy)}")
        table.add_row("", f"[bold]most at once: {gib(m.peak)}[/bold]", f"({m.peak_when})", end_section=True)
    return table


def _step_table(plans: Sequence[StagePlan]) -> Table:
    table = _table(
        "A step",
        *("stage", "tokens", "patches", "samples", "TFLOP", "seconds"),
        *("largest tokens_per_pack", "largest max_pixels", "fits"),
    )
    for p in plans:
        table.add_row(
            p.stage,
            *(f"{n:,}" for n in (p.pack.tokens, p.pack.patches, p.samples_per_pack)),
            f"{p.flops.total / 1e12:.3g}",
            "give --tflops" if p.seconds is None else f"{p.seconds:.2f}",
            *(f"about {n:,}" if n else "none" for n in (p.largest_pack, p.largest_pixels)),
            "no" if p.problem else "yes",
        )
    return table
