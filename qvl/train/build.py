"""From a recipe to the things a training run is made of: tokenizer, model, processor, samples.

Knows: which choices of a recipe decide which part. Does not know: the loop, evaluations, the terminal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import final

from qvl.data.easy_vqa import EasyVqa
from qvl.data.mixture import Mixture
from qvl.data.packing import SampleSource
from qvl.data.records import Sample
from qvl.data.user import UserSource
from qvl.data.world import World, WorldConfig
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.media.resize import Geometry, PixelBudget
from qvl.models.qwen2_vl.config import Qwen2VLConfig, TokenIds, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.models.qwen_vl import config as qwen_vl_config
from qvl.models.qwen_vl.config import QwenVLConfig
from qvl.models.qwen_vl.model import QwenVL
from qvl.models.registry import build_model, preset
from qvl.models.vlm import VisionLanguageModel, VLMConfig
from qvl.text.family import QWEN2_VL, QWEN_VL, Family
from qvl.text.folder import has_tokenizer
from qvl.text.messages import Text
from qvl.text.tokenizer import Tokenizer
from qvl.train.config import PartsConfig, StageConfig, TrainConfig
from qvl.train.start import Start, fill_qwen_vl

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


@dataclass(frozen=True)
class Outline:
    """What a recipe builds, without its weights."""

    sizes: VLMConfig
    """With the vocabulary's."""
    processor: Processor
    start: Start | None
    """The pretrained parts of a Qwen2-VL, not read yet."""


def outline(config: TrainConfig, tokenizer_folder: str | Path | None = None) -> Outline:
    """Sizes and processor of a preset, as `build` will make them.

    Args:
        tokenizer_folder: as `build`.

    Raises:
        FileNotFoundError: a pretrained part is not there.
        ValueError: no such preset, a world or a size that cannot be, or parts that do not fit.
    """
    sizes = model_sizes(config)
    start = Start.of(config.parts) if config.parts != PartsConfig() and isinstance(sizes, Qwen2VLConfig) else None
    if start is None or start.vocabulary is None:
        tokenizer = _tokenizer(config, QWEN_VL if isinstance(sizes, QwenVLConfig) else QWEN2_VL, tokenizer_folder)
    else:
        tokenizer = start.vocabulary.tokenizer
        if tokenizer_folder is not None:
            tokenizer.save(tokenizer_folder)
    if start is None:
        fitted = _with_vocabulary(sizes, tokenizer)
        return Outline(fitted, build_processor(config, fitted, tokenizer), None)
    assert isinstance(sizes, Qwen2VLConfig)
    whole = with_vocabulary(start.fitted(sizes), tokenizer.vocab_size, token_ids(tokenizer))
    return Outline(whole, build_processor(config, whole, tokenizer, start.geometry(whole)), start)


def build(config: TrainConfig, tokenizer_folder: str | Path | None = None) -> Built:
    """A freshly initialised model, with the pretrained parts that the recipe names, and its processor.

    Args:
        tokenizer_folder: the vocabulary is read from here if it is there, else made and written here; a run that goes
            on then has the vocabulary it began with.

    Raises:
        FileNotFoundError, ValueError: as `outline`; or a part is damaged.
    """
    found = outline(config, tokenizer_folder)
    model = build_model(found.sizes)
    model.init_weights(config.seed)
    if isinstance(model, Qwen2VL) and found.start is not None:
        found.start.fill(model, config.seed)
    if isinstance(model, QwenVL):
        fill_qwen_vl(model, config.parts)
    return Built(model, found.processor)


def model_sizes(config: TrainConfig) -> VLMConfig:
    """The recipe's preset, for pictures of the recipe's size and number of tokens.

    Raises:
        ValueError: no such preset, or sizes that it cannot have.
    """
    return for_pictures(config, preset(config.model))


def for_pictures(config: TrainConfig, model: VLMConfig) -> VLMConfig:
    """`model` for pictures of the recipe's size and number of tokens. Raises `ValueError` for what it cannot have."""
    if config.min_pixels and isinstance(model, QwenVLConfig):
        raise ValueError("min_pixels is Qwen2-VL's; Qwen-VL makes a square of every picture, image_px is its side")
    if not config.image_px and not config.queries:
        return model
    if not isinstance(model, QwenVLConfig):
        raise ValueError(
            f"image_px and queries are Qwen-VL's; {config.model} keeps a picture's shape, world.sizes are its sizes"
        )
    side, queries = config.image_px or model.vision.image_px, config.queries or model.adapter.queries
    return qwen_vl_config.with_image_size(model, side, queries)


def build_processor(
    config: TrainConfig, model: VLMConfig, tokenizer: Tokenizer, geometry: Geometry | None = None
) -> Processor:
    """The processor that training uses: the fast resizer, and pictures of the sizes the recipe's worlds have.

    A picture outside these sizes is something the model has never seen; scaled into them it is not. All of them may be
    enlarged (`min_pixels`). Qwen-VL makes a square of every picture.

    Args:
        geometry: how pictures are cut up and normalised; default: as released.
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
            geometry=geometry or Geometry(),
            pixels=PixelBudget(max(min(areas), config.min_pixels), max(*areas, config.min_pixels)),
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


def sample_source(config: TrainConfig, stage: StageConfig) -> SampleSource:
    """The training samples of a stage: the recipe's files if it names some, else what the stage names.

    Every stage and every run seed has scenes, or an order, of its own.

    Raises:
        ValueError, FileNotFoundError: see `UserSource`; or files for an objective that only worlds can serve.
    """
    own_seed = config.seed + _STAGE_SEEDS * config.stages.index(stage)
    side = isqrt(config.queries) if stage.objective != "next_token" else 0
    world = replace(stage.world, seed=stage.world.seed + own_seed, words_side=side or stage.world.words_side)
    if not config.data.files:
        return _without_files(stage, world)
    if stage.objective != "next_token":
        raise ValueError(f"{stage.name}: objective {stage.objective} is for the embedded world, files have next_token")
    return UserSource(config.data, own_seed)


def _without_files(stage: StageConfig, world: WorldConfig) -> SampleSource:
    if stage.source == "world" and not stage.easy_vqa:
        return WorldSource(world)
    drawn = EasyVqa("train", style=world.style, turns=world.turns, seed=world.seed)
    return drawn if stage.source == "easy_vqa" else Mixture(WorldSource(world), drawn, stage.easy_vqa)


def check_data(config: TrainConfig) -> None:
    """Raises `ValueError` for a recipe that needs data and names none, or that measures what cannot be shown."""
    if config.needs_data and not config.data.files:
        raise ValueError(
            "this recipe is for your own data and names none: --data FILE. To try it in seconds with a small model on "
            "the embedded world: --smoke; to train its own model on that world: --set needs_data=false"
        )
    for stage in () if config.data.files else config.stages:
        if stage.evaluate and stage.source == "world" and stage.world.medium != "pixels":
            raise ValueError(
                f"stage {stage.name} tells pictures in words (world.medium: {stage.world.medium}), which is for "
                "training only, and is to be measured on them: give it evaluate: false"
            )


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
