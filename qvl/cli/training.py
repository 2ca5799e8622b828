"""A training run from its recipe to a saved model folder; what `qvl train` and `qvl demo` share.

Knows: the files of a run's folder (`config.yaml`, `first_look.html`, `eval/<stage>/`, `summary.json`, `model/`, and
`adapter/` of a run with adapters).
Does not know: how training or measuring works.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from qvl.checkpoint.adapter import save_adapter
from qvl.checkpoint.stage import write_whole
from qvl.cli.measure import measure, measure_easy_vqa
from qvl.cli.recipe import differences, read_recipe, recipe_text
from qvl.cli.shared import measure_together
from qvl.cli.sheet import write_first_look
from qvl.cli.start import begin, for_training, processor_of
from qvl.engine.api import Generator
from qvl.engine.generate import Engine
from qvl.engine.vlm import VLM
from qvl.evals.runner import EvalResult
from qvl.inputs.processor import Processor
from qvl.models.lora import merge_lora
from qvl.models.vlm import VisionLanguageModel
from qvl.runtime import cpu_name, peak_memory_bytes, seed_everything, set_threads
from qvl.text.messages import Image, Message
from qvl.train.build import Built, check_data, sample_source
from qvl.train.config import StageConfig, TrainConfig
from qvl.train.optim import part_of
from qvl.train.ranks import Ranks
from qvl.train.trainer import Trainer

FIRST_LOOK = "first_look.html"
_MAY_CHANGE = (
    "run",
    "threads",
    "log_every",
    "save_every_minutes",
    "peak_tflops",
    "profile_steps",
    "keep",
    "save_in_background",
    "eval_samples",
    "final_eval_samples",
    "parallel",
)
"""What a run that goes on may set anew."""


@dataclass(frozen=True)
class TrainedRun:
    vlm: VLM
    folder: Path
    seconds: float
    """Training time of all stages, interruptions and evaluations left out."""


def train_run(
    config: TrainConfig,
    targets: Mapping[str, float] | None = None,
    ranks: Ranks | None = None,
    *,
    look: bool = False,
    for_all: bool = True,
) -> TrainedRun:
    """Trains what is not trained yet and saves the model as `<run>/model`, adapters alone also as `<run>/adapter`.
    Every rank calls it, the first one writes.

    Args:
        targets: `task/metric` -> value to reach, noted in summary.json for the report.
        ranks: the processes that train together; default: this one alone.
        look: before the first step, write samples as the model will see them to `<run>/first_look.html`.
        for_all: every rank gets the trained model. False = where ranks hold pieces only the first does, the others get
            one without values.

    Raises:
        ValueError: the folder holds a run with another recipe, or the recipe has no data.
        Stopped: interrupted, with the state saved.
    """
    check_data(config)
    ranks, folder = ranks or Ranks(), Path(config.run)
    threads = set_threads(config.threads, ranks.place.local_size)
    seed_everything(config.seed)
    built = ranks.first_then_others(lambda: _claim_and_begin(config, folder, ranks))
    processor, seen = built.processor.with_options(resize="exact"), for_training(built.processor, config)
    if look and ranks.first and not (folder / "checkpoint").is_dir():
        write_first_look(config, seen, folder / FIRST_LOOK)
    measure_stage = partial(_measure_stage, config, processor, ranks)
    trainer = Trainer(config, built.model, seen, partial(sample_source, config), measure_stage, ranks)
    trainer.fit()
    model = trainer.parallel.whole_model(everywhere=for_all)
    if config.lora is not None and ranks.first:
        save_adapter(model, folder / "adapter", config.lora, base=config.model)
    merge_lora(model)
    vlm = VLM(model.eval(), processor)
    if ranks.first:
        vlm.save(folder / "model")
        _write_summary(config, folder, vlm, trainer.elapsed, (ranks.place.size, threads), targets or {})
    ranks.wait()
    return TrainedRun(vlm, folder, trainer.elapsed)


def look_only(config: TrainConfig) -> None:
    """Writes the first look and trains nothing.

    Raises:
        ValueError: the folder holds a run with another recipe, or the recipe has no data; see also `write_first_look`.
    """
    check_data(config)
    folder = Path(config.run)
    claim(config, folder)
    write_first_look(config, processor_of(config), folder / FIRST_LOOK)


def _claim_and_begin(config: TrainConfig, folder: Path, ranks: Ranks) -> Built:
    if ranks.first:
        claim(config, folder)
    return begin(config, folder, writes=ranks.first)


def claim(config: TrainConfig, folder: Path) -> None:
    """Makes the folder this recipe's, or finds that it is. A finished run also keeps its minutes.

    Raises:
        ValueError: the folder holds a run with another recipe; the message says where they differ. Or it holds what a
            new run would write over: a finished model without its checkpoint, a config.yaml that no run has written.
    """
    file = folder / "config.yaml"
    if (folder / "checkpoint").is_dir() and file.is_file():
        may_change = _MAY_CHANGE if (folder / "model").is_dir() else (*_MAY_CHANGE, "minutes")
        found = differences(read_recipe(file), config, may_change)
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ValueError(
                f"{folder} holds a run with another recipe ({'; '.join(found[:3])}{more}). "
                f"Choose another --run, or delete {folder} to train anew"
            )
    else:
        _check_nothing_is_lost(folder, file)
        (folder / "metrics.jsonl").unlink(missing_ok=True)  # of a start that saved nothing
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, recipe_text(config))


def _check_nothing_is_lost(folder: Path, file: Path) -> None:
    """Of a folder without a checkpoint to go on from."""
    if (folder / "model").is_dir():
        raise ValueError(
            f"{folder} holds a trained model ({folder / 'model'}) but no checkpoint to go on from: choose another "
            "--run, or delete it to train anew"
        )
    if not file.is_file():
        return
    try:
        ours = file.read_text(encoding="utf-8") == recipe_text(read_recipe(file))
    except ValueError:
        ours = False
    if not ours:
        raise ValueError(f"{file} was not written by qvl train and would be replaced: choose another --run")


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Parameters of the vision tower, the merger and the language model; a tied head counts once."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return dict(counts)


def picture_tokens(processor: Processor, sizes: Iterable[tuple[int, int]]) -> list[int]:
    """Vision tokens of a picture of each of these sizes (height, width), its two marks left out."""
    blanks = [np.zeros((*hw, 3), np.uint8) for hw in dict.fromkeys(sizes)]
    return [len(processor.sequence((Message("user", (Image(blank),)),)).vision_rows_M) for blank in blanks]


def _measure_stage(
    config: TrainConfig, processor: Processor, ranks: Ranks, model: nn.Module, stage: StageConfig
) -> None:
    if not stage.evaluate or config.data.files:  # the tasks are those of the embedded world
        return
    assert isinstance(model, VisionLanguageModel)
    out = Path(config.run) / "eval" / stage.name
    engine = Engine(model, processor.with_options(chat_format=stage.chat_format))
    stamp = {"stage": stage.name, "seed": config.seed}

    def ask(generator: Generator) -> EvalResult:
        common: dict[str, Any] = {"chat_format": stage.chat_format, "stamp": stamp, "at_once": 16 * ranks.place.size}
        if stage.source == "easy_vqa":
            return measure_easy_vqa(generator, config.eval_samples, out, style=stage.world.style, **common)
        drawn = config.eval_samples if stage.easy_vqa else 0
        return measure(generator, stage.world, "dev", config.eval_samples, out, easy_vqa=drawn, **common)

    measure_together(engine, ranks, ask)


def _write_summary(
    config: TrainConfig,
    folder: Path,
    vlm: VLM,
    seconds: float,
    workers: tuple[int, int],
    targets: Mapping[str, float],
) -> None:
    """`workers`: ranks, and threads of each. What stands there stays if nothing was trained since: its machine, memory
    and date are those of the training, not of the command that found it done."""
    file = folder / "summary.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["seconds"] == round(seconds, 1):
        return
    ranks, threads = workers
    summary = {
        "name": folder.name,
        "model": config.model,
        "parameters": parameters_by_part(vlm.model),
        "picture_tokens": None if config.data.files else picture_tokens(vlm.processor, config.stages[-1].world.sizes),
        "seconds": round(seconds, 1),
        "hardware": {
            "processor": cpu_name(),
            "ranks": ranks,
            "threads": ranks * threads,
            "peak memory": f"{peak_memory_bytes() / 2**30:.2f} GiB in each training process",
        },
        "seed": config.seed,
        "date": date.today().isoformat(),
        "version": version("qvl"),
        "targets": dict(targets),
    }
    write_whole(file, json.dumps(summary, indent=1) + "\n")
