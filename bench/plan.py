"""What `qvl plan` predicts against what a training step takes: peak memory of whole steps, in a fresh process each.

    python -m bench.plan                     # tiny and small, several stages; writes results/plan.jsonl
    python -m bench.plan --cases tiny-all

A case builds a preset with random weights on the processor and trains three steps on a full pack of the mix that the
plan assumes: one picture and some words a sample. Measured is the peak of resident memory minus what the process held
before the model was built (Linux: VmHWM, reset before).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from bench.record import record
from qvl.inputs.positions import TextRun, VisionRun, mrope_positions
from qvl.inputs.sequence import Sequence, pack
from qvl.media.load import Visual
from qvl.media.resize import Geometry, PixelBudget
from qvl.models.qwen2_vl.config import Qwen2VLConfig, preset
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.train.config import OptimConfig, Part, StageConfig
from qvl.train.cost import parameters_of
from qvl.train.loss import token_losses
from qvl.train.optim import Optimizers
from qvl.train.plan import Device, Mix, StagePlan, plan_stage

STEPS = 3
ALL: tuple[Part, ...] = ("vision", "merger", "text")


@dataclass(frozen=True)
class Case:
    model: str
    stage: StageConfig
    mix: Mix


def _stage(name: str, trains: tuple[Part, ...], tokens: int, patches: int, optim: str = "adamw") -> StageConfig:
    chosen = OptimConfig(name=cast("str", optim))  # type: ignore[arg-type]
    return StageConfig(name, trains, 1.0, tokens_per_pack=tokens, patches_per_pack=patches, optim=chosen)


_TINY = Mix(((112, 112), (112, 140), (84, 112)), words=100, learned=30)
_SMALL = Mix(((168, 168), (224, 224), (168, 224)), words=100, learned=30)
CASES = {
    "tiny-all": Case("tiny", _stage("all", ALL, 4096, 8192), _TINY),
    "tiny-muon": Case("tiny", _stage("muon", ALL, 4096, 8192, "muon"), _TINY),
    "tiny-vision": Case("tiny", _stage("vision", ("vision", "merger"), 4096, 8192), _TINY),
    "small-all": Case("small", _stage("all", ALL, 1024, 1536), _SMALL),
    "small-vision": Case("small", _stage("vision", ("vision", "merger"), 1024, 1536), _SMALL),
    "small-text": Case("small", _stage("text", ("merger", "text"), 1024, 1536), _SMALL),
}


def planned(case: Case) -> StagePlan:
    config = cast("Qwen2VLConfig", preset(case.model))
    with torch.device("meta"):
        parameters = parameters_of(Qwen2VL(config))
    return plan_stage(config, parameters, case.stage, case.mix, PixelBudget(), Device(1 << 40, cpu=True))


def samples(case: Case, config: Qwen2VLConfig, count: int) -> list[Sequence]:
    v = config.vision
    geometry = Geometry(patch=v.patch, merge=v.merge, temporal=v.temporal_patch)
    pictures = case.mix.pictures(geometry, PixelBudget())
    found = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        h, w = (n // v.patch for n in picture.seen_hw)
        merged = (1, h // v.merge, w // v.merge)
        rows = picture.tokens - 2
        positions_RT, following = mrope_positions([TextRun(1), VisionRun(merged), TextRun(1 + case.mix.words)])
        tokens_T = np.arange(rows + 2 + case.mix.words) % 1000
        labels_T = np.where(np.arange(len(tokens_T)) >= len(tokens_T) - case.mix.learned, tokens_T, -100)
        patches_PC = torch.randn(h * w, v.patch_values)
        visual = Visual(patches_PC, (1, h, w), picture.hw, picture.seen_hw)
        found.append(Sequence(tokens_T, positions_RT, np.arange(1, 1 + rows), (visual,), following, labels_T))
    return found


def measured(case: Case) -> int:
    """Peak bytes of `STEPS` steps in this process, above what it holds now."""
    config = cast("Qwen2VLConfig", preset(case.model))
    count = planned(case).pictures_per_pack
    torch.ones(256, 256).matmul(torch.ones(256, 256)).sum()  # the matrix library's own buffers
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    model = Qwen2VL(config)
    model.init_weights(0)
    optimizers = Optimizers(model, case.stage.trains, case.stage.optim)
    model.train()
    for _ in range(STEPS):
        batch = pack(samples(case, config, count), config.vision.patch_values, config.vision.merge)
        losses_X, _ = token_losses(model, batch)
        losses_X.mean().backward()
        optimizers.step(0.5)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(CASES[arguments.measure])))
        return
    for name in arguments.cases:
        command = [sys.executable, "-m", "bench.plan", "--measure", name]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        plan = planned(CASES[name])
        row = {
            "case": name,
            "tokens": plan.pack.tokens,
            "patches": plan.pack.patches,
            "predicted MiB": round(plan.memory.peak / 2**20),
            "measured MiB": round(peak / 2**20),
            "predicted / measured": round(plan.memory.peak / peak, 3),
            "peak": plan.memory.peak_when,
        }
        print(record("plan", row), flush=True)


if __name__ == "__main__":
    main()
