"""`qvl inspect`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from qvl.checkpoint.hf_settings import Preprocessing
    from qvl.models.qwen2_vl.config import Qwen2VLConfig
    from qvl.models.qwen_vl.config import QwenVLConfig


def inspect(model: str, *, image_size: str = "1024x768") -> None:
    """Prints what a model is made of and what a picture costs it. No weights are read.

    Args:
        model: a preset (tiny, qwen2-vl-2b or just 2b, 7b, 72b; tiny-qwen-vl, qwen-vl), a model folder, or a hub id.
        image_size: WIDTHxHEIGHT in pixels, e.g. 1024x768.
    """
    from rich.console import Console

    from qvl.cli.find import find_model
    from qvl.models.hollow import hollow

    hw = parse_size(image_size)
    config, preprocessing = find_model(model)
    built = hollow(config)
    console = Console()
    console.print(_facts(model, config))
    console.print(_parameters(built))
    console.print(_picture(config, preprocessing, hw))


def parse_size(text: str) -> tuple[int, int]:
    """ "1024x768" -> (768, 1024): (height, width). Raises `ValueError` for anything else."""
    match = re.fullmatch(r"(\d+)[x×](\d+)", text.strip().lower())
    if not match:
        raise ValueError(f"an image size is WIDTHxHEIGHT in pixels such as 1024x768, got {text!r}")
    width, height = map(int, match.groups())
    return height, width


def _facts(name: str, config: Qwen2VLConfig | QwenVLConfig):
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from qvl.models.qwen_vl.config import QwenVLConfig

    text, vision = config.text, config.vision
    table = Table(title=name, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("vision tower", justify="right")
    table.add_column("language model", justify="right")
    table.add_row("layers", str(vision.layers), str(text.layers))
    table.add_row("width", str(vision.width), str(text.width))
    heads = f"{text.heads} x {text.head_size}, {text.kv_heads} of keys"
    table.add_row("heads", f"{vision.heads} x {vision.width // vision.heads}", heads)
    table.add_row("feed-forward", str(vision.mlp_hidden), str(text.mlp_hidden))
    if isinstance(config, QwenVLConfig):
        side, adapter = config.vision.table_side, config.adapter
        table.add_row("places", f"learned table of {side} x {side}", "rotary")
        table.add_row("rotary theta", "", f"{text.rope_theta:g}")
        table.add_row("adapter's queries", f"{adapter.queries} = {adapter.side} x {adapter.side}", "")
        table.add_row("adapter's heads", f"{adapter.heads} x {text.width // adapter.heads}", "")
    else:
        table.add_row("rotary theta", f"{config.vision.rope_theta:g}", f"{text.rope_theta:g}")
        axes = " + ".join(map(str, text.rope_sections)) if text.rope_sections else "one axis"
        table.add_row("rotary frequencies", "row, column" if config.vision.rope else "none (position table)", axes)
    table.add_row("vocabulary", "", f"{config.vocab_size:,}{', head tied' if config.tie_embeddings else ''}")
    table.add_row("positions", "", f"{config.max_positions:,}")
    return table


def parts(model: nn.Module) -> dict[str, int]:
    """Parameters of each part, in the order a picture passes through them; a tied head is the embedding."""
    bridge = "adapter" if any(name.startswith("visual.adapter.") for name, _ in model.named_parameters()) else "merger"
    sizes = {"vision tower": 0, bridge: 0, "token embedding": 0, "decoder": 0, "output head": 0}
    for name, parameter in model.named_parameters():
        if name.startswith(f"visual.{bridge}."):
            part = bridge
        elif name.startswith("visual."):
            part = "vision tower"
        else:
            part = {"embed": "token embedding", "head": "output head"}.get(name.split(".")[0], "decoder")
        sizes[part] += parameter.numel()
    return sizes


def _parameters(model: nn.Module):
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="Parameters", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("part", "parameters", "bfloat16", "float32"):
        table.add_column(column, justify="left" if column == "part" else "right")
    sizes = parts(model)
    for part, size in [*sizes.items(), ("total", sum(sizes.values()))]:
        table.add_row(part, f"{size:,}", _size(2 * size), _size(4 * size), style="bold" if part == "total" else "")
    return table


def picture_cost(
    config: Qwen2VLConfig | QwenVLConfig, preprocessing: Preprocessing, hw: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """What a picture of (height, width) pixels becomes: its new size, its patches (rows, columns), its tokens with
    their two marks."""
    from qvl.media.resize import smart_resize
    from qvl.models.qwen_vl.config import QwenVLConfig

    if isinstance(config, QwenVLConfig):
        side = config.vision.image_px
        return (side, side), (side // config.vision.patch,) * 2, config.adapter.queries + 2
    geometry, budget = preprocessing.geometry, preprocessing.budget
    height, width = smart_resize(*hw, geometry.factor, budget.min_pixels, budget.max_pixels)
    rows, columns = height // geometry.patch, width // geometry.patch
    return (height, width), (rows, columns), rows * columns // geometry.merge**2 + 2


def _picture(config: Qwen2VLConfig | QwenVLConfig, preprocessing: Preprocessing, hw: tuple[int, int]):
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from qvl.models.qwen_vl.config import QwenVLConfig

    (height, width), (rows, columns), tokens = picture_cost(config, preprocessing, hw)
    cache = 2 * config.text.layers * config.text.kv_heads * config.text.head_size * 2 * tokens
    table = Table(
        title=f"A picture of {hw[1]} x {hw[0]} (width x height)",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_header=False,
    )
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("becomes", f"{width} x {height}{', whatever its shape' if isinstance(config, QwenVLConfig) else ''}")
    table.add_row("patches", f"{rows} rows x {columns} = {rows * columns:,}")
    table.add_row("tokens", f"{tokens:,} (with its two marks)")
    table.add_row("keys and values in bfloat16", _size(cache))
    table.add_row("share of the positions", f"{100 * tokens / config.max_positions:.1f} %")
    return table


def _size(count: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale / 4:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 2**10:.1f} KiB"
