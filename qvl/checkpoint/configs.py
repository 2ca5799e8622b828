"""`config.json` of any family <-> its configuration.

Knows: which reader and writer belongs to which `model_type`. Does not know: keys (each format's own module).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qvl.checkpoint import hf_config, hf_config_qwen_vl
from qvl.checkpoint.jsonfile import Fields
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.registry import FAMILIES, Family, family
from qvl.models.vlm import VLMConfig


@dataclass(frozen=True)
class _Format:
    parse: Callable[[Fields], Any]
    json: Callable[[Any, torch.dtype], dict[str, Any]]


_FORMATS: dict[str, _Format] = {
    "qwen2_vl": _Format(hf_config.parse_config, hf_config.config_json),
    "qwen": _Format(hf_config_qwen_vl.parse_config, hf_config_qwen_vl.config_json),
}
_MARKED = {hf_config.OWN_MODEL_TYPE: hf_config.MODEL_TYPE}
"""What a family writes for models that other readers cannot run."""
assert _FORMATS.keys() == FAMILIES.keys(), "every family needs a config.json, and every config.json a family"


def parse_config(fields: Fields) -> tuple[Family, Any]:
    """The family and the configuration that a parsed config.json describes.

    Raises:
        ValueError: an unknown `model_type`, a missing key, or something that is not implemented.
    """
    stated = fields.data.get("model_type")
    model_type = _MARKED.get(stated, stated) if isinstance(stated, str) else stated
    kind = family(model_type)
    return kind, _FORMATS[str(model_type)].parse(fields)


def read_config(folder: Path) -> VLMConfig:
    """The configuration in the folder's config.json. Raises `FileNotFoundError` without one, and as `parse_config`."""
    return parse_config(Fields.read(folder / "config.json"))[1]


def runs_elsewhere(config: VLMConfig) -> bool:
    """Whether transformers and vLLM compute what this package does with such a model."""
    return not isinstance(config, Qwen2VLConfig) or hf_config.runs_elsewhere(config)


def config_json(config: VLMConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What goes into config.json for weights stored as `dtype`. Raises `ValueError` for what the format lacks."""
    for model_type, kind in FAMILIES.items():
        if type(config) is kind.config:
            return _FORMATS[model_type].json(config, dtype)
    raise ValueError(f"a {type(config).__name__} is not a configuration of one of: {', '.join(FAMILIES)}")
