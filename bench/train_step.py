"""Training samples per second against transformers: same weights, same data, same precision, taking turns.

    python -m bench.train_step                                     # every row (about ten minutes)
    python -m bench.train_step --cases equal --vocab 151936 --precision bf16

One step is collating, forward, backward and AdamW (fused, on both sides) for 8 samples of one picture and some text,
of which the second half is supervised. transformers runs as its users run it: padded to the longest sample,
`labels=`, logits for every position. Ours packs, attends per sequence and computes logits where there is a label. Steps
alternate (theirs, ours, theirs, ours ...), so that a slow minute hits both; medians, with the lowest and highest in
brackets. Both train on, so the losses of every step are compared too.

    equal      a picture of 64 tokens and 40 tokens of text, each
    ragged     the same picture; text of 20 to 400 in equal ratios (20, 31, 47, ...: many short, few long, as in
               instruction data)
    uniform    the same picture; text of 20 to 400 in equal steps
    pictures   20 to 1,500 tokens altogether in equal ratios, three fifths of them a picture, wide, square or tall
    pictures+  the same in equal steps

Memory is what a process of its own that does nothing else adds to what it held after its imports: weights, optimizer,
activations. The share of peak sets what a step *means* (real tokens, labelled logits; `qvl.train.flops`) against
what this machine's matrix products reach in the same process just before; a table of its own says where the time goes
(`torch.profiler`, one step).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench.record import record
from bench.train_sides import (
    Grid,
    Name,
    Step,
    flops_of,
    folder_of,
    import_side,
    model_config,
    open_side,
    picture_of,
    sample,
)
from qvl.inputs.sequence import Sequence
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.train.flops import measured_peak

SAMPLES = 8
WARM_UP = 2
MEMORY_STEPS = 2
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = (
    *(("ragged", 8192, "fp32"), ("uniform", 8192, "fp32"), ("equal", 8192, "fp32")),
    *(("pictures", 8192, "fp32"), ("pictures", 8192, "bf16"), ("pictures+", 8192, "fp32"), ("pictures+", 8192, "bf16")),
    *(("equal", 151936, "fp32"), ("equal", 151936, "bf16")),
)
_KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution", "convolution_backward"),
    "attention": ("_scaled_dot_product", "_softmax", "masked_fill", "triu"),
    "loss": ("_log_softmax", "nll_loss", "exp_", "scatter_add_"),
    "norms": ("native_layer_norm", "rms_norm", "_fused_rms_norm", "rsqrt", "pow", "mean"),
    "optimizer": ("_fused_adamw_", "Optimizer"),
    "moving": ("copy_", "cat", "index", "fill_", "embedding", "zero_", "gather"),
    "elementwise": ("mul", "add", "sub", "div", "neg", "sum", "silu", "sigmoid", "gelu", "cos", "sin"),
}


def shapes_of(case: str) -> list[tuple[Grid, int]]:
    """Picture and text tokens of each sample."""
    space = np.linspace if case in ("uniform", "pictures+") else np.geomspace
    if case.startswith("pictures"):
        totals = space(20, 1500, SAMPLES).round().astype(int).tolist()
        pictures = [picture_of(round(0.6 * n), i) for i, n in enumerate(totals)]
        return [(hw, n - hw[0] * hw[1] - 2) for hw, n in zip(pictures, totals, strict=True)]
    texts = [40] * SAMPLES if case == "equal" else space(20, 400, SAMPLES).round().astype(int).tolist()
    return [((8, 8), n) for n in texts]


CASES = ("ragged", "uniform", "equal", "pictures", "pictures+")


def draw(rng: np.random.Generator, config: Qwen2VLConfig, case: str) -> list[Sequence]:
    """The samples of one step, in any order."""
    shapes = shapes_of(case)
    return [sample(rng, config, *shapes[i]) for i in rng.permutation(SAMPLES)]


def run(case: str, vocab: int, precision: str, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of a case, and a row per side about where its time goes."""
    config, dtype = model_config(vocab), PRECISIONS[precision]
    title = f"{case}, vocab {vocab}, {precision}"
    with folder_of(config) as folder:
        memory = {name: _memory_apart(name, folder, case, vocab, precision) for name in get_args(Name)}
        sides = {name: open_side(name, folder, dtype) for name in get_args(Name)}
    ours = sides["ours"][1]
    assert isinstance(ours, Qwen2VL)
    rng = np.random.default_rng(0)
    flops, peak = flops_of(ours, draw(rng, config, case)), measured_peak(torch.device("cpu"), dtype)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(WARM_UP + steps):
        samples = draw(rng, config, case)
        for name, (step, _) in sides.items():
            begin = time.perf_counter()
            losses[name].append(step(samples))
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    lens = [len(s.tokens_T) for s in draw(rng, config, case)]
    row: dict[str, Any] = {"case": title, "real / padded tokens": f"{sum(lens)} / {max(lens) * len(lens)}"}
    for name, found in seconds.items():
        row[f"{name} s/step"] = f"{middle[name]:.3f} ({min(found):.3f}-{max(found):.3f})"
        row[f"{name} samples/s"] = round(SAMPLES / middle[name], 2)
        row[f"{name} of peak"] = f"{100 * flops / middle[name] / peak:.0f} %"
    row["times faster"] = round(middle["transformers"] / middle["ours"], 2)
    pairs = list(zip(seconds["transformers"], seconds["ours"], strict=True))
    row["of paired steps"] = f"{min(a / b for a, b in pairs):.2f}-{max(a / b for a, b in pairs):.2f}"
    row["largest loss difference"] = f"{max(abs(a - b) for a, b in zip(*losses.values(), strict=True)):.1e}"
    row["memory MB, transformers / ours"] = f"{memory['transformers']:.0f} / {memory['ours']:.0f}"
    row["memory ratio"] = round(memory["ours"] / memory["transformers"], 2)
    row["steps"] = steps
    about = {"GEMM peak GFLOP/s": round(peak / 1e9), "GFLOP a step means": round(flops / 1e9)}
    spent = [
        {"case": f"{title}: {name}", **about, **time_goes(step, draw(rng, config, case))}
        for name, (step, _) in sides.items()
    ]
    return row, spent


def time_goes(step: Step, samples: list[Sequence]) -> dict[str, str]:
    """Share of one step per kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step(samples)
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        spent[_kind(event.key)] += event.self_cpu_time_total
    return {kind: f"{100 * spent[kind] / spent.total():.0f} %" for kind in (*_KINDS, "rest")}


def _kind(key: str) -> str:
    op = key.removeprefix("aten::")
    exact = next((kind for kind, ops in _KINDS.items() if op in ops), None)
    return exact or next((kind for kind, ops in _KINDS.items() if op.startswith(ops)), "rest")


def _memory_apart(name: Name, folder: Path, case: str, vocab: int, precision: str) -> float:
    """MB that a side's training adds, from a process of its own."""
    options = ("--memory-of", name, str(folder), "--cases", case, "--vocab", str(vocab), "--precision", precision)
    threads = ("--threads", str(torch.get_num_threads()))
    command = [sys.executable, "-m", "bench.train_step", *options, *threads]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def memory(name: Name, folder: Path, case: str, vocab: int, precision: str) -> float:
    """MB that some steps add to this process at their highest (Linux)."""
    import_side(name)
    config, rng = model_config(vocab), np.random.default_rng(0)
    batches = [draw(rng, config, case) for _ in range(MEMORY_STEPS)]
    before = _status_kb("VmRSS")
    step, _ = open_side(name, folder, PRECISIONS[precision])
    for samples in batches:
        step(samples)
    return (_status_kb("VmHWM") - before) / 1e3


def _status_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: every official row")
    parser.add_argument("--vocab", nargs="+", type=int, default=[8192])
    parser.add_argument("--precision", nargs="+", choices=list(PRECISIONS), default=["fp32"])
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "FOLDER"), help="print the memory of one side, in MB")
    parser.add_argument("--dry", action="store_true", help="print only, keep no record")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = itertools.product(options.cases, options.vocab, options.precision) if options.cases else ROWS
    for case, vocab, precision in rows:
        if options.memory_of:
            name, folder = options.memory_of
            print(json.dumps(memory(name, Path(folder), case, vocab, precision)))
            continue
        row, spent = run(case, vocab, precision, options.steps)
        for found in (row, *spent):
            print("\n".join(f"{key:>30}: {value}" for key, value in found.items()), end="\n\n", flush=True)
        if not options.dry:
            record("train_step", row)
            for found in spent:
                record("train_step_time", found)


if __name__ == "__main__":
    main()
