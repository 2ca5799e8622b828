"""The literal table of model families: `model_type` of a config.json -> what builds it and names its tensors.

Knows: which families there are. Does not know: files, json (`qvl.checkpoint` reads and writes those).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from qvl.models.keys import Entry
from qvl.models.qwen2_vl import config as qwen2_vl_config
from qvl.models.qwen2_vl import keymap as qwen2_vl_keys
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.models.qwen_vl import config as qwen_vl_config
from qvl.models.qwen_vl import keymap as qwen_vl_keys
from qvl.models.qwen_vl.model import QwenVL
from qvl.models.vlm import VisionLanguageModel, VLMConfig


@dataclass(frozen=True)
class Family:
    architecture: str
    """What `architectures` of an official config.json says."""
    module: Callable[[Any], VisionLanguageModel]
    """The class of its models, built from their configuration (inside `torch.device("meta")` it takes no memory)."""
    config: type
    presets: Mapping[str, Any]
    """Its named configurations."""
    entries: Callable[[Any], tuple[Entry, ...]]
    """Module -> its stored tensors in terms of official ones."""
    old_name: Callable[[str], str]
    """Any generation's tensor name -> the name that `entries` uses."""
    new_name: Callable[[str], str]
    """The name that `entries` uses -> the newest generation's."""
    head: str
    """Official name of the output head's matrix."""
    embed: str
    """Official name of the token embedding."""


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        architecture="Qwen2VLForConditionalGeneration",
        module=Qwen2VL,
        config=qwen2_vl_config.Qwen2VLConfig,
        presets=qwen2_vl_config.PRESETS,
        entries=qwen2_vl_keys.entries,
        old_name=qwen2_vl_keys.old_name,
        new_name=qwen2_vl_keys.new_name,
        head=qwen2_vl_keys.HEAD,
        embed=qwen2_vl_keys.EMBED,
    ),
    "qwen": Family(
        architecture="QWenLMHeadModel",
        module=QwenVL,
        config=qwen_vl_config.QwenVLConfig,
        presets=qwen_vl_config.PRESETS,
        entries=qwen_vl_keys.entries,
        old_name=qwen_vl_keys.old_name,
        new_name=qwen_vl_keys.new_name,
        head=qwen_vl_keys.HEAD,
        embed=qwen_vl_keys.EMBED,
    ),
}


def family(model_type: object) -> Family:
    """The family of a config.json's `model_type`. Raises `ValueError` listing the ones there are."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} is not one this package implements; there are: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def family_of(model: nn.Module) -> Family:
    """The family that a model belongs to. Raises `ValueError` for a module that is none of them."""
    for entry in FAMILIES.values():
        if type(model) is entry.module:
            return entry
    raise ValueError(f"a {type(model).__name__} is not one of the models: {', '.join(FAMILIES)}")


def family_of_config(config: VLMConfig) -> Family:
    """The family that a configuration belongs to. Raises `ValueError` if it is none of them."""
    for entry in FAMILIES.values():
        if type(config) is entry.config:
            return entry
    raise ValueError(f"a {type(config).__name__} is not a configuration of one of: {', '.join(FAMILIES)}")


def presets() -> dict[str, VLMConfig]:
    """The named configurations of all families."""
    return {key: config for entry in FAMILIES.values() for key, config in entry.presets.items()}


def preset(name: str) -> VLMConfig:
    """A named configuration of any family. Raises `ValueError` listing the names there are."""
    known = presets()
    if name not in known:
        raise ValueError(f"no model preset {name!r}; there are: {', '.join(known)}")
    return known[name]


def small_preset(name: str) -> str:
    """The small preset of the family that preset `name` belongs to."""
    return next(key for key in family_of_config(preset(name)).presets if key.startswith("tiny"))


def build_model(config: VLMConfig) -> VisionLanguageModel:
    """The model of the family that `config` is a configuration of, with weights as they come from the constructor."""
    return family_of_config(config).module(config)
