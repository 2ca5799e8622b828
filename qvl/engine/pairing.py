"""Which processor belongs to which model: made from a folder, written into one, checked against the model.

Knows: the families' processors and the files that describe them. Does not know: weights, replies.

The chat form of a model ("chatml", or "raw" for one that was only pretrained) stands in generation_config.json under
`chat_format`, where the official Qwen-VL folders have it too; transformers and vLLM carry the key along unused. A
folder without it is ChatML.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from qvl.checkpoint.hf_settings import (
    GENERATION_FILE,
    PREPROCESSOR_FILE,
    Preprocessing,
    preprocessing_json,
    read_preprocessing,
)
from qvl.checkpoint.jsonfile import Fields, dump
from qvl.inputs.processor import ChatFormatName, Processor, ProcessorConfig, Resize
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.qwen_vl.config import QwenVLConfig
from qvl.models.vlm import VLMConfig
from qvl.text.tokenizer import Tokenizer

PROCESSOR_FILES = ("tokenizer.json", "qwen.tiktoken", "chat_template.*", PREPROCESSOR_FILE)
"""What a newly written processor supersedes in a folder: one family's files would mislead about the other."""
_CHAT_FORMAT_KEY = "chat_format"


def processor_for(config: VLMConfig, folder: Path, resize: Resize) -> Processor:
    """The processor that the folder's files describe, of the family that `config` is a configuration of.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or says something that is not implemented.
    """
    tokenizer, chat = Tokenizer.from_folder(folder), _read_chat_format(folder)
    if isinstance(config, QwenVLConfig):
        side, queries, patch = config.vision.image_px, config.adapter.queries, config.vision.patch
        square = ProcessorConfig.qwen_vl(side, queries, patch=patch, chat_format=chat, resize=resize)
        return Processor(tokenizer, square)
    settings = read_preprocessing(folder)
    options = ProcessorConfig(
        geometry=settings.geometry,
        pixels=settings.budget,
        chat_format=chat,
        resize=resize,
        rope_axes=3 if config.text.rope_axes == 3 else 1,
    )
    return Processor(tokenizer, options)


def save_processor(processor: Processor, folder: Path) -> None:
    """Writes the tokenizer's and the preprocessor's files, and the chat form into generation_config.json.

    Qwen-VL's config.json says all about its pictures: it has no preprocessor's file.
    """
    config = processor.config
    processor.tokenizer.save(folder)
    if config.square is None:
        settings = preprocessing_json(Preprocessing(config.geometry, config.pixels))
        (folder / PREPROCESSOR_FILE).write_text(dump(settings), encoding="utf-8")
    generation = folder / GENERATION_FILE
    data = json.loads(generation.read_text(encoding="utf-8")) | {_CHAT_FORMAT_KEY: config.chat_format}
    generation.write_text(dump(data), encoding="utf-8")


def check_match(config: VLMConfig, processor: Processor) -> None:
    """Raises `ValueError` if the processor's vocabulary or geometry is not the model's."""
    if processor.tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {processor.tokenizer.vocab_size} ids but the model's embedding only "
            f"{config.vocab_size} rows: they come from different models"
        )
    if isinstance(config, QwenVLConfig):
        _check_qwen_vl(config, processor)
    else:
        assert isinstance(config, Qwen2VLConfig)
        _check_qwen2_vl(config, processor)
    if processor.config.rope_axes != config.text.rope_axes:
        raise ValueError(
            f"the processor makes positions on {processor.config.rope_axes} axes, "
            f"the model wants {config.text.rope_axes}"
        )


def _check_qwen2_vl(config: Qwen2VLConfig, processor: Processor) -> None:
    ids = config.ids
    _check_ids(
        processor.tokenizer,
        {
            "<|image_pad|>": ids.image_pad,
            "<|video_pad|>": ids.video_pad,
            "<|vision_start|>": ids.vision_start,
            "<|vision_end|>": ids.vision_end,
        },
    )
    geometry = processor.config.geometry
    ours = (geometry.patch, geometry.merge, geometry.temporal)
    theirs = (config.vision.patch, config.vision.merge, config.vision.temporal_patch)
    if ours != theirs:
        raise ValueError(f"preprocessing cuts (patch, merge, temporal) = {ours}, the vision tower wants {theirs}")


def _check_qwen_vl(config: QwenVLConfig, processor: Processor) -> None:
    ids, square = config.ids, processor.config.square
    _check_ids(processor.tokenizer, {"<img>": ids.image_start, "</img>": ids.image_end, "<imgpad>": ids.image_pad})
    assert square is not None, "a processor with Qwen-VL's vocabulary shows squares"
    ours = (processor.config.geometry.patch, square.slots)
    theirs = (config.vision.patch, config.adapter.queries)
    if ours != theirs:
        raise ValueError(f"the processor's (patch, tokens per picture) are {ours}, the model's {theirs}")


def _check_ids(tokenizer: Tokenizer, wanted: Mapping[str, int]) -> None:
    for name, model_id in wanted.items():
        if tokenizer.special(name) != model_id:
            raise ValueError(
                f"{name} is id {tokenizer.special(name)} in the tokenizer and {model_id} in config.json: "
                "they come from different models"
            )


def _read_chat_format(folder: Path) -> ChatFormatName:
    file = folder / GENERATION_FILE
    name = Fields.read(file).data.get(_CHAT_FORMAT_KEY, "chatml") if file.exists() else "chatml"
    if name not in get_args(ChatFormatName):
        raise ValueError(f"{file}: {_CHAT_FORMAT_KEY} is {name!r}; known are {', '.join(get_args(ChatFormatName))}")
    return name
