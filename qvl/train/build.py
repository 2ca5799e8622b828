"""From a recipe to the things a training run is made of: tokenizer, model, processor, samples.

Knows: which choices of a recipe decide which part. Does not know: the loop, evaluations, the terminal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from qvl.checkpoint.configs import read_config
from qvl.data.records import Sample
from qvl.data.world import World, WorldConfig
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.media.resize import PixelBudget
from qvl.models.qwen2_vl.config import Qwen2VLConfig, TokenIds, with_vocabulary
from qvl.models.qwen_vl import config as qwen_vl_config
from qvl.models.qwen_vl.config import QwenVLConfig
from qvl.models.registry import presets
from qvl.models.vlm import VisionLanguageModel, VLMConfig
from qvl.text.family import QWEN2_VL, QWEN_VL, Family
from qvl.text.folder import has_tokenizer
from qvl.text.messages import Text
from qvl.text.tokenizer import Tokenizer
from qvl.train.config import StageConfig, TrainConfig
from qvl.train.first import first_model, model_of_folder

_BASE_RANKS = 256
"""Qwen pieces kept besides the world's own words; any other text is spelt with these and with bytes."""
_OFFICIAL_RANKS = 151_643
"""Ordinary tokens of the whole vocabulary."""
_CONNECTED = ("dialogue", "text")
"""Tasks whose later turns need the earlier ones."""
_STAGE_SEEDS = 1_000_003
"""Distance between the seeds of two stages: no stage sees the scenes of another."""


@dataclass(frozen=True)
class Built:
    model: VisionLanguageModel
    processor: Processor


def build(config: TrainConfig, tokenizer_folder: str | Path | None = None) -> Built:
    """The model that training begins with and its processor.

    Args:
        tokenizer_folder: the vocabulary is read from here if it is there, else made and written here; a run that goes
            on then has the vocabulary it began with.

    Raises:
        FileNotFoundError: neither a preset nor a folder, or a pretrained part is not there.
        ValueError: a world that cannot be, or weights that do not fit.
    """
    sizes = model_sizes(config)
    tokenizer = _tokenizer(config, QWEN_VL if isinstance(sizes, QwenVLConfig) else QWEN2_VL, tokenizer_folder)
    if config.model in presets():
        sizes = _with_vocabulary(sizes, tokenizer)
        model = first_model(sizes, config.parts, config.seed)
    else:
        model = model_of_folder(sizes, config.model)
    return Built(model, build_processor(config, sizes, tokenizer))


def model_sizes(config: TrainConfig) -> VLMConfig:
    """Sizes of the recipe's preset or folder, for pictures of the recipe's size and number of tokens.

    Raises:
        FileNotFoundError: neither a preset nor a folder.
        ValueError: sizes that the model cannot have.
    """
    known = presets()
    if config.model not in known and not Path(config.model).is_dir():
        raise FileNotFoundError(
            f"model {config.model!r} is neither a folder (is the stage before not trained yet?) nor a preset: "
            f"{', '.join(known)}"
        )
    sizes = known[config.model] if config.model in known else read_config(Path(config.model))
    if not config.image_px and not config.queries:
        return sizes
    if not isinstance(sizes, QwenVLConfig):
        raise ValueError(
            f"image_px and queries are Qwen-VL's; {config.model} keeps a picture's shape, world.sizes are its sizes"
        )
    return qwen_vl_config.with_image_size(
        sizes, config.image_px or sizes.vision.image_px, config.queries or sizes.adapter.queries
    )


def build_processor(config: TrainConfig, model: VLMConfig, tokenizer: Tokenizer) -> Processor:
    """The processor that training uses: the fast resizer, and pictures of the sizes the recipe's worlds have.

    A picture outside these sizes is something the model has never seen; scaled into them it is not. Qwen-VL makes a
    square of every picture.
    """
    chat = config.stages[-1].chat_format
    if isinstance(model, QwenVLConfig):
        side, queries, patch = model.vision.image_px, model.adapter.queries, model.vision.patch
        return Processor(
            tokenizer, ProcessorConfig.qwen_vl(side, queries, patch=patch, chat_format=chat, resize="fast")
        )
    areas = [height * width for stage in config.stages for height, width in stage.world.sizes]
    return Processor(
        tokenizer,
        ProcessorConfig(
            pixels=PixelBudget(min(areas), max(areas)),
            chat_format=chat,
            resize="fast",
            rope_axes=3 if model.text.rope_axes == 3 else 1,
        ),
    )


def _with_vocabulary(sizes: VLMConfig, tokenizer: Tokenizer) -> VLMConfig:
    """The same model over the tokenizer's vocabulary. The released sizes have room for the official one already."""
    if tokenizer.vocab_size >= _OFFICIAL_RANKS and sizes.vocab_size >= tokenizer.vocab_size:
        return sizes
    if isinstance(sizes, QwenVLConfig):
        end = tokenizer.special("<|endoftext|>")
        ids = qwen_vl_config.TokenIds(image_start=tokenizer.special("<img>"), bos=end, eos=end)
        return qwen_vl_config.with_vocabulary(sizes, tokenizer.vocab_size, ids)
    assert isinstance(sizes, Qwen2VLConfig)
    return with_vocabulary(sizes, tokenizer.vocab_size, token_ids(tokenizer))


def token_ids(tokenizer: Tokenizer) -> TokenIds:
    """The ids by which a Qwen2-VL model knows its special tokens."""
    return TokenIds(
        image_pad=tokenizer.special("<|image_pad|>"),
        video_pad=tokenizer.special("<|video_pad|>"),
        vision_start=tokenizer.special("<|vision_start|>"),
        vision_end=tokenizer.special("<|vision_end|>"),
        bos=tokenizer.special("<|endoftext|>"),
        eos=tokenizer.special("<|im_end|>"),
    )


def check_data(config: TrainConfig) -> None:
    """Raises `ValueError` for a recipe that needs data and names none."""
    if config.needs_data:
        raise ValueError(
            "this recipe is for your own data and names none. To try it in seconds with a small model on the embedded "
            "world: --smoke; to train its own model on that world: --set needs_data=false"
        )


def world_source(config: TrainConfig, stage: StageConfig) -> WorldSource:
    """The training samples of a stage; every stage and every run seed has scenes of its own."""
    seed = stage.world.seed + config.seed + _STAGE_SEEDS * config.stages.index(stage)
    return WorldSource(replace(stage.world, seed=seed))


@final
class WorldSource:
    """`source[index]`: training sample `index` of a world, marked where its questions do not need each other."""

    def __init__(self, config: WorldConfig) -> None:
        self._world = World(config)
        self.tasks = self._world.tasks

    def __getitem__(self, index: int) -> Sample:
        sample = self._world.sample("train", index)
        shown = any(not isinstance(part, Text) for part in sample.messages[0].parts)
        return replace(sample, independent=shown and sample.task not in _CONNECTED)


def _tokenizer(config: TrainConfig, family: Family, folder: str | Path | None) -> Tokenizer:
    for known in (folder, config.model):
        if known is not None and has_tokenizer(known):
            return Tokenizer.from_folder(known)
    if config.vocabulary == "official":
        tokenizer = Tokenizer.qwen_vl() if family is QWEN_VL else Tokenizer.qwen2_vl()
    else:
        tokenizer = _reduced(config, family)
    if folder is not None:
        tokenizer.save(folder)
    return tokenizer


def _reduced(config: TrainConfig, family: Family) -> Tokenizer:
    phrases = dict.fromkeys(phrase for stage in config.stages for phrase in World(stage.world).lexicon())
    return Tokenizer.reduced(phrases, _BASE_RANKS, family=family)
