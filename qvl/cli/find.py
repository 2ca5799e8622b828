"""A model by the name that a person gives: a preset, a folder, a hub id.

Knows: how presets may be shortened. Does not know: weights; of a hub repository only the small json files are fetched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvl.checkpoint.hf_settings import Preprocessing
    from qvl.models.qwen2_vl.config import Qwen2VLConfig
    from qvl.models.qwen_vl.config import QwenVLConfig


def find_model(name: str) -> tuple[Qwen2VLConfig | QwenVLConfig, Preprocessing]:
    """Sizes and pixel settings of a model: `tiny`, `qwen-vl`, `qwen2-vl-2b` or `2b`, a folder, or a hub id.

    The settings are Qwen2-VL's; what a Qwen-VL does with pictures stands in its sizes.

    Raises:
        FileNotFoundError: none of these.
        ValueError: a folder of another family, or one that is damaged.
    """
    from qvl.checkpoint.configs import read_config
    from qvl.checkpoint.hf_settings import Preprocessing, read_preprocessing
    from qvl.checkpoint.hub import resolve
    from qvl.models.qwen_vl.config import QwenVLConfig
    from qvl.models.registry import presets

    known: dict[str, Any] = presets()
    for key in (name, f"qwen2-vl-{name.lower()}"):
        if key in known:
            return known[key], Preprocessing()
    try:
        folder = resolve(name, weights=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Presets: {', '.join(known)}") from None
    config: Any = read_config(folder)
    return config, Preprocessing() if isinstance(config, QwenVLConfig) else read_preprocessing(folder)
