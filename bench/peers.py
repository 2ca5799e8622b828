"""What the benches of the 2B share: a folder of its shape with random weights, two sides, limits of the machine.

Knows: Qwen2-VL-2B's shape, transformers' way to generate, how fast this machine reads and multiplies.
Does not know: what is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvl.engine.vlm import VLM
from qvl.inputs.processor import Processor
from qvl.models.qwen2_vl.config import preset
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.runtime import cache_folder
from qvl.text.tokenizer import Tokenizer

FULL = 28
_BLOCK = 1 << 24


def options(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=FULL, help="fewer decoder layers (and as large a share of the "
                        "tower's) for a quick trial; rows are recorded only at full size")  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--dry", action="store_true", help="print only, keep no record")
    return parser


def random_folder(layers: int = FULL) -> Path:
    """Qwen2-VL-2B with random weights in bfloat16 (4.4 GB), written once to the cache folder."""
    folder = cache_folder() / "bench" / f"qwen2-vl-2b-{layers}"
    if (folder / "config.json").exists():
        return folder
    config = preset("qwen2-vl-2b")
    vision = replace(config.vision, layers=max(1, config.vision.layers * layers // FULL))
    config = replace(config, text=replace(config.text, layers=layers), vision=vision)
    with torch.device("meta"):
        model = Qwen2VL(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.head.weight = model.embed.weight
    noise = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            _fill(parameter, name, noise.roll(997 * index))
    VLM(model.eval(), Processor(Tokenizer.qwen2_vl())).save(folder)
    return folder


def _fill(parameter: Tensor, name: str, noise: Tensor) -> None:
    if parameter.ndim < 2:
        parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        return
    flat = parameter.view(-1)
    for at in range(0, len(flat), _BLOCK):
        flat[at : at + _BLOCK] = noise[: len(flat) - at]
    parameter *= 0.02


def transformers_model(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()


def their_token_times(model: Any, inputs: dict[str, Tensor], tokens: int) -> list[float]:
    """Seconds of each greedy token of `generate`; the first includes the prompt."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Clock(StoppingCriteria):
        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    clock = Clock()
    begin = time.perf_counter()
    extra = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    with torch.inference_mode():
        model.generate(**inputs, **extra, stopping_criteria=StoppingCriteriaList([clock]))
    return [b - a for a, b in zip([begin, *clock.times], clock.times, strict=False)]


def read_gb_s() -> float:
    """GB a second that all threads read from memory, at best."""
    numbers = torch.ones(1 << 27)  # 512 MiB, far beyond any cache
    return numbers.nbytes / 1e9 / min(seconds(numbers.sum) for _ in range(7))


def gemm_gflop_s() -> float:
    """GFLOP a second of torch's bfloat16 product of 2048 x 2048 matrices, at best."""
    a = torch.randn(2048, 2048).bfloat16()
    return 2 * 2048**3 / 1e9 / min(seconds(lambda: a @ a) for _ in range(7))


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def show(values: list[float], scale: float = 1000, digits: int = 1) -> str:
    """Median (lowest-highest)."""
    middle, low, high = (scale * f(values) for f in (statistics.median, min, max))
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratio(theirs: list[float], ours: list[float]) -> str:
    """How many times faster ours are: of the medians (lowest and highest of turns side by side)."""
    pairs = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{statistics.median(theirs) / statistics.median(ours):.2f} ({min(pairs):.2f}-{max(pairs):.2f})"


def turns(count: int, *sides: Callable[[], float]) -> Iterator[list[float]]:
    """A B A B: `count` results of each side."""
    results: list[list[float]] = [[] for _ in sides]
    for _ in range(count):
        for result, side in zip(results, sides, strict=True):
            result.append(side())
    return iter(results)
