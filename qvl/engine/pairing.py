"""Which processor belongs to which model: made from a folder, written into one, checked against the model.

Knows: the families' processors and the files that describe them. Does not know: weights, replies.

The chat form of a model ("chatml", or "raw" for one that was only pretrained) stands in generation_config.json under
`chat_format`, where the official Qwen-VL folders have it too; transformers and vLLM carry the key along unused. A
folder without it is ChatML.
"""

from __future__ import annotations

import json
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
from qvl.models.vlm import VLMConfig
from qvl.text.tokenizer import Tokenizer

_CHAT_FORMAT_KEY = "chat_format"


def processor_for(config: VLMConfig, folder: Path, resize: Resize) -> Processor:
    """The processor that the folder's files describe, of the family that `config` is a configuration of.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or says something that is not implemented.
    """
    _only_qwen2_vl(config)
    settings = read_preprocessing(folder)
    options = ProcessorConfig(
        geometry=settings.geometry,
        pixels=settings.budget,
        chat_format=_read_chat_format(folder),
        resize=resize,
        rope_axes=3 if config.text.rope_axes == 3 else 1,
    )
    return Processor(Tokenizer.from_folder(folder), options)


def save_processor(processor: Processor, folder: Path) -> None:
    """Writes the tokenizer's and the preprocessor's files, and the chat form into generation_config.json."""
    config = processor.config
    processor.tokenizer.save(folder)
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
    _check_qwen2_vl(_only_qwen2_vl(config), processor)
    if processor.config.rope_axes != config.text.rope_axes:
        raise ValueError(
            f"the processor makes positions on {processor.config.rope_axes} axes, "
            f"the model wants {config.text.rope_axes}"
        )


def _check_qwen2_vl(config: Qwen2VLConfig, processor: Processor) -> None:
    tokenizer, geometry, ids = processor.tokenizer, processor.config.geometry, config.ids
    for name, model_id in (
        ("<|image_pad|>", ids.image_pad),
        ("<|video_pad|>", ids.video_pad),
        ("<|vision_start|>", ids.vision_start),
        ("<|vision_end|>", ids.vision_end),
    ):
        if tokenizer.special(name) != model_id:
            raise ValueError(
                f"{name} is id {tokenizer.special(name)} in the tokenizer and {model_id} in config.json: "
                "they come from different models"
            )
    ours = (geometry.patch, geometry.merge, geometry.temporal)
    theirs = (config.vision.patch, config.vision.merge, config.vision.temporal_patch)
    if ours != theirs:
        raise ValueError(f"preprocessing cuts (patch, merge, temporal) = {ours}, the vision tower wants {theirs}")


def _only_qwen2_vl(config: VLMConfig) -> Qwen2VLConfig:
    if not isinstance(config, Qwen2VLConfig):
        raise ValueError(
            f"there is no processor for a {type(config).__name__}: its weights load with "
            "qvl.checkpoint.folder.load_model, but it cannot be talked to"
        )
    return config


def _read_chat_format(folder: Path) -> ChatFormatName:
    file = folder / GENERATION_FILE
    name = Fields.read(file).data.get(_CHAT_FORMAT_KEY, "chatml") if file.exists() else "chatml"
    if name not in get_args(ChatFormatName):
        raise ValueError(f"{file}: {_CHAT_FORMAT_KEY} is {name!r}; known are {', '.join(get_args(ChatFormatName))}")
    return name
