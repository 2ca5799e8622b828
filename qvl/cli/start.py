"""What a run starts from, and how its state becomes a model again without the trainer.

Knows: the files of a run's folder that say what was trained (`config.yaml`, `tokenizer/` or `start/`, `checkpoint/`).
Does not know: training, where a result is saved.
"""

from __future__ import annotations

from pathlib import Path

from qvl.checkpoint.configs import read_config
from qvl.checkpoint.folder import load_model, write_settings
from qvl.checkpoint.hub import resolve
from qvl.checkpoint.stage import staged_folder
from qvl.cli.recipe import read_recipe
from qvl.engine.pairing import check_match, processor_for, save_processor
from qvl.inputs.processor import Processor
from qvl.media.resize import PixelBudget
from qvl.models.hollow import hollow
from qvl.models.lora import add_lora
from qvl.models.qwen_vl.config import QwenVLConfig
from qvl.models.registry import presets
from qvl.models.vlm import VLMConfig
from qvl.train.build import Built, build, for_pictures, outline
from qvl.train.config import PartsConfig, TrainConfig
from qvl.train.saved import read_model
from qvl.train.state import fill_model

_START = "start"
"""In the run's folder: the settings (no weights) of the model that it started from."""


def begin(config: TrainConfig, run: Path, writes: bool = True) -> Built:
    """The model before its first step and the processor it is to be used with.

    Args:
        writes: keep the settings of the folder or the parts that the run starts from (the first rank does), so that
            its state becomes a model again without them.

    Raises:
        FileNotFoundError, ValueError: neither a preset nor a model folder, or one that the recipe does not fit.
    """
    if config.model in presets():
        built = build(config, run / "tokenizer")
    else:
        built = _from_folder(config)
    if writes and (config.model not in presets() or config.parts != PartsConfig()):
        with staged_folder(run / _START) as stage:
            write_settings(built.model, stage, built.model.embed.weight.dtype)
            save_processor(built.processor, stage)
    if config.lora is not None:
        add_lora(built.model, config.lora, config.seed)
    return built


def processor_of(config: TrainConfig) -> Processor:
    """The processor a run trains with, without reading weights."""
    if config.model in presets():
        return for_training(outline(config).processor, config)
    folder = _folder(config)
    return for_training(processor_for(_sizes(config, read_config(folder)), folder, "fast"), config)


def for_training(processor: Processor, config: TrainConfig) -> Processor:
    """The processor that training uses: the fast resizer, and the recipe's bound on pictures.

    Raises:
        ValueError: a bound on pictures for Qwen-VL, which sees all of them at one size.
    """
    fast = processor.with_options(resize="fast")
    if not config.data.max_pixels:
        return fast
    if processor.config.square is not None:
        side = processor.config.square.side
        raise ValueError(f"data.max_pixels is set, but Qwen-VL sees every picture at {side} x {side}; leave it out")
    own = processor.config.pixels
    most = min(own.max_pixels, config.data.max_pixels)  # answers come from pictures within the model's own bound
    return fast.with_options(pixels=PixelBudget(min(own.min_pixels, most), most))


def restore(path: Path) -> tuple[TrainConfig, Built, str]:
    """The recipe of a run, its model as last saved (with adapters, if it has them), and where that was.

    Args:
        path: the run's folder, its `checkpoint` folder, or one of the numbered ones in that. The model that
            the run started from is not needed.

    Raises:
        FileNotFoundError: not a run, or nothing was saved yet.
        ValueError: a damaged state.
    """
    place = path.absolute()
    run = next((folder for folder in (place, *place.parents[:2]) if (folder / "config.yaml").is_file()), None)
    if run is None:
        raise FileNotFoundError(f"{path} is no run of qvl train: there is no config.yaml in it or beside it")
    config = read_recipe(run / "config.yaml")
    point, tensors = read_model(run / "checkpoint" if place == run else place)
    built = _started_from(run / _START) if (run / _START).is_dir() else build(config, run / "tokenizer")
    if config.lora is not None:
        add_lora(built.model, config.lora, config.seed)
    fill_model(built.model, tensors)
    return config, Built(built.model.eval(), built.processor.with_options(resize="exact")), str(point)


def _started_from(folder: Path) -> Built:
    """The model of a folder of settings, without memory for its weights yet, and its processor."""
    config = read_config(folder)
    return Built(hollow(config), processor_for(config, folder, "exact"))


def _from_folder(config: TrainConfig) -> Built:
    """The model of a folder; a Qwen-VL for pictures of the recipe's size (its places are resized to any grid)."""
    folder = _folder(config)
    model = load_model(folder).eval()
    model.config = _sizes(config, model.config)
    processor = processor_for(model.config, folder, "exact")
    check_match(model.config, processor)
    return Built(model, processor.with_options(chat_format=config.stages[-1].chat_format))


def _sizes(config: TrainConfig, found: VLMConfig) -> VLMConfig:
    wanted = for_pictures(config, found)
    if isinstance(found, QwenVLConfig) and config.queries not in (0, found.adapter.queries):
        raise ValueError(
            f"queries is {config.queries}, but {config.model} has {found.adapter.queries}; their number can only be "
            "chosen for a new adapter"
        )
    return wanted


def _folder(config: TrainConfig) -> Path:
    name = config.model
    try:
        folder = resolve(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"model: {error}. Presets are {', '.join(presets())}") from None
    if config.parts != PartsConfig():
        named = ", ".join(f"parts.{key}={value}" for key, value in vars(config.parts).items() if value)
        raise ValueError(
            f"{name} is a whole model, and the recipe names pretrained parts besides ({named}): leave parts out to go "
            "on from that model, or name a preset (--model small) to begin with the parts"
        )
    if config.min_pixels:
        raise ValueError(
            f"{name} is a whole model and has its own bounds for pictures, and the recipe has min_pixels="
            f"{config.min_pixels}: leave min_pixels out, or change it in the model's preprocessor_config.json"
        )
    return folder
