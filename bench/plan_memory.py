"""What `qvl plan` predicts against what training takes: the peak of resident memory of whole runs of a few steps.

    python -m bench.plan_memory                          # tiny and small, several stages; results/plan_memory.jsonl
    python -m bench.plan_memory --cases tiny-stage2

A case is one stage of a recipe, cut down to some steps and otherwise trained as `qvl train` does, in a fresh process:
its model and parts, its data worker, its real packs, and a state saved at every step, as happens to a longer run every
minute. The plan knows of them what it finds by looking at some samples. Measured is the peak minus what the process
held before the model was built (Linux: VmHWM, reset before). Cases of `small` without fetched parts (`qvl data parts`)
start from random weights of the same sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from bench.record import record
from qvl.cli.recipe import read_recipe
from qvl.cli.start import begin, for_training
from qvl.data.packing import SampleSource
from qvl.packages import packaged
from qvl.runtime import seed_everything, set_threads
from qvl.train.build import outline, sample_source
from qvl.train.config import PartsConfig, TrainConfig
from qvl.train.costs import Device, StageCosts
from qvl.train.mix import mix_of
from qvl.train.plan import full_pack
from qvl.train.smoke import smoke
from qvl.train.step_memory import PackShape, StepMemory
from qvl.train.trainer import Trainer

STEPS = 4


@dataclass(frozen=True)
class Case:
    recipe: str
    stage: str
    settings: tuple[str, ...] = ()


_LORA = "lora={rank: 16, parts: [text, vision]}"
CASES = {
    "tiny-stage0-scenes": Case("tiny", "stage0-scenes"),
    "tiny-stage0-sight": Case("tiny", "stage0-sight-scenes"),
    "tiny-stage1": Case("tiny", "stage1"),
    "tiny-stage2": Case("tiny", "stage2"),
    "tiny-stage2-bf16": Case("tiny", "stage2", ("precision=bfloat16",)),
    "tiny-stage2-four-packs": Case("tiny", "stage2", ("stages.stage2.accumulate=4",)),
    "tiny-stage3": Case("tiny", "stage3"),
    "tiny-qwen-vl-stage2": Case("tiny_qwen_vl", "stage2"),
    "small-stage1": Case("small", "stage1"),
    "small-stage2": Case("small", "stage2"),
    "small-stage2-bf16": Case("small", "stage2", ("precision=bfloat16",)),
    "small-stage2-lora": Case("small", "stage2", (_LORA,)),
    "small-stage3": Case("small", "stage3"),
}


def recipe(case: Case, run: str, threads: int) -> TrainConfig:
    """The case's recipe with its one stage, a few steps long."""
    config = read_recipe(f"recipes/{case.recipe}.yaml", {"run": run}, case.settings)
    stage = next(s for s in config.stages if s.name == case.stage)
    short = replace(config, stages=(replace(stage, steps=STEPS, evaluate=False),), threads=threads)
    short = replace(short, log_every=1, save_every_minutes=0.0)
    try:
        for part in (config.parts.language, config.parts.vision):
            if part:
                packaged(part)
    except FileNotFoundError:
        return replace(short, parts=PartsConfig())
    return short


def planned(config: TrainConfig) -> tuple[PackShape, StepMemory]:
    made = outline(config)
    (stage,) = config.stages
    processor = for_training(made.processor, config)
    mix = mix_of(sample_source(config, stage), processor, stage)
    costs = StageCosts(made.sizes, config, stage, mix, Device(1 << 40))
    pack, _ = full_pack(costs, mix.pictures(made.sizes, processor.config.pixels))
    return pack, costs.memory(pack)


def measured(config: TrainConfig, scratch: Path) -> tuple[int, int]:
    """Peak bytes of a run in this process above what it holds now, and the latter: a whole run of a very small model
    has come before, so that libraries and their buffers are there."""
    set_threads(config.threads)
    seed_everything(config.seed)
    first = smoke(replace(config, lora=None), str(scratch / "first"))
    little = (replace(s, world=replace(s.world, turns=1), tokens_per_pack=256) for s in first.stages)
    first = replace(first, stages=tuple(little))
    _train(first, sample_source(first, first.stages[0]))
    source = sample_source(config, config.stages[0])
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    _train(config, source)
    return _status("VmHWM") - before, before


def _train(config: TrainConfig, source: SampleSource) -> None:
    built = begin(config, Path(config.run))
    Trainer(config, built.model, for_training(built.processor, config), lambda stage: source).fit()


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.measure:
            config = recipe(CASES[arguments.measure], f"{folder}/run", arguments.threads)
            print(json.dumps(measured(config, Path(folder))))
            return
        for name in arguments.cases:
            command = [sys.executable, "-m", "bench.plan_memory", "--measure", name]
            command += ["--threads", str(arguments.threads)]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            peak, process = json.loads(out.splitlines()[-1])
            pack, found = planned(recipe(CASES[name], folder, arguments.threads))
            print(record("plan_memory", _row(name, pack, found, peak, process)), flush=True)


def _row(name: str, pack: PackShape, found: StepMemory, peak: int, process: int) -> dict[str, object]:
    def mib(size: int) -> int:
        return round(size / 2**20)

    return {
        "case": name,
        "tokens": pack.tokens,
        "patches": pack.patches,
        "predicted MiB": mib(found.peak),
        "measured MiB": mib(peak),
        "predicted / measured": round(found.peak / peak, 3),
        "of it tensors MiB": mib(max(found.peaks.values())),
        "slack MiB": mib(found.slack),
        "copy for saving MiB": mib(found.copy),
        "process MiB": mib(process),
        "peak": found.peak_when,
    }


if __name__ == "__main__":
    main()
